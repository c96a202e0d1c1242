//! The door of a preview: who is let in, what is answered to others, and what the app gets to see.

use std::sync::Arc;

use lockgate::routing::label::{Labelled, Labels};
use lockgate::routing::path::PathPrefix;
use lockgate::routing::preview_auth::{LinkKey, PreviewAuth};
use lockgate::routing::table::PathRoute;
use lockgate::routing::{Backend, Hold};

use crate::holds::rules;
use crate::support::{Plane, Upstream, field, pattern, status};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// In the year 2096.
pub(crate) const LATER: i64 = 4_000_000_000;

/// `app.test` is for everybody, its label `feat` opens as `auth` says.
pub(crate) fn publish(plane: &Plane, live: &Upstream, preview: &Upstream, auth: PreviewAuth) {
    publish_backend(plane, live, preview.backend.clone(), auth);
}

fn publish_backend(plane: &Plane, live: &Upstream, backend: Arc<Backend>, auth: PreviewAuth) {
    let now = lockgate::clock::Clock::now(&lockgate::clock::SystemClock);
    let expires_at = now + std::time::Duration::from_secs(600);
    let mut labels = Labels::default();
    labels.insert("feat", Labelled { backend, expires_at, auth: Some(Arc::new(auth)) });
    let route = PathRoute::new(PathPrefix::root(), live.backend.clone()).with_labels(Arc::new(labels));
    plane.routing.publish(|edit| edit.set(&pattern("app.test"), vec![route]));
}

pub(crate) fn key() -> LinkKey {
    match PreviewAuth::link(&[7; 32], "web", "feat") {
        PreviewAuth::Link(key) => key,
        PreviewAuth::Basic(_) => unreachable!(),
    }
}

async fn ask(plane: &Plane, line: &str, fields: &str) -> String {
    plane
        .exchange(format!("{line} HTTP/1.1\r\nHost: feat.app.test\r\nConnection: close\r\n{fields}\r\n"))
        .await
}

#[tokio::test]
async fn without_the_password_nothing_reaches_the_preview_and_with_it_all_but_the_password_does() {
    let (plane, live, preview) =
        (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    publish(&plane, &live, &preview, PreviewAuth::basic("ann", "s3cret:x"));
    // ann:s3cret:x, ann:wrong
    let (right, wrong) = ("YW5uOnMzY3JldDp4", "YW5uOndyb25n");
    for fields in [
        String::new(),
        format!("Authorization: Basic {wrong}\r\n"),
        format!("Authorization: Bearer {right}\r\n"),
        format!("Authorization: Basic {right}\r\nAuthorization: Basic {wrong}\r\n"),
        "Authorization: Basic \r\n".to_owned(),
        "Authorization: b\r\n".to_owned(),
    ] {
        let answer = ask(&plane, "GET /", &fields).await;
        assert_eq!(status(&answer), 401, "{fields}: {answer}");
        assert_eq!(field(&answer, "lockgate-reason"), Some("preview_password_required"));
        assert!(field(&answer, "www-authenticate").unwrap().starts_with("Basic realm="), "{answer}");
        assert_eq!(field(&answer, "x-robots-tag"), Some("noindex"));
    }
    assert!(preview.heads().is_empty(), "{:?}", preview.heads());
    let answer = ask(&plane, "GET /x?y", &format!("Authorization: bAsIc {right}\r\nCookie: a=1\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let head = &preview.heads()[0];
    assert!(head.starts_with("GET /x?y HTTP/1.1\r\n"), "{head}");
    assert_eq!((field(head, "authorization"), field(head, "cookie")), (None, Some("a=1")));

    // The app itself has a door of its own, if any.
    let whole = format!(
        "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nAuthorization: Basic {right}\r\n\r\n"
    );
    assert_eq!(status(&plane.exchange(whole).await), 200);
    assert_eq!(field(&live.heads()[0], "authorization"), Some(format!("Basic {right}").as_str()));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_signed_link_becomes_a_cookie_that_opens_the_rest_of_the_preview() {
    let (plane, live, preview) =
        (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    publish(&plane, &live, &preview, PreviewAuth::link(&[7; 32], "web", "feat"));
    let token = key().sign(LATER);
    let answer = ask(&plane, &format!("GET //evil.test/a?x=1&lockgate_link={token}&y"), "").await;
    assert_eq!(status(&answer), 303, "{answer}");
    assert_eq!(field(&answer, "location"), Some("/evil.test/a?x=1&y"));
    let cookie = field(&answer, "set-cookie").unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax") && !cookie.contains("Secure"));
    assert!(preview.heads().is_empty(), "the link itself went to the app");

    let pair = cookie.split(';').next().unwrap();
    let answer =
        ask(&plane, "GET /app.css", &format!("Cookie: a=1; {pair}; b=2\r\nAuthorization: Own x\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let head = preview.heads().pop().unwrap();
    assert_eq!((field(&head, "cookie"), field(&head, "authorization")), (Some("a=1; b=2"), Some("Own x")));
    let answer = ask(&plane, "POST /form", &format!("Cookie: {pair}\r\nContent-Length: 0\r\n")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(field(&preview.heads().pop().unwrap(), "cookie"), None);
    let answer = ask(
        &plane,
        &format!("POST /form?lockgate_link={token}"),
        &format!("Cookie: {pair}\r\nContent-Length: 0\r\n"),
    )
    .await;
    assert_eq!(status(&answer), 200, "{answer}");
    let head = preview.heads().pop().unwrap();
    assert!(head.starts_with("POST /form HTTP/1.1\r\n"), "the token went to the app: {head}");
    plane.shutdown().await;
}

#[tokio::test]
async fn a_link_that_is_over_forged_or_another_labels_opens_nothing() {
    let (plane, live, preview) =
        (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    publish(&plane, &live, &preview, PreviewAuth::link(&[7; 32], "web", "feat"));
    let PreviewAuth::Link(other) = PreviewAuth::link(&[7; 32], "web", "other") else { unreachable!() };
    let good = key().sign(LATER);
    for token in
        [key().sign(1), other.sign(LATER), good.replacen("4000000000", "4000000001", 1), String::new()]
    {
        for (line, fields) in [
            (format!("GET /?lockgate_link={token}"), String::new()),
            ("GET /".to_owned(), format!("Cookie: lockgate_preview={token}\r\n")),
        ] {
            let answer = ask(&plane, &line, &fields).await;
            assert_eq!(status(&answer), 403, "{line} {fields}");
            assert_eq!(field(&answer, "lockgate-reason"), Some("preview_link_required"));
            assert_eq!(field(&answer, "set-cookie"), None);
        }
    }
    // A link is for reading; what changes something needs the cookie.
    let answer = ask(&plane, &format!("POST /?lockgate_link={good}"), "Content-Length: 0\r\n").await;
    assert_eq!(status(&answer), 403, "{answer}");
    assert!(preview.heads().is_empty() && live.heads().is_empty());
    plane.shutdown().await;
}

#[tokio::test]
async fn a_route_into_previews_is_marked_and_has_a_door_of_its_own() {
    let (plane, preview) = (Plane::start(), Upstream::answering(OK).await);
    let route = |auth: Option<PreviewAuth>| {
        let route = PathRoute::new(PathPrefix::root(), preview.backend.clone());
        let route = route.into_preview(auth.map(Arc::new));
        plane.routing.publish(|edit| edit.set(&pattern("feat.app.test"), vec![route.clone()]));
    };
    route(Some(PreviewAuth::basic("ann", "s3cret:x")));
    assert_eq!(status(&ask(&plane, "GET /", "").await), 401);
    assert_eq!(preview.heads(), [""; 0], "it was asked");
    let answer = ask(&plane, "GET /", "Authorization: Basic YW5uOnMzY3JldDp4\r\n").await;
    assert_eq!((status(&answer), field(&answer, "x-robots-tag")), (200, Some("noindex")));
    route(None);
    let answer = ask(&plane, "GET /", "").await;
    assert_eq!((status(&answer), field(&answer, "x-robots-tag")), (200, Some("noindex")));
    plane.shutdown().await;
}

#[tokio::test]
async fn who_is_not_let_in_wakes_no_preview() {
    let (plane, live) = (Plane::start(), Upstream::answering(OK).await);
    let hold = Arc::new(Hold::new(rules(), Some(Arc::default())));
    let asleep = Backend::new(Box::default(), live.backend.stats.clone()).held(hold.clone());
    publish_backend(&plane, &live, Arc::new(asleep), PreviewAuth::basic("ann", "s3cret"));
    assert_eq!(status(&ask(&plane, "GET /", "").await), 401);
    assert_eq!((hold.take_wanted(), hold.waiting()), (false, 0));
    let mut guest = plane.connect().await;
    // ann:s3cret
    guest
        .send("GET / HTTP/1.1\r\nHost: feat.app.test\r\nAuthorization: Basic YW5uOnMzY3JldA==\r\n\r\n")
        .await;
    plane.settle(|| hold.waiting() == 1).await;
    assert!(hold.take_wanted());
    plane.shutdown().await;
}

#[tokio::test]
async fn what_the_door_answers_counts_for_its_preview_and_is_nothing_that_it_was_asked() {
    let (plane, preview) = (Plane::start(), Upstream::answering(OK).await);
    let route = PathRoute::new(PathPrefix::root(), preview.backend.clone());
    let route = route.into_preview(Some(Arc::new(PreviewAuth::link(&[7; 32], "web", "feat"))));
    plane.routing.publish(|edit| edit.set(&pattern("feat.app.test"), vec![route]));
    let token = key().sign(LATER);
    let cookie = format!("Cookie: lockgate_preview={token}\r\n");
    for (line, fields, expected) in [
        ("GET /".to_owned(), "", 403),
        (format!("GET /?lockgate_link={token}"), "", 303),
        ("GET /".to_owned(), cookie.as_str(), 200),
    ] {
        assert_eq!(status(&ask(&plane, &line, fields).await), expected);
    }
    plane.settle(|| preview.backend.stats.ended() == 1).await;
    let metrics = plane.metrics();
    for code in [403, 303, 200] {
        let series = format!(
            r#"lockgate_http_requests_total{{app="test",environment="",deployment="",method="GET",code="{code}",protocol="1.1"}} 1"#
        );
        assert!(metrics.lines().any(|line| line == series), "{series} in {metrics}");
    }
    assert!(!metrics.contains(r#"http_requests_total{app="_unmatched""#), "{metrics}");
    // So neither is kept awake by it nor judged for it.
    let tally = preview.backend.stats.tally();
    assert_eq!((tally.requests, tally.failed(), tally.answered_in.count()), (1, 0, 1));
    plane.shutdown().await;
}
