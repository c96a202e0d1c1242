//! Who the client is, and what the upstream is told of it.

use std::sync::Arc;

use lockgate::proxy::ProxySettings;
use lockgate::routing::label::{Labelled, Labels};
use lockgate::routing::path::PathPrefix;
use lockgate::routing::table::PathRoute;

use crate::support::{OK, Plane, Upstream, field, pattern, status};

const LIES: &str = "X-Forwarded-For: 1.1.1.1, 10.0.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: lie.test\r\n\
    X-Forwarded-Port: 443\r\nX-Request-Id: abc-1\r\n";

#[tokio::test]
async fn d1_d3_what_an_untrusted_peer_says_of_itself_is_replaced() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let answer =
        plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{LIES}\r\n")).await;
    let head = &upstream.heads()[0];
    let port = plane.address.port().to_string();
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.test"),
        ("x-forwarded-port", &port),
    ] {
        assert_eq!(field(head, name), Some(value), "{name}");
        assert_eq!(head.matches(&format!("{name}: ")).count(), 1, "{name}");
    }
    let id = field(head, "x-request-id").unwrap();
    assert_eq!((id.len(), field(&answer, "x-request-id")), (36, Some(id)));
    plane.shutdown().await;
}

#[tokio::test]
async fn d1_the_client_is_told_by_forwarded_where_that_is_on() {
    const SENT: &str = "Forwarded: for=1.1.1.1;proto=https\r\nForwarded: for=\"[2001:db8::1]\"\r\n";
    for (is_on, is_trusted, expected) in [
        (true, false, Some("for=127.0.0.1;host=\"a.test:81\";proto=http")),
        (
            true,
            true,
            Some(
                "for=1.1.1.1;proto=https, for=\"[2001:db8::1]\", for=127.0.0.1;host=\"a.test:81\";proto=http",
            ),
        ),
        (false, false, None),
    ] {
        let plane = Plane::with(|settings| {
            settings.forwarded = is_on;
            settings.trusted_proxies =
                if is_trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
        });
        let upstream = Upstream::answering(OK).await;
        plane.route("a.test", &upstream);
        plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test:81\r\nConnection: close\r\n{SENT}\r\n")).await;
        let head = &upstream.heads()[0];
        assert_eq!(field(head, "forwarded"), expected, "{head}");
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn d1_d3_what_a_trusted_proxy_says_is_kept_and_appended_to() {
    let trust = |settings: &mut ProxySettings| {
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    };
    let (plane, upstream) = (Plane::with(trust), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let answer =
        plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{LIES}\r\n")).await;
    let head = &upstream.heads()[0];
    for (name, value) in [
        ("x-forwarded-for", "1.1.1.1, 10.0.0.9, 127.0.0.1"),
        ("x-real-ip", "1.1.1.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "lie.test"),
        ("x-forwarded-port", "443"),
        ("x-request-id", "abc-1"),
    ] {
        assert_eq!(field(head, name), Some(value), "{name}");
    }
    assert_eq!(field(&answer, "x-request-id"), Some("abc-1"));
    // What it passes on of its client's is not what it says.
    let passed_on = "X-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Proto: http\r\n";
    plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{passed_on}\r\n")).await;
    let head = &upstream.heads()[1];
    for (name, value) in [("x-real-ip", "203.0.113.9"), ("x-forwarded-proto", "http")] {
        assert_eq!(field(head, name), Some(value), "{name}");
        assert_eq!(head.matches(&format!("{name}: ")).count(), 1, "{name}");
    }
    let odd = plane
        .exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Request-Id: a b\r\n\r\n")
        .await;
    assert_eq!(field(&odd, "x-request-id").unwrap().len(), 36);
    plane.shutdown().await;
}

#[tokio::test]
async fn c2_via_is_appended_both_ways_and_a_loop_ends() {
    let named = |settings: &mut ProxySettings| settings.via = Some("gate".to_owned());
    let (plane, upstream) = (
        Plane::with(named),
        Upstream::answering("HTTP/1.1 200 OK\r\nVia: 1.1 app\r\nContent-Length: 0\r\n\r\n").await,
    );
    plane.route("a.test", &upstream);
    let answer = plane.exchange("GET / HTTP/1.0\r\nHost: a.test\r\nVia: 1.1 edge\r\n\r\n").await;
    assert!(answer.contains("via: 1.1 app\r\nvia: 1.1 gate\r\n"), "{answer}");
    assert!(upstream.heads()[0].contains("via: 1.1 edge\r\nvia: 1.0 gate\r\n"), "{:?}", upstream.heads());
    let circled = "1.1 gate, ".repeat(5);
    let answer =
        plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test\r\nVia: {circled}1.1 x\r\n\r\n")).await;
    assert_eq!(status(&answer), 508);
    plane.shutdown().await;
}

#[tokio::test]
async fn c3_max_forwards_counts_down_for_options() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    for (request, expected) in [
        ("OPTIONS / HTTP/1.1\r\nMax-Forwards: 2\r\n", Some("1")),
        ("GET / HTTP/1.1\r\nMax-Forwards: 2\r\n", Some("2")),
        ("OPTIONS / HTTP/1.1\r\nMax-Forwards: 0\r\n", None),
        ("OPTIONS * HTTP/1.1\r\n", None),
    ] {
        let before = upstream.heads().len();
        let answer = plane.exchange(format!("{request}Host: a.test\r\nConnection: close\r\n\r\n")).await;
        let seen = upstream.heads().get(before).cloned();
        assert_eq!(seen.as_deref().and_then(|head| field(head, "max-forwards")), expected, "{request}");
        assert_eq!(status(&answer), if expected.is_some() { 200 } else { 204 }, "{request}");
        let own = expected.is_none().then_some("server_options");
        assert_eq!(field(&answer, "lockgate-reason"), own, "{request}");
        assert_eq!(field(&answer, "cache-control"), own.map(|_| "no-store"), "{request}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn d4_an_ephemeral_label_is_told_upstream_and_ends_on_its_own() {
    let (plane, live, preview) =
        (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    let now = lockgate::clock::Clock::now(&lockgate::clock::SystemClock);
    let mut labels = Labels::default();
    let later = now + std::time::Duration::from_secs(600);
    labels.insert("feat", Labelled { backend: preview.backend.clone(), expires_at: later, auth: None });
    labels.insert("old", Labelled { backend: preview.backend.clone(), expires_at: now, auth: None });
    let route = PathRoute::new(PathPrefix::root(), live.backend.clone()).with_labels(Arc::new(labels));
    plane.routing.publish(|edit| edit.set(&pattern("app.test"), vec![route.clone()]));
    let ask = async |host: &str| {
        plane.exchange(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    };
    assert_eq!(status(&ask("Feat.app.test:80").await), 200);
    assert_eq!(field(&preview.heads()[0], "lockgate-ephemeral-label"), Some("feat"));
    assert_eq!(status(&ask("app.test").await), 200);
    assert_eq!(field(&live.heads()[0], "lockgate-ephemeral-label"), None);
    for (host, code) in
        [("old.app.test", "ephemeral_expired"), ("new.app.test", "ephemeral_unknown"), ("b.test", "no_route")]
    {
        let answer = ask(host).await;
        assert_eq!((status(&answer), field(&answer, "lockgate-reason")), (404, Some(code)), "{host}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a8_a_prefix_is_stripped_and_cannot_be_escaped() {
    let (plane, root, api) = (Plane::start(), Upstream::answering(OK).await, Upstream::answering(OK).await);
    let routes = vec![
        PathRoute::new(PathPrefix::root(), root.backend.clone()),
        PathRoute::new("/api".parse().unwrap(), api.backend.clone()).stripping(),
    ];
    plane.routing.publish(|edit| edit.set(&pattern("a.test"), routes));
    for (path, upstream, seen) in [
        ("/api/x?y=/api", &api, "/x?y=/api"),
        ("/api", &api, "/"),
        ("/api?x", &api, "/?x"),
        ("/api//x%2F..", &api, "//x%2F.."),
        ("/apix", &root, "/apix"),
        ("/api/../x", &root, "/api/../x"),
        ("/api/%2e%2e/x", &root, "/api/%2e%2e/x"),
        ("/api/..;/x", &root, "/api/..;/x"),
        ("/api/%2E.;a=b/x", &root, "/api/%2E.;a=b/x"),
        ("/api;v=1/x", &root, "/api;v=1/x"),
        ("/api/..%2Fx", &api, "/..%2Fx"),
        ("/api/%252e%252e/x", &api, "/%252e%252e/x"),
    ] {
        let answer =
            plane.exchange(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), 200);
        let head = upstream.heads().pop().unwrap();
        assert!(head.starts_with(&format!("GET {seen} HTTP/1.1\r\n")), "{path}: {head}");
    }
    plane.shutdown().await;
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What the upstream gets as `traceparent`, by its parts, and as `tracestate`.
async fn traced(sent: &str) -> ([String; 4], Option<String>) {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    plane.exchange(format!("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{sent}\r\n")).await;
    plane.shutdown().await;
    let head = &upstream.heads()[0];
    assert_eq!(head.matches("traceparent: ").count(), 1, "{head}");
    let parts: Vec<String> = field(head, "traceparent").unwrap().split('-').map(str::to_owned).collect();
    (parts.try_into().unwrap(), field(head, "tracestate").map(str::to_owned))
}

#[tokio::test]
async fn d3_a_valid_trace_is_continued_with_a_new_parent() {
    for (sent, flags) in [
        (format!("00-{TRACE}-{PARENT}-01"), "01"),
        (format!("00-{TRACE}-{PARENT}-00"), "00"),
        // What a flag means that is not ours we cannot promise.
        (format!("00-{TRACE}-{PARENT}-fe"), "00"),
        (format!("cc-{TRACE}-{PARENT}-03"), "01"),
        (format!("cc-{TRACE}-{PARENT}-01-more"), "01"),
    ] {
        let (parts, state) =
            traced(&format!("traceparent: {sent}\r\ntracestate: a=1,b=2\r\nTracestate: c=3\r\n")).await;
        let [version, trace, parent, passed] = parts;
        assert_eq!((&*version, &*trace, &*passed), ("00", TRACE, flags), "{sent}");
        assert!(parent.len() == 16 && parent != PARENT, "{sent}: {parent}");
        assert_eq!(state.as_deref(), Some("a=1,b=2"), "{sent}");
    }
}

#[tokio::test]
async fn d3_a_trace_is_started_where_there_is_none_or_no_valid_one() {
    let zeros = "0".repeat(32);
    for sent in [
        String::new(),
        "tracestate: a=1\r\n".to_owned(),
        "traceparent: \r\n".to_owned(),
        format!("traceparent: 00-{TRACE}-{PARENT}\r\n"),
        format!("traceparent: 00-{TRACE}-{PARENT}-1\r\n"),
        format!("traceparent: 00-{TRACE}-{PARENT}-01-more\r\n"),
        format!("traceparent: cc-{TRACE}-{PARENT}-01.more\r\n"),
        format!("traceparent: ff-{TRACE}-{PARENT}-01\r\n"),
        format!("traceparent: 0x-{TRACE}-{PARENT}-01\r\n"),
        format!("traceparent: 00-{}-{PARENT}-01\r\n", TRACE.to_uppercase()),
        format!("traceparent: 00-{zeros}-{PARENT}-01\r\n"),
        format!("traceparent: 00-{TRACE}-{}-01\r\n", &zeros[..16]),
        format!("traceparent: 00_{TRACE}-{PARENT}-01\r\n"),
        format!("traceparent: 00-{TRACE}-{PARENT}-0g\r\n"),
        format!("traceparent: 00-{TRACE}-{PARENT}-01\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n"),
    ] {
        let (parts, state) = traced(&format!("{sent}tracestate: a=1\r\n")).await;
        let [version, trace, parent, flags] = parts;
        assert_eq!((&*version, &*flags, state), ("00", "01", None), "{sent}");
        assert!(trace.len() == 32 && trace != TRACE && trace != zeros, "{sent}: {trace}");
        assert!(parent.len() == 16 && parent != PARENT && parent != zeros[..16], "{sent}: {parent}");
    }
}
