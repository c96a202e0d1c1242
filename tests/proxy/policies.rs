//! What the policies of a route refuse, answer and change, and that nothing leads around them.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use lockgate::routing::policy::Policies;
use lockgate::routing::policy::rate_limit::Limiters;
use lockgate::routing::{Backend, Hold};
use lockgate::settings::PolicySettings;

use crate::holds::rules;
use crate::support::{GET, OK, Plane, Upstream, WORKERS, Wire, field, pattern, status, within};

/// `host` leads to `upstream` under these policies.
pub(crate) fn publish(plane: &Plane, host: &str, upstream: &Upstream, policies: &str) {
    let backend = under(policies, &upstream.backend);
    plane.routing.publish(|edit| edit.route(&pattern(host), "/", &Arc::new(backend)));
}

fn under(policies: &str, backend: &Backend) -> Backend {
    let settings: Vec<PolicySettings> = serde_yaml::from_str(policies).unwrap();
    let policies = Policies::new(&settings, &Limiters::default(), "app", WORKERS);
    Backend::new(backend.targets.clone(), backend.stats.clone()).with_policies(policies.map(Arc::new))
}

async fn served(policies: &str) -> (Plane, Upstream) {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    publish(&plane, "app.test", &upstream, policies);
    (plane, upstream)
}

/// A request of its own connection, with more fields.
async fn ask(plane: &Plane, line: &str, fields: &str) -> String {
    let head = format!("{line} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{fields}\r\n");
    plane.exchange(head).await
}

#[tokio::test]
async fn a_redirect_goes_where_the_configuration_says_and_wakes_nobody() {
    let (plane, upstream) = served("- { paths: [/old], redirect: { to: /new, status: 302 } }\n- redirect: { hosts: [app.test], to: 'https://www.app.test' }").await;
    let hold = Arc::new(Hold::new(rules(), None));
    let backend =
        under("- redirect: { to: 'https://awake.test' }", &upstream.backend).held(Arc::clone(&hold));
    plane.routing.publish(|edit| edit.route(&pattern("asleep.test"), "/", &Arc::new(backend)));

    let moved = ask(&plane, "GET /old/x?y=1", "").await;
    assert_eq!((status(&moved), field(&moved, "location")), (302, Some("/new")), "{moved}");
    assert_eq!(field(&moved, "lockgate-reason"), Some("redirect"));
    assert!(field(&moved, "x-request-id").is_some() && field(&moved, "content-length") == Some("0"));
    let moved = ask(&plane, "POST //evil.test/..?a=b", "Content-Length: 3\r\n\r\nabc").await;
    assert_eq!(
        (status(&moved), field(&moved, "location")),
        (308, Some("https://www.app.test//evil.test/..?a=b")),
        "{moved}"
    );
    let asleep = "GET / HTTP/1.1\r\nHost: asleep.test\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&plane.exchange(asleep).await), 308);
    assert_eq!(hold.waiting(), 0);
    assert!(!hold.take_wanted(), "it was rung for");
    assert!(upstream.heads().is_empty());
    plane.shutdown().await;
}

#[tokio::test]
async fn addresses_are_those_that_trusted_proxies_tell_and_denied_before_allowed() {
    let (plane, upstream) = (
        Plane::with(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]),
        Upstream::answering(OK).await,
    );
    publish(
        &plane,
        "app.test",
        &upstream,
        "- { paths: [/admin], ip: { allow: [192.0.2.0/24], deny: [192.0.2.66/32] } }",
    );
    for (line, client, expected) in [
        ("GET /admin/x", "192.0.2.1", 200),
        ("GET /admin/x", "192.0.2.66", 403),
        ("GET /admin/x", "198.51.100.1", 403),
        ("GET /admin/x", "192.0.2.1, 198.51.100.1", 403),
        ("GET /ADMIN/x", "198.51.100.1", 403),
        ("GET /x/..%2fadmin", "198.51.100.1", 403),
        ("GET /%61dmin;x", "198.51.100.1", 403),
        ("GET /", "198.51.100.1", 200),
    ] {
        let answer = ask(&plane, line, &format!("X-Forwarded-For: {client}\r\n")).await;
        assert_eq!(status(&answer), expected, "{line} {client}: {answer}");
        assert_eq!(field(&answer, "lockgate-reason"), (expected == 403).then_some("address_refused"));
    }
    assert_eq!(upstream.heads().len(), 2);
    plane.shutdown().await;
}

#[tokio::test]
async fn who_has_no_password_is_asked_for_one_and_the_app_is_told_who_came() {
    let (plane, upstream) = served("- { except: [/up], basic_auth: { realm: Staff, users: [{ user: ann, password: 's3cret:x' }], user_header: X-User } }").await;
    let refused = ask(&plane, "GET /", "X-User: root\r\n").await;
    assert_eq!((status(&refused), field(&refused, "lockgate-reason")), (401, Some("unauthorized")));
    assert_eq!(field(&refused, "www-authenticate"), Some("Basic realm=\"Staff\", charset=\"UTF-8\""));
    assert_eq!(status(&ask(&plane, "GET /up", "").await), 200);
    // ann:s3cret:x
    let answer = ask(&plane, "GET /", "Authorization: Basic YW5uOnMzY3JldDp4\r\nX-User: root\r\n").await;
    assert_eq!(status(&answer), 200);
    let head = upstream.heads().pop().unwrap();
    assert_eq!((field(&head, "x-user"), field(&head, "authorization")), (Some("ann"), None), "{head}");
    assert_eq!(head.matches("ser: ").count(), 1, "{head}");
    plane.shutdown().await;
}

#[tokio::test]
async fn what_policies_answer_counts_for_its_app_and_is_nothing_that_its_version_was_asked() {
    let (plane, upstream) = served(
        "- { paths: [/old], redirect: { to: /new } }\n- { paths: [/in], ip: { deny: [127.0.0.0/8] } }\n\
         - { paths: [/who], forward_auth: { url: 'http://127.0.0.1:1/', timeout: 1s } }",
    )
    .await;
    for (path, expected) in [("/old", 308), ("/in", 403), ("/who", 503), ("/", 200)] {
        assert_eq!(status(&ask(&plane, &format!("GET {path}"), "").await), expected);
    }
    plane.settle(|| upstream.backend.stats.ended() == 1).await;
    let metrics = plane.metrics();
    for code in [308, 403, 503, 200] {
        let series = format!(
            r#"lockgate_http_requests_total{{app="test",environment="",deployment="",method="GET",code="{code}",protocol="1.1"}} 1"#
        );
        assert!(metrics.lines().any(|line| line == series), "{series} in {metrics}");
    }
    assert!(!metrics.contains(r#"http_requests_total{app="_unmatched""#), "{metrics}");
    // So neither is kept awake by it nor judged for it.
    let tally = upstream.backend.stats.tally();
    assert_eq!((tally.requests, tally.failed(), tally.answered_in.count()), (1, 0, 1));
    plane.shutdown().await;
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back_and_waits_for_nobody() {
    let (plane, upstream) = served("- { methods: [GET], rate_limit: { requests: 2, per: 1h } }").await;
    for expected in [200, 200, 429, 429] {
        let answer = ask(&plane, "GET /", "").await;
        assert_eq!(status(&answer), expected, "{answer}");
        if expected == 429 {
            assert_eq!(field(&answer, "lockgate-reason"), Some("rate_limited"));
            let seconds: u32 = field(&answer, "retry-after").unwrap().parse().unwrap();
            assert!((1790..=1800).contains(&seconds), "{seconds}");
        }
    }
    assert_eq!(status(&ask(&plane, "POST /", "Content-Length: 0\r\n").await), 200, "another method");
    assert_eq!(upstream.heads().len(), 3);
    plane.shutdown().await;
}

#[tokio::test]
async fn of_all_workers_together_no_more_come_than_may() {
    let plane = Plane::of_workers(WORKERS, |_| {}).unwrap();
    let upstream = Upstream::answering(OK).await;
    publish(&plane, "app.test", &upstream, "- rate_limit: { requests: 20, per: 1h, by: everyone }");
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let mut client = plane.connect().await;
        clients.spawn(async move {
            let mut passed = 0;
            for _ in 0..5 {
                client.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
                let head = client.head().await;
                let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
                client.bytes(length).await;
                passed += usize::from(status(&head) == 200);
            }
            passed
        });
    }
    assert_eq!(within(clients.join_all()).await.iter().sum::<usize>(), 20);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_try_after_a_refusal_counts_once_and_changes_once() {
    let (plane, old, new) = (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    let policies =
        "- rate_limit: { requests: 1, per: 1h }\n- headers: { request: { add: { X-Tried: 'yes' } } }";
    let settings: Vec<PolicySettings> = serde_yaml::from_str(policies).unwrap();
    let made = Arc::new(Policies::new(&settings, &Limiters::default(), "app", WORKERS).unwrap());
    let both = [Arc::clone(&old.target), Arc::clone(&new.target)];
    let backend = Backend::new(both.into(), old.backend.stats.clone()).with_policies(Some(made));
    plane.routing.publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(backend)));
    old.target.gate.close();
    let answer = ask(&plane, "GET /", "").await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(new.heads()[0].matches("x-tried: yes").count(), 1, "{:?}", new.heads());
    assert_eq!(status(&ask(&plane, "GET /", "").await), 429);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_request_that_waits_over_a_swap_is_held_to_the_policies_of_the_version_that_serves_it() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    let hold = Arc::new(Hold::new(rules(), None));
    let old = under("- headers: { request: { set: { X-Old: 'yes' }, remove: [X-Sent] } }", &upstream.backend);
    plane
        .routing
        .publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(old.held(Arc::clone(&hold)))));
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\nX-Sent: 1\r\n\r\n").await;
    plane.settle(|| hold.waiting() == 1).await;
    publish(&plane, "app.test", &upstream, "- headers: { request: { set: { X-New: 'yes' } } }");
    hold.release();
    assert_eq!(status(&client.head().await), 200);
    let head = upstream.heads().pop().unwrap();
    let told = ["x-old", "x-new", "x-sent"].map(|name| field(&head, name));
    assert_eq!(told, [None, Some("yes"), Some("1")], "{head}");
    plane.shutdown().await;
}

#[tokio::test]
async fn what_browsers_ask_for_other_origins_is_answered_and_what_they_get_is_marked_also_on_own_answers() {
    let policies = "
- cors: { origins: ['https://page.test'], methods: [GET, PUT], headers: [X-Token], expose: [X-Count], credentials: true, max_age: 1h }
- { methods: [PUT], ip: { deny: [127.0.0.0/8] } }";
    let (plane, upstream) = served(policies).await;
    upstream.answer("HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 0\r\n\r\n");
    let fields = "Origin: https://page.test\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: x-token\r\n";
    let preflight = ask(&plane, "OPTIONS /", fields).await;
    assert_eq!(status(&preflight), 204, "{preflight}");
    for (name, value) in [
        ("access-control-allow-origin", "https://page.test"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "X-Token"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(field(&preflight, name), Some(value), "{preflight}");
    }
    assert!(upstream.heads().is_empty(), "a preflight is not the app's");
    let foreign = ask(&plane, "OPTIONS /", &fields.replace("page.test", "evil.test")).await;
    assert_eq!((status(&foreign), field(&foreign, "access-control-allow-origin")), (204, None), "{foreign}");

    let got = ask(&plane, "GET /", "Origin: https://page.test\r\n").await;
    assert_eq!(field(&got, "access-control-allow-origin"), Some("https://page.test"), "{got}");
    assert_eq!(
        got.to_lowercase().matches("access-control-allow-origin").count(),
        1,
        "the app's own is replaced"
    );
    assert_eq!(
        (field(&got, "access-control-expose-headers"), field(&got, "vary")),
        (Some("X-Count"), Some("origin"))
    );
    let other = ask(&plane, "GET /", "Origin: https://evil.test\r\n").await;
    assert_eq!((field(&other, "access-control-allow-origin"), field(&other, "vary")), (None, Some("origin")));
    let refused = ask(&plane, "PUT /", "Origin: https://page.test\r\nContent-Length: 0\r\n").await;
    assert_eq!(status(&refused), 403);
    assert_eq!(field(&refused, "access-control-allow-origin"), Some("https://page.test"), "{refused}");
    plane.shutdown().await;
}

#[tokio::test]
async fn headers_are_removed_set_and_added_both_ways() {
    let policies = "
- headers:
    request: { remove: [X-Gone], set: { X-Set: new, Host: inside.test }, add: { X-Added: two } }
    response: { remove: [Server], set: { X-Frame-Options: DENY }, add: { Set-Cookie: b=2 } }";
    let (plane, upstream) = served(policies).await;
    upstream.answer("HTTP/1.1 200 OK\r\nServer: app/1.2\r\nSet-Cookie: a=1\r\nX-Frame-Options: ALLOW\r\nContent-Length: 0\r\n\r\n");
    let answer = ask(&plane, "GET /", "X-Gone: 1\r\nX-Set: old\r\nX-Added: one\r\n").await;
    let lower = answer.to_lowercase();
    assert!(lower.contains("set-cookie: a=1\r\n") && lower.contains("set-cookie: b=2\r\n"), "{answer}");
    assert_eq!((field(&answer, "server"), field(&answer, "x-frame-options")), (None, Some("DENY")));
    let head = upstream.heads().pop().unwrap();
    assert_eq!(
        (field(&head, "x-gone"), field(&head, "x-set"), field(&head, "host")),
        (None, Some("new"), Some("inside.test"))
    );
    assert!(head.contains("x-added: one\r\n") && head.contains("x-added: two\r\n"), "{head}");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_body_over_the_routes_limit_is_refused_before_the_app_is_asked_or_cut_as_it_passes() {
    let (plane, upstream) = served("- { paths: [/up], body: { max_bytes: 5 } }").await;
    let refused = ask(&plane, "POST /up", "Content-Length: 6\r\n\r\nabcdef").await;
    assert_eq!((status(&refused), field(&refused, "lockgate-reason")), (413, Some("body_too_large")));
    assert!(upstream.heads().is_empty());
    let chunked = "Transfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n";
    assert_eq!(status(&ask(&plane, "POST /up", chunked).await), 413);
    assert_eq!(status(&ask(&plane, "POST /", "Content-Length: 6\r\n\r\nabcdef").await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn of_several_limits_of_bodies_the_least_counts_also_behind_one_that_reads_ahead() {
    let policies = "- body: { buffer_bytes: 8 }\n- body: { max_bytes: 5 }\n- body: { max_bytes: 7 }";
    let (plane, upstream) = served(policies).await;
    for (chunk, expected) in [("6\r\nabcdef", 413), ("5\r\nabcde", 200)] {
        let body = format!("Transfer-Encoding: chunked\r\n\r\n{chunk}\r\n0\r\n\r\n");
        assert_eq!(status(&ask(&plane, "POST /", &body).await), expected, "{chunk}");
    }
    // Bodies look like heads to this app.
    let asked = upstream.heads().iter().filter(|head| head.starts_with("POST ")).count();
    assert_eq!(asked, 1, "what was refused was read ahead");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_limit_of_a_version_that_did_not_serve_after_all_is_none() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    let hold = Arc::new(Hold::new(rules(), None));
    let old = under("- body: { max_bytes: 9 }", &upstream.backend).held(Arc::clone(&hold));
    plane.routing.publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(old)));
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    plane.settle(|| hold.waiting() == 1).await;
    publish(&plane, "app.test", &upstream, "- body: { max_bytes: 20 }");
    hold.release();
    client.send("c\r\nabcdefghijkl\r\n0\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_buffered_body_keeps_the_app_free_until_it_is_there_and_arrives_whole() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    publish(&plane, "app.test", &upstream, "- body: { buffer_bytes: 8 }");
    let mut client = plane.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nabc").await;
    let early = tokio::time::timeout(Duration::from_millis(200), upstream.accept()).await;
    assert!(early.is_err(), "the app was asked before the body was there");
    client.send("def").await;
    let mut app = upstream.accept().await;
    assert_eq!(field(&app.head().await, "content-length"), Some("6"));
    assert_eq!(app.bytes(6).await, b"abcdef");
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);

    // One that is longer goes on as it comes.
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nfghij\r\n").await;
    let head = app.head().await;
    assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
    let mut body = app.until("fghij\r\n").await;
    client.send("2\r\nkl\r\n0\r\n\r\n").await;
    body += &app.until("0\r\n\r\n").await;
    let data: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(data, "abcdefghijkl", "{body}");
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);

    // Who goes before it is whole has asked for nothing.
    let mut gone = plane.connect().await;
    gone.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nabc").await;
    gone.reset();
    client.send(GET.replace("a.test", "app.test")).await;
    assert!(app.head().await.starts_with("GET / "));
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_compressed_response_is_the_same_once_it_is_read() {
    let plane = Plane::start();
    let page = "All the same, all the same. ".repeat(20_000);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"x\"\r\nAccept-Ranges: bytes\r\n";
    let whole = format!("{head}Content-Length: {}\r\n\r\n{page}", page.len());
    let upstream = Upstream::answering(Box::leak(whole.into_boxed_str())).await;
    publish(&plane, "app.test", &upstream, "- compress: {}");
    for (accept, coding) in [("gzip, br", Some("gzip")), ("gzip, zstd", Some("zstd")), ("br", None)] {
        let mut client = plane.connect().await;
        client.send(format!("GET / HTTP/1.0\r\nHost: app.test\r\nAccept-Encoding: {accept}\r\n\r\n")).await;
        let head = client.head().await;
        assert_eq!(
            (field(&head, "content-encoding"), field(&head, "vary")),
            (coding, Some("accept-encoding")),
            "{head}"
        );
        let length = field(&head, "content-length").map(|length| length.parse::<usize>().unwrap());
        let tag = if coding.is_some() { "W/\"x\"" } else { "\"x\"" };
        assert_eq!((length, field(&head, "etag")), (coding.is_none().then_some(page.len()), Some(tag)));
        assert_eq!(field(&head, "accept-ranges").is_none(), coding.is_some());
        let body = everything(&mut client).await;
        assert!(coding.is_none() || body.len() < page.len() / 50, "{} bytes", body.len());
        assert!(decoded(coding, &body) == page.as_bytes(), "{coding:?}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn what_has_come_is_not_kept_back_for_what_has_not_and_a_cut_is_seen_as_one() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    publish(&plane, "app.test", &upstream, "- compress: { min_bytes: 0 }");
    for coding in ["gzip", "zstd"] {
        let mut client = plane.connect().await;
        client.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\nAccept-Encoding: {coding}\r\n\r\n")).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        )
        .await;
        assert_eq!(field(&client.head().await, "content-encoding"), Some(coding));
        let mut stream = Vec::new();
        while !String::from_utf8_lossy(&beginning(coding, &stream)).contains("first") {
            stream.extend(chunk(&mut client).await.expect("it ended before what had come"));
        }
        app.reset();
        while let Some(more) = chunk(&mut client).await {
            assert!(!more.is_empty(), "an end in order hides the cut");
        }
    }
    plane.shutdown().await;
}

/// The next chunk of a body, empty at its end; `None` if the connection ended without one.
async fn chunk(client: &mut Wire) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.extend(client.try_bytes(1).await?);
    }
    let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
    let mut data = client.try_bytes(length + 2).await?;
    data.truncate(length);
    Some(data)
}

async fn everything(client: &mut Wire) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(byte) = client.try_bytes(1).await {
        all.extend(byte);
    }
    all
}

pub(crate) fn decoded(coding: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match coding {
        Some("gzip") => drop(flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap()),
        Some(_) => drop(zstd::Decoder::new(body).unwrap().read_to_end(&mut plain).unwrap()),
        None => plain = body.to_vec(),
    }
    plain
}

/// What can be read of a stream that has not ended.
pub(crate) fn beginning(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut plain = [0; 64];
    let read = match coding {
        "gzip" => flate2::read::GzDecoder::new(body).read(&mut plain),
        _ => zstd::Decoder::new(body).and_then(|mut decoder| decoder.read(&mut plain)),
    };
    plain[..read.unwrap_or(0)].to_vec()
}

#[tokio::test]
async fn pages_of_the_route_are_shown_to_people_for_errors_of_lockgates_own() {
    let policies = "- error_pages: { '503': '<p>Back soon</p>', 4xx: '<p>No</p>' }\n- { paths: [/no], ip: { deny: [127.0.0.0/8] } }";
    let (plane, upstream) = served(policies).await;
    let html = "Accept: text/html\r\n";
    let refused = ask(&plane, "GET /no", html).await;
    assert_eq!((status(&refused), field(&refused, "content-length")), (403, Some("9")));
    assert!(refused.ends_with("\r\n\r\n<p>No</p>"), "{refused}");
    assert_eq!(field(&refused, "lockgate-reason"), Some("address_refused"));
    assert!(ask(&plane, "GET /no", "").await.contains("\"code\":\"address_refused\""), "programs get theirs");
    upstream.answer("HTTP/1.1 503 Mine\r\nContent-Length: 4\r\n\r\nmine");
    assert!(ask(&plane, "GET /", html).await.ends_with("mine"), "what the app says is its own");
    let empty = Backend::new(Box::default(), upstream.backend.stats.clone());
    plane.routing.publish(|edit| edit.route(&pattern("app.test"), "/", &Arc::new(under(policies, &empty))));
    let nobody = ask(&plane, "GET /", html).await;
    assert_eq!(status(&nobody), 503);
    assert!(nobody.ends_with("<p>Back soon</p>"), "{nobody}");
    plane.shutdown().await;
}

/// A service that says who may come, and its policy for the app.
async fn asked_first() -> (Plane, Upstream, Upstream) {
    let (plane, app, auth) = (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    ask_first(&plane, &app, &auth, "60s");
    (plane, app, auth)
}

/// `auth` says who may come, and is waited for so long.
fn ask_first(plane: &Plane, app: &Upstream, auth: &Upstream, timeout: &str) {
    let policy = format!(
        "- forward_auth: {{ url: 'http://{}/verify?for=app', headers: [Remote-User], timeout: {timeout} }}",
        auth.target.address
    );
    publish(plane, "app.test", app, &policy);
}

#[tokio::test]
async fn a_service_that_is_asked_first_lets_by_and_names_who_came() {
    let (plane, app, auth) = asked_first().await;
    auth.answer("HTTP/1.1 200 OK\r\nRemote-User: ann\r\nX-Other: 1\r\nContent-Length: 2\r\n\r\nok");
    for _ in 0..2 {
        let fields =
            "Remote-User: root\r\nCookie: s=1\r\nX-Forwarded-Uri: /fine\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(status(&ask(&plane, "PUT /x?y=1", fields).await), 200);
    }
    let head = &app.heads()[0];
    assert_eq!((field(head, "remote-user"), field(head, "x-other")), (Some("ann"), None), "{head}");
    let asked = auth.heads();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].starts_with("GET /verify?for=app HTTP/1.1\r\n"), "{asked:?}");
    for (name, value) in [
        ("x-forwarded-method", Some("PUT")),
        ("x-forwarded-uri", Some("/x?y=1")),
        ("x-forwarded-host", Some("app.test")),
        ("cookie", Some("s=1")),
        ("content-length", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(field(&asked[0], name), value, "{}", asked[0]);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn what_a_service_refuses_is_its_answer_and_what_it_does_not_answer_is_refused() {
    let (plane, app, auth) = asked_first().await;
    auth.answer("HTTP/1.1 302 Found\r\nLocation: https://login.test/\r\nSet-Cookie: n=1\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\nlogin");
    let answer = ask(&plane, "GET /", "").await;
    assert_eq!((status(&answer), field(&answer, "location")), (302, Some("https://login.test/")), "{answer}");
    assert_eq!(
        (field(&answer, "set-cookie"), field(&answer, "lockgate-reason")),
        (Some("n=1"), Some("forward_auth"))
    );
    assert_eq!(field(&answer, "x-hop"), None, "it is of one connection: {answer}");
    assert!(answer.ends_with("\r\n\r\nlogin"));
    auth.answer("HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n");
    let answer = ask(&plane, "GET /", "").await;
    assert_eq!((status(&answer), field(&answer, "content-length")), (403, Some("2")), "{answer}");
    // Some of these never end.
    ask_first(&plane, &app, &auth, "1s");
    for broken in [
        "HTTP/1.1 500 Internal\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        "nonsense\r\n\r\n",
        "",
    ] {
        auth.answer(broken);
        let answer = ask(&plane, "GET /", "").await;
        assert_eq!(
            (status(&answer), field(&answer, "lockgate-reason")),
            (503, Some("auth_unavailable")),
            "{broken:?}: {answer}"
        );
    }
    assert!(app.heads().is_empty(), "{:?}", app.heads());
    plane.shutdown().await;
}

#[tokio::test]
async fn a_route_has_time_outs_of_its_own_for_its_requests_alone() {
    let limits = |settings: &mut lockgate::proxy::ProxySettings| {
        settings.limits.response_head = Duration::from_millis(100);
    };
    let (plane, upstream) = (Plane::with(limits), Upstream::start().await);
    publish(&plane, "app.test", &upstream, "- { paths: [/slow], timeouts: { response_head: 1h } }");
    let mut client = plane.connect().await;
    client.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut app = upstream.accept().await;
    app.head().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    client.send("GET /other HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 504);

    publish(&plane, "app.test", &upstream, "- { timeouts: { response_head: 1h, response_idle: 50ms } }");
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut app = upstream.accept().await;
    while !app.head().await.starts_with("GET / ") {
        app = upstream.accept().await;
    }
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
    assert_eq!(status(&client.head().await), 200);
    assert_eq!(client.rest().await, "half", "what does not move is cut");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_lets_nobody_by() {
    let (plane, upstream) = served("- basic_auth: { users: [{ user: ann }] }").await;
    let answer = ask(&plane, "GET /", "Authorization: Basic YW5uOg==\r\n").await;
    assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (503, Some("policy_unreadable")));
    assert!(upstream.heads().is_empty());
    plane.shutdown().await;
}
