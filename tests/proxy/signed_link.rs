//! What is opened by signed links alone: for whom, how far, and to which second.

use std::sync::Arc;

use http::Request;
use lockgate::routing::policy::Policies;
use lockgate::routing::policy::rate_limit::Limiters;
use lockgate::routing::policy::signed_link::SignedLink;
use lockgate::routing::{Backend, Hold, HostName};
use lockgate::settings::PolicySettings;

use crate::holds::rules;
use crate::support::{OK, Plane, Upstream, WORKERS, field, pattern, status};
use crate::support_http2::{Http2, get};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER_KEY: &str = "another 0123456789abcdef01234567";
const NOW: i64 = 2_000_000_000;

fn policies(key: &str) -> Policies {
    written(&format!("- {{ paths: [/files], signed_link: {{ key: '{key}' }} }}"))
}

fn written(yaml: &str) -> Policies {
    let settings: Vec<PolicySettings> = serde_yaml::from_str(yaml).unwrap();
    Policies::new(&settings, &Limiters::default(), "app", WORKERS).unwrap()
}

/// What is below `/files` of `app.test` is opened by links of `key`.
fn publish(plane: &Plane, upstream: &Upstream, key: &str) {
    publish_under(plane, upstream, policies(key));
}

fn publish_under(plane: &Plane, upstream: &Upstream, policies: Policies) {
    let backend = Backend::new(upstream.backend.targets.clone(), upstream.backend.stats.clone());
    let backend = Arc::new(backend.with_policies(Some(Arc::new(policies))));
    plane.routing.publish(|edit| {
        edit.route(&pattern("app.test"), "/", &backend);
        edit.route(&pattern("other.test"), "/", &backend);
    });
}

async fn served() -> (Plane, Upstream) {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.clock.set_wall(NOW);
    publish(&plane, &upstream, KEY);
    (plane, upstream)
}

fn token_of(key: &str, host: &str, path: &str, until: i64) -> String {
    let policies = policies(key);
    let host: HostName = host.parse().unwrap();
    policies.signed_link_for("/files").unwrap().sign(&host, path, until)
}

fn token(path: &str, until: i64) -> String {
    token_of(KEY, "app.test", path, until)
}

fn cookie(path: &str, until: i64) -> String {
    format!("Cookie: lockgate_signed={}\r\n", SignedLink::kept(&token(path, until), path))
}

async fn ask(plane: &Plane, line: &str, fields: &str) -> String {
    ask_at(plane, "app.test", line, fields).await
}

async fn ask_at(plane: &Plane, host: &str, line: &str, fields: &str) -> String {
    let head = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    plane.exchange(head).await
}

fn refused(answer: &str) -> bool {
    status(answer) == 403
        && field(answer, "lockgate-reason") == Some("signed_link_required")
        && field(answer, "set-cookie").is_none()
}

#[tokio::test]
async fn a_link_becomes_a_cookie_that_opens_its_place_and_neither_reaches_the_app() {
    let (plane, upstream) = served().await;
    assert!(refused(&ask(&plane, "GET /files/a", "").await));
    assert_eq!(status(&ask(&plane, "GET /", "").await), 200, "the rest is for everybody");

    let token = token("/files/a", NOW + 60);
    let answer = ask(&plane, &format!("GET /files/a?x=1&lockgate_signed={token}&y"), "").await;
    assert_eq!((status(&answer), field(&answer, "location")), (303, Some("/files/a?x=1&y")), "{answer}");
    assert_eq!(field(&answer, "lockgate-reason"), Some("signed_link"));
    assert_eq!(field(&answer, "cache-control"), Some("no-store"));
    assert_eq!(field(&answer, "referrer-policy"), Some("no-referrer"));
    let cookie = field(&answer, "set-cookie").unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Lax", "Max-Age=60", "Path=/files/a"] {
        assert!(cookie.split("; ").any(|one| one == part), "{part}: {cookie}");
    }
    assert_eq!(upstream.heads().len(), 1, "the link itself went to the app");

    let pair = cookie.split(';').next().unwrap();
    for (line, expected) in [
        ("GET /files/a?x=1", 200),
        ("POST /files/a/part", 200),
        ("GET /files/b", 403),
        ("GET /files", 403),
        ("GET /files/a/../b", 403),
        ("GET /files/a/..%2fb", 403),
        ("GET /files/ab", 403),
    ] {
        let fields = format!("Cookie: a=1; {pair}; b=2\r\nContent-Length: 0\r\n");
        let answer = ask(&plane, line, &fields).await;
        assert_eq!(status(&answer), expected, "{line}: {answer}");
    }
    for head in &upstream.heads()[1..] {
        assert_eq!(field(head, "cookie"), Some("a=1; b=2"), "{head}");
    }
    assert!(!format!("{:?}", upstream.heads()).contains("lockgate_signed"));
    plane.shutdown().await;
}

/// `app.test` is opened by links of [`KEY`], all but `/public`; what is below `/b` is another app's.
fn publish_beside(plane: &Plane, upstream: &Upstream, other: &Upstream) {
    let yaml = format!("- {{ except: [/public], signed_link: {{ key: '{KEY}' }} }}");
    let settings: Vec<PolicySettings> = serde_yaml::from_str(&yaml).unwrap();
    let policies = Policies::new(&settings, &Limiters::default(), "app", WORKERS).map(Arc::new);
    let backend = Backend::new(upstream.backend.targets.clone(), upstream.backend.stats.clone());
    let backend = Arc::new(backend.with_policies(policies));
    plane.routing.publish(|edit| {
        edit.route(&pattern("app.test"), "/", &backend);
        edit.route(&pattern("app.test"), "/b", &other.backend);
    });
}

#[tokio::test]
async fn no_application_of_the_host_gets_what_a_link_became() {
    let (plane, upstream) = served().await;
    let other = Upstream::answering(OK).await;
    publish_beside(&plane, &upstream, &other);
    let cookie = cookie("/", NOW + 60);
    let pair = cookie.trim_end().strip_prefix("Cookie: ").unwrap();
    let fields = format!(
        "Cookie: a=\u{e9}; {pair}\r\nCookie: lockgate_preview=x.y; b=lockgate_; __lockgate_target=t\r\n"
    );
    for (line, app) in [("GET /b/x", &other), ("GET /public/x", &upstream), ("GET /x", &upstream)] {
        assert_eq!(status(&ask(&plane, line, &fields).await), 200, "{line}");
        let head = app.heads().pop().unwrap();
        assert!(head.starts_with(line), "{head}");
        assert!(!head.contains("lockgate_signed") && !head.contains("lockgate_preview"), "{head}");
        assert!(head.contains(": a=\u{e9}\r\n"), "{head}");
        assert!(head.contains(": b=lockgate_; __lockgate_target=t\r\n"), "{head}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn no_token_reaches_the_app_beside_a_cookie_that_lets_by() {
    let (plane, upstream) = served().await;
    let (good, over) = (token("/files/a", NOW + 60), token("/files/a", NOW));
    let cookie = cookie("/files/a", NOW + 60);
    for (line, expected) in [
        (format!("POST /files/a?x=1&lockgate_signed={good}&y"), "POST /files/a?x=1&y "),
        (format!("POST /files/a?lockgate_signed={good}"), "POST /files/a "),
        (format!("GET /files/a?lockgate_signed={over}&lockgate_signed={good}"), "GET /files/a "),
        (format!("GET /files/a/b?lockgate_signed={good}&x"), "GET /files/a/b?x "),
    ] {
        let answer = ask(&plane, &line, &format!("{cookie}Content-Length: 0\r\n")).await;
        assert_eq!(status(&answer), 200, "{line}: {answer}");
        let head = upstream.heads().pop().unwrap();
        assert!(head.starts_with(expected), "{line}: {head}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn what_a_link_opened_is_kept_by_no_cache_that_others_share() {
    let (plane, upstream) = served().await;
    let cookie = cookie("/files/a", NOW + 60);
    for (response, expected) in [
        (OK, &["private"][..]),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: public, max-age=60\r\n\r\n",
            &["public, max-age=60", "private"],
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: max-age=5, Private\r\n\r\n",
            &["max-age=5, Private"],
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\n\r\n", &["no-store"]),
    ] {
        upstream.answer(response);
        let answer = ask(&plane, "GET /files/a", &cookie).await;
        let told: Vec<&str> =
            answer.lines().filter_map(|line| line.strip_prefix("cache-control: ")).collect();
        assert_eq!((status(&answer), &*told), (200, expected), "{answer}");
    }
    upstream.answer(OK);
    assert_eq!(field(&ask(&plane, "GET /", &cookie).await, "cache-control"), None, "what is for everybody");
    plane.shutdown().await;
}

#[tokio::test]
async fn of_many_cookies_the_first_eight_are_looked_at() {
    let (plane, _upstream) = served().await;
    let cookie = cookie("/files/a", NOW + 60);
    let good = cookie.trim_end().strip_prefix("Cookie: ").unwrap();
    for (others, expected) in [(7, 200), (8, 403)] {
        let fields = format!("Cookie: {}{good}\r\n", "lockgate_signed=x; a=1; ".repeat(others));
        assert_eq!(status(&ask(&plane, "GET /files/a", &fields).await), expected, "{others}");
    }
    plane.shutdown().await;
}

#[test]
fn a_link_is_signed_by_the_key_that_is_asked_for_of_readers() {
    let yaml = format!(
        "- {{ methods: [POST], signed_link: {{ key: '{OTHER_KEY}' }} }}\n- {{ methods: [GET], signed_link: {{ key: '{KEY}' }} }}"
    );
    let settings: Vec<PolicySettings> = serde_yaml::from_str(&yaml).unwrap();
    let two = Policies::new(&settings, &Limiters::default(), "app", WORKERS).unwrap();
    let host: HostName = "app.test".parse().unwrap();
    let signed = two.signed_link_for("/files/a").unwrap().sign(&host, "/files/a", NOW);
    assert_eq!(signed, token("/files/a", NOW));
    let writers = Policies::new(&settings[..1], &Limiters::default(), "app", WORKERS).unwrap();
    assert!(writers.signed_link_for("/files/a").is_none());
}

#[tokio::test]
async fn links_to_several_places_are_good_side_by_side() {
    let (plane, upstream) = served().await;
    let [a, b] = ["/files/a", "/files/b/"].map(|path| cookie(path, NOW + 60).trim_end().to_owned());
    let both = format!("{a}; {}\r\n", b.strip_prefix("Cookie: ").unwrap());
    for (line, expected) in [("GET /files/a", 200), ("GET /files/b/c", 200), ("GET /files/c", 403)] {
        assert_eq!(status(&ask(&plane, line, &both).await), expected, "{line}");
    }
    // A cookie of this attribute would end at the semicolon.
    let mut jar = std::collections::BTreeMap::new();
    for path in ["/files/;x", "/files/;y"] {
        let answer = ask(&plane, &format!("GET {path}?lockgate_signed={}", token(path, NOW + 9)), "").await;
        let cookie = field(&answer, "set-cookie").unwrap();
        assert!(cookie.contains("; Path=/; "), "{answer}");
        let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
        jar.insert(name.to_owned(), value.to_owned());
    }
    let pairs: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let fields = format!("Cookie: {}\r\n", pairs.join("; "));
    for (line, expected) in [("GET /files/;x", 200), ("GET /files/;y", 200), ("GET /files/;z", 403)] {
        assert_eq!(status(&ask(&plane, line, &fields).await), expected, "{line}");
    }
    assert!(!format!("{:?}", upstream.heads()).contains("lockgate_signed"));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_link_and_its_cookie_are_good_to_the_second() {
    let (plane, upstream) = served().await;
    let (line, cookie) = (
        format!("GET /files/a?lockgate_signed={}", token("/files/a", NOW + 60)),
        cookie("/files/a", NOW + 60),
    );
    for (at, is_good) in [(59, true), (60, false), (61, false)] {
        plane.clock.set_wall(NOW + at);
        let link = ask(&plane, &line, "").await;
        let kept = ask(&plane, "GET /files/a", &cookie).await;
        if is_good {
            assert_eq!((status(&link), status(&kept)), (303, 200), "{at}");
            assert!(field(&link, "set-cookie").unwrap().ends_with("; Max-Age=1"), "{link}");
        } else {
            assert!(refused(&link) && refused(&kept), "{at}: {link} {kept}");
        }
    }
    assert_eq!(upstream.heads().len(), 1);
    plane.shutdown().await;
}

#[tokio::test]
async fn what_was_tampered_with_opens_nothing_and_wakes_nobody() {
    let (plane, upstream) = served().await;
    let hold = Arc::new(Hold::new(rules(), Some(Arc::default())));
    let asleep = Backend::new(Box::default(), upstream.backend.stats.clone()).held(Arc::clone(&hold));
    let asleep = asleep.with_policies(Some(Arc::new(policies(KEY))));
    plane.routing.publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(asleep)));
    let good = token("/files/a", NOW + 60);
    let kept = |token: &str, path: &str| SignedLink::kept(token, path);
    let later = good.replacen(&(NOW + 60).to_string(), &(NOW + 61).to_string(), 1);
    let others = token_of(OTHER_KEY, "app.test", "/files/a", NOW + 60);
    let flipped = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    for (what, host, path, token) in [
        ("path", "app.test", "/files/b", &good),
        ("path below it", "app.test", "/files/a/b", &good),
        ("spelling of the path", "app.test", "/files/%61", &good),
        ("host", "other.test", "/files/a", &good),
        ("expiry", "app.test", "/files/a", &later),
        ("signature", "app.test", "/files/a", &flipped),
        ("key", "app.test", "/files/a", &others),
        ("nothing", "app.test", "/files/a", &String::new()),
    ] {
        let answer = ask_at(&plane, host, &format!("GET {path}?lockgate_signed={token}"), "").await;
        assert!(refused(&answer), "{what}: {answer}");
        let cookie = format!("Cookie: lockgate_signed={}\r\n", kept(token, path));
        let answer = ask_at(&plane, host, &format!("GET {path}"), &cookie).await;
        assert!(refused(&answer), "{what} of the cookie: {answer}");
    }
    for raw in ["", "x", ".", "..", &good, &format!("{good}."), &format!("{good}.!"), &format!("{good}.Lw")] {
        let answer = ask(&plane, "GET /files/a", &format!("Cookie: lockgate_signed={raw}\r\n")).await;
        assert!(refused(&answer), "{raw}: {answer}");
    }
    // A link is for reading; what changes something needs the cookie.
    let answer = ask(&plane, &format!("POST /files/a?lockgate_signed={good}"), "Content-Length: 0\r\n").await;
    assert!(refused(&answer), "{answer}");
    assert!(upstream.heads().is_empty());
    assert_eq!((hold.take_wanted(), hold.waiting()), (false, 0));
    plane.shutdown().await;
}

#[tokio::test]
async fn another_key_closes_what_the_one_before_opened_and_a_lost_one_closes_all() {
    let (plane, upstream) = served().await;
    let cookie = cookie("/files/a", NOW + 60);
    assert_eq!(status(&ask(&plane, "GET /files/a", &cookie).await), 200);
    publish(&plane, &upstream, OTHER_KEY);
    assert!(refused(&ask(&plane, "GET /files/a", &cookie).await));
    assert!(refused(
        &ask(&plane, &format!("GET /files/a?lockgate_signed={}", token("/files/a", NOW + 60)), "").await
    ));
    publish(&plane, &upstream, KEY);
    assert_eq!(status(&ask(&plane, "GET /files/a", &cookie).await), 200);
    let settings: Vec<PolicySettings> = serde_json::from_str(r#"[{ "signed_link": {} }]"#).unwrap();
    let lost = Policies::new(&settings, &Limiters::default(), "app", WORKERS).map(Arc::new);
    let backend =
        Backend::new(upstream.backend.targets.clone(), upstream.backend.stats.clone()).with_policies(lost);
    plane.routing.publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(backend)));
    let answer = ask(&plane, "GET /files/a", &cookie).await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (503, Some("policy_unreadable")));
    assert_eq!(upstream.heads().len(), 2);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_key_is_changed_and_what_the_one_before_opened_goes_on_as_long_as_it_is_written() {
    let (plane, upstream) = served().await;
    let cookie = cookie("/files/a", NOW + 60);
    let rotated = || {
        written(&format!("- {{ paths: [/files], signed_link: {{ key: '{OTHER_KEY}', also: ['{KEY}'] }} }}"))
    };
    let new =
        rotated().signed_link_for("/files").unwrap().sign(&"app.test".parse().unwrap(), "/files/a", NOW + 60);
    assert_eq!(new, token_of(OTHER_KEY, "app.test", "/files/a", NOW + 60), "the new one signs");
    publish_under(&plane, &upstream, rotated());
    assert_eq!(status(&ask(&plane, "GET /files/a", &cookie).await), 200);
    for token in [token("/files/a", NOW + 60), new] {
        let answer = ask(&plane, &format!("GET /files/a?lockgate_signed={token}"), "").await;
        assert_eq!(status(&answer), 303, "{answer}");
        let kept = field(&answer, "set-cookie").unwrap().split(';').next().unwrap();
        assert_eq!(status(&ask(&plane, "GET /files/a", &format!("Cookie: {kept}\r\n")).await), 200);
    }
    publish(&plane, &upstream, OTHER_KEY);
    assert!(refused(&ask(&plane, "GET /files/a", &cookie).await));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_service_that_is_asked_first_is_told_no_token_in_whatever_order() {
    let (plane, upstream) = served().await;
    let auth = Upstream::answering(OK).await;
    let link = format!("- {{ paths: [/files], signed_link: {{ key: '{KEY}' }} }}\n");
    let asks = format!("- forward_auth: {{ url: 'http://{}/verify', timeout: 60s }}\n", auth.target.address);
    let (token, cookie) = (token("/files/a", NOW + 60), cookie("/files/a", NOW + 60));
    for (order, policies) in [("link first", format!("{link}{asks}")), ("link last", format!("{asks}{link}"))]
    {
        publish_under(&plane, &upstream, written(&policies));
        let line = format!("POST /files/a?x=1&lockgate_signed={token}&y");
        assert_eq!(status(&ask(&plane, &line, &format!("{cookie}Content-Length: 0\r\n")).await), 200);
        let head = auth.heads().pop().unwrap();
        assert_eq!(field(&head, "x-forwarded-uri"), Some("/files/a?x=1&y"), "{order}: {head}");
        assert!(!head.contains(&token), "{order}: {head}");
    }
    // It is asked before the link is followed.
    assert_eq!(status(&ask(&plane, &format!("GET /files/a?lockgate_signed={token}"), "").await), 303);
    let head = auth.heads().pop().unwrap();
    assert_eq!(field(&head, "x-forwarded-uri"), Some("/files/a"), "{head}");
    // Where no link is wanted, it is the app's.
    assert_eq!(status(&ask(&plane, "GET /x?lockgate_signed=1", "").await), 200);
    let head = auth.heads().pop().unwrap();
    assert_eq!(field(&head, "x-forwarded-uri"), Some("/x?lockgate_signed=1"), "{head}");
    plane.shutdown().await;
}

#[tokio::test]
async fn over_http2_links_open_the_same() {
    let (plane, upstream) = served().await;
    let mut client = Http2::connect(&plane).await;
    assert_eq!(client.get("http://app.test/files/a").await.status(), 403);
    let token = token("/files/a", NOW + 60);
    let answer = client.get(&format!("http://app.test/files/a?lockgate_signed={token}")).await;
    assert_eq!((answer.status(), answer.field("location")), (303, Some("/files/a")));
    let pair = answer.field("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let with = |path: &str| {
        // In crumbs, as browsers send them.
        let mut request: Request<()> = get(&format!("http://app.test{path}"));
        for crumb in ["a=1", &pair, "b=2"] {
            request.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        request
    };
    assert_eq!(client.answer(with("/files/a/b")).await.status(), 200);
    assert_eq!(client.answer(with("/files/b")).await.status(), 403);
    plane.clock.set_wall(NOW + 60);
    assert_eq!(client.answer(with("/files/a")).await.status(), 403);
    let heads = upstream.heads();
    assert!(heads.len() == 1 && field(&heads[0], "cookie") == Some("a=1; b=2"), "{heads:?}");
    plane.shutdown().await;
}
