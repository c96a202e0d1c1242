//! Requests that must not pass, and what is made of those that pass in an odd form.

use crate::support::{OK, Plane, Upstream, field, status};

/// `{name}: request → status`; `^` stands for a line end. Every one of them is refused, the connection is closed,
/// and nothing reaches the upstream.
const REFUSED: &[(&str, u16, &str)] = &[
    ("a1 no host", 400, "GET / HTTP/1.1^^"),
    ("a1 two hosts", 400, "GET / HTTP/1.1^Host: a.test^Host: a.test^^"),
    ("a1 two different hosts", 400, "GET / HTTP/1.1^Host: a.test^Host: b.test^^"),
    ("a1 empty host", 400, "GET / HTTP/1.1^Host: ^^"),
    ("a1 host list", 400, "GET / HTTP/1.1^Host: a.test, b.test^^"),
    ("a1 host with path", 400, "GET / HTTP/1.1^Host: a.test/x^^"),
    ("a1 host with userinfo", 400, "GET / HTTP/1.1^Host: me@a.test^^"),
    ("a1 host with space", 400, "GET / HTTP/1.1^Host: a. test^^"),
    ("a1 host percent-encoded", 400, "GET / HTTP/1.1^Host: %61.test^^"),
    ("a1 host port text", 400, "GET / HTTP/1.1^Host: a.test:http^^"),
    ("a1 host port too high", 400, "GET / HTTP/1.1^Host: a.test:65536^^"),
    ("a1 host two ports", 400, "GET / HTTP/1.1^Host: a.test:80:80^^"),
    ("a1 host not ascii", 400, "GET / HTTP/1.1^Host: ä.test^^"),
    ("a1 host empty label", 400, "GET / HTTP/1.1^Host: a..test^^"),
    ("a1 host open bracket", 400, "GET / HTTP/1.1^Host: [::1^^"),
    ("a1 no host in 1.0", 400, "GET / HTTP/1.0^^"),
    ("a2 absolute-form, no host", 400, "GET http://a.test/ HTTP/1.1^^"),
    ("a2 absolute-form with userinfo", 400, "GET http://me@a.test/ HTTP/1.1^Host: a.test^^"),
    ("a2 absolute-form of another scheme", 400, "GET ftp://a.test/ HTTP/1.1^Host: a.test^^"),
    ("a1 absolute-form, malformed host", 400, "GET http://a.test/ HTTP/1.1^Host: me@a.test^^"),
    ("a7 connect", 405, "CONNECT a.test:80 HTTP/1.1^Host: a.test:80^^"),
    ("a7 connect with a body", 405, "CONNECT a.test:80 HTTP/1.1^Host: a.test:80^Content-Length: 3^^abc"),
    ("a7 trace", 405, "TRACE / HTTP/1.1^Host: a.test^^"),
    ("a7 asterisk of a get", 400, "GET * HTTP/1.1^Host: a.test^^"),
    ("a9 authority-form", 400, "GET a.test HTTP/1.1^Host: a.test^^"),
    ("a9 no slash", 400, "GET admin HTTP/1.1^Host: a.test^^"),
    ("a9 space in target", 400, "GET /a b HTTP/1.1^Host: a.test^^"),
    ("a9 control character", 400, "GET /a\x01 HTTP/1.1^Host: a.test^^"),
    ("a9 nul", 400, "GET /a\x00 HTTP/1.1^Host: a.test^^"),
    ("a9 not ascii", 400, "GET /ä HTTP/1.1^Host: a.test^^"),
    ("a9 fragment", 400, "GET /a#b HTTP/1.1^Host: a.test^^"),
    ("a9 fragment behind an empty line", 400, "^GET /a?b#c HTTP/1.1^Host: a.test^^"),
    ("a9 fragment of an authority", 400, "GET http://a.test#@b.test/ HTTP/1.1^Host: a.test^^"),
    ("a9 fragment before a body", 400, "POST /a# HTTP/1.1^Host: a.test^Content-Length: 3000^^abc"),
    ("a9 backslash", 400, "GET /a\\b HTTP/1.1^Host: a.test^^"),
    (
        "b1 length, then chunks",
        400,
        "POST / HTTP/1.1^Host: a.test^Content-Length: 4^Transfer-Encoding: chunked^^0^^",
    ),
    (
        "b1 chunks, then length",
        400,
        "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^CONTENT-length:5^^0^^",
    ),
    (
        "b1 chunks between lengths",
        400,
        "POST / HTTP/1.1^Content-Length: 4^Host: a.test^Transfer-Encoding: chunked^Content-Length: 4^^0^^",
    ),
    (
        "b1 a length that is none",
        400,
        "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^Content-Length: x^^0^^",
    ),
    (
        "b1 line feeds alone",
        400,
        "POST / HTTP/1.1\nHost: a.test\nTransfer-Encoding: chunked\nContent-Length: 3\n\n0^^",
    ),
    (
        "b1 behind empty lines",
        400,
        "^^POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^Content-Length: 3^^0^^",
    ),
    ("b2 unequal lengths", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: 3^Content-Length: 4^^abcd"),
    ("b2 length list", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: 3, 3^^abc"),
    ("b2 plus", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: +3^^abc"),
    ("b2 minus", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: -3^^abc"),
    ("b2 hex", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: 0x3^^abc"),
    ("b2 underscore", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: 0_3^^abc"),
    ("b2 empty", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: ^^abc"),
    ("b2 overflow", 400, "POST / HTTP/1.1^Host: a.test^Content-Length: 18446744073709551616^^abc"),
    ("b3 identity", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: identity^^abc"),
    ("b3 gzip", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: gzip^^abc"),
    ("b3 gzip, chunked", 501, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: gzip, chunked^^0^^"),
    ("b3 chunked twice", 501, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked, chunked^^0^^"),
    ("b3 leading comma", 501, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: ,chunked^^0^^"),
    (
        "b3 two lines",
        400,
        "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^Transfer-Encoding: chunked^^0^^",
    ),
    ("b3 chunked, identity", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked, identity^^0^^"),
    ("b3 xchunked", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: xchunked^^0^^"),
    ("b3 quoted", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: \"chunked\"^^0^^"),
    ("b3 vertical tab", 400, "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: \x0bchunked^^0^^"),
    ("b3 in 1.0", 400, "POST / HTTP/1.0^Host: a.test^Transfer-Encoding: chunked^^0^^"),
    ("b4 obs-fold", 400, "GET / HTTP/1.1^Host: a.test^X: a^ b^^"),
    ("b4 space before colon", 400, "GET / HTTP/1.1^Host: a.test^X : a^^"),
    ("b4 space before colon of host", 400, "GET / HTTP/1.1^Host : a.test^^"),
    ("b4 bare cr", 400, "GET / HTTP/1.1^Host: a.test^X: a\rb^^"),
    ("b4 nul", 400, "GET / HTTP/1.1^Host: a.test^X: a\x00b^^"),
    ("b4 empty name", 400, "GET / HTTP/1.1^Host: a.test^: a^^"),
    ("b4 no colon", 400, "GET / HTTP/1.1^Host: a.test^X^^"),
    ("b4 name with space", 400, "GET / HTTP/1.1^Host: a.test^X Y: a^^"),
    ("b4 space before first field", 400, "GET / HTTP/1.1^ Host: a.test^^"),
    ("b4 version", 400, "GET / HTTP/2.0^Host: a.test^^"),
    ("b4 no version", 400, "GET /^Host: a.test^^"),
    ("b4 lower-case version", 400, "GET / http/1.1^Host: a.test^^"),
    ("b4 tls", 400, "\x16\x03\x01\x02\x00\x01\x00\x01\x7c^^"),
    ("c1 lists host", 400, "GET / HTTP/1.1^Host: a.test^Connection: Host^^"),
    (
        "c1 lists length",
        400,
        "POST / HTTP/1.1^Host: a.test^Connection: close, Content-Length^Content-Length: 3^^abc",
    ),
    (
        "c1 lists forwarded",
        400,
        "GET / HTTP/1.1^Host: a.test^Connection: x-FORWARDED-for^X-Forwarded-For: 1.1.1.1^^",
    ),
    ("c1 lists cookie", 400, "GET / HTTP/1.1^Host: a.test^Connection: cookie^Cookie: a=b^^"),
    ("c1 lists authorization", 400, "GET / HTTP/1.1^Host: a.test^Connection: authorization^^"),
    ("c1 lists no name", 400, "GET / HTTP/1.1^Host: a.test^Connection: a b^^"),
    ("c5 odd expectation", 417, "POST / HTTP/1.1^Host: a.test^Expect: 200-ok^Content-Length: 3^^abc"),
    (
        "c5 prefixed expectation",
        417,
        "POST / HTTP/1.1^Host: a.test^Expect: y 100-continue^Content-Length: 3^^abc",
    ),
    (
        "c5 two expectations",
        417,
        "POST / HTTP/1.1^Host: a.test^Expect: 100-continue^Expect: 100-continue^Content-Length: 3^^abc",
    ),
    (
        "f1 upgrade with a length",
        400,
        "GET / HTTP/1.1^Host: a.test^Connection: upgrade^Upgrade: websocket^Content-Length: 3^^abc",
    ),
    (
        "f1 upgrade with chunks",
        400,
        "GET / HTTP/1.1^Host: a.test^Connection: upgrade^Upgrade: websocket^Transfer-Encoding: chunked^^0^^",
    ),
    (
        "f1 upgrade of a post",
        400,
        "POST / HTTP/1.1^Host: a.test^Connection: upgrade^Upgrade: websocket^Content-Length: 0^^",
    ),
    (
        "f1 two upgrades",
        400,
        "GET / HTTP/1.1^Host: a.test^Connection: upgrade^Upgrade: websocket^Upgrade: other^^",
    ),
];

#[tokio::test]
async fn what_must_be_refused_is_refused_and_the_connection_closed() {
    let (plane, upstream) =
        (Plane::start(), Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await);
    plane.route("*", &upstream);
    let mut wrong = Vec::new();
    for (name, expected, request) in REFUSED {
        // A second request on the same connection must never be answered.
        let answer =
            plane.exchange(format!("{}GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n", lines(request))).await;
        let answers = answer.matches("HTTP/1.").count();
        let told = ["lockgate-reason", "x-request-id", "date", "cache-control", "content-type"];
        let is_told = told.iter().all(|name| field(&answer, name).is_some());
        if answers != 1 || status(&answer) != *expected || !is_told {
            wrong.push(format!("{name}: {expected} expected, {answers} answers: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), REFUSED.len(), wrong.join("\n"));
    assert!(upstream.heads().is_empty(), "reached the upstream: {:?}", upstream.heads());
    plane.shutdown().await;
}

#[tokio::test]
async fn a9_b8_what_is_too_large_is_refused() {
    let (plane, upstream) =
        (Plane::start(), Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await);
    plane.route("*", &upstream);
    let fields = |count: usize, size: usize| -> String {
        (0..count).map(|n| format!("X-{n}: {}\r\n", "x".repeat(size))).collect()
    };
    for (expected, target, fields) in [
        (200, 8000, fields(1, 10)),
        (414, 8200, fields(1, 10)),
        (200, 1, fields(98, 10)),
        (431, 1, fields(100, 10)),
        (200, 1, fields(1, 16_000)),
        (431, 1, fields(1, 17_000)),
        (431, 1, fields(5, 15_000)),
    ] {
        let request = format!(
            "GET /{} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{fields}\r\n",
            "x".repeat(target)
        );
        let answer = plane.exchange(&request).await;
        assert_eq!(status(&answer), expected, "{}…", &request[..100.min(request.len())]);
        assert_eq!(field(&answer, "lockgate-reason").is_some(), expected != 200, "{answer}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_a_head_that_is_none_gets_the_same_answer_behind_other_requests() {
    let (plane, upstream) =
        (Plane::start(), Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await);
    plane.route("*", &upstream);
    let get = lines("GET / HTTP/1.1^Host: a.test^^");
    for (before, garbage, status_expected, reason) in [
        (0, "nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        (1, "nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        (2, format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000)), 431, "headers_too_large"),
        (1, format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(66_000)), 431, "headers_too_large"),
        (2, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 400, "bad_request"),
    ] {
        for pipelined in [true, false] {
            let mut client = plane.connect().await;
            if pipelined {
                client.send([get.repeat(before), garbage.clone()].concat()).await;
            }
            for _ in 0..before {
                if !pipelined {
                    client.send(&get).await;
                }
                assert_eq!(status(&client.head().await), 200);
                assert_eq!(client.bytes(2).await, b"ok");
            }
            if !pipelined {
                client.send(&garbage).await;
            }
            let answer = client.rest().await;
            let told = (status(&answer), field(&answer, "lockgate-reason"));
            assert_eq!(told, (status_expected, Some(reason)), "{answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let length = body.len().to_string();
            assert_eq!(field(head, "content-length"), Some(&*length), "{answer}");
            assert!(body.contains(field(head, "x-request-id").unwrap()), "{answer}");
        }
    }
    let metrics = plane.metrics();
    assert!(metrics.contains("lockgate_errors_total{reason=\"bad_request\"} 6\n"), "{metrics}");
    assert!(metrics.contains("method=\"_OTHER\",code=\"431\",protocol=\"1.1\"} 4\n"), "{metrics}");
    plane.shutdown().await;
}

/// `{name}: request → head upstream`, without what is added to every request.
const REWRITTEN: &[(&str, &str, &str)] = &[
    (
        "a2 the target's authority wins",
        "GET http://b.test/x?y HTTP/1.1^Host: a.test^^",
        "GET /x?y HTTP/1.1^host: b.test^^",
    ),
    ("a2 no path", "GET http://b.test HTTP/1.1^Host: a.test^^", "GET / HTTP/1.1^host: b.test^^"),
    (
        "a2 no path but a query",
        "GET http://b.test?x HTTP/1.1^Host: a.test^^",
        "GET /?x HTTP/1.1^host: b.test^^",
    ),
    (
        "a4 the host as the client wrote it",
        "GET / HTTP/1.1^Host: A.TEST.:80^^",
        "GET / HTTP/1.1^host: A.TEST.:80^^",
    ),
    (
        "a8 the path byte for byte",
        "GET //a/../%2e%2F//b;c?x=%20&&y?z HTTP/1.1^Host: a.test^^",
        "GET //a/../%2e%2F//b;c?x=%20&&y?z HTTP/1.1^host: a.test^^",
    ),
    ("a8 an empty query", "GET /a? HTTP/1.1^Host: a.test^^", "GET /a? HTTP/1.1^host: a.test^^"),
    (
        "b2 equal lengths",
        "POST / HTTP/1.1^Host: a.test^Content-Length: 3^Content-Length: 3^^abc",
        "POST / HTTP/1.1^host: a.test^content-length: 3^^abc",
    ),
    (
        "b2 leading zeros",
        "POST / HTTP/1.1^Host: a.test^Content-Length: 003^^abc",
        "POST / HTTP/1.1^host: a.test^content-length: 3^^abc",
    ),
    (
        "b2 a post without a body",
        "POST / HTTP/1.1^Host: a.test^Content-Length: 0^^",
        "POST / HTTP/1.1^host: a.test^content-length: 0^^",
    ),
    (
        "b5 chunk extensions",
        "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: Chunked^^3;x=y^abc^0^^",
        "POST / HTTP/1.1^host: a.test^transfer-encoding: chunked^^3^abc^0^^",
    ),
    (
        "k1 a get with a chunked body",
        "GET / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^3^abc^0^^",
        "GET / HTTP/1.1^host: a.test^transfer-encoding: chunked^^3^abc^0^^",
    ),
    (
        "k1 a get with a length",
        "GET / HTTP/1.1^Host: a.test^Content-Length: 3^^abc",
        "GET / HTTP/1.1^host: a.test^content-length: 3^^abc",
    ),
    ("b4 line feeds alone", "GET / HTTP/1.1\nHost: a.test\nX: y\n\n", "GET / HTTP/1.1^host: a.test^x: y^^"),
    ("1.0", "GET / HTTP/1.0^Host: a.test^^", "GET / HTTP/1.1^host: a.test^^"),
    (
        "c1 what one hop is told",
        "GET / HTTP/1.1^Host: a.test^Connection: keep-alive, X-Hop^X-Hop: 1^Keep-Alive: timeout=5^Proxy-Connection: keep-alive^TE: gzip^Proxy-Authorization: x^X-End: 1^^",
        "GET / HTTP/1.1^host: a.test^x-end: 1^^",
    ),
    (
        "c6 trailers are taken",
        "GET / HTTP/1.1^Host: a.test^TE: trailers, deflate^Connection: TE^^",
        "GET / HTTP/1.1^host: a.test^te: trailers^connection: te^^",
    ),
    (
        "c6 trailers are sent",
        "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^Trailer: X-Sum^^3^abc^0^X-Sum: 1^^",
        "POST / HTTP/1.1^host: a.test^transfer-encoding: chunked^trailer: X-Sum^^3^abc^0^x-sum: 1^^",
    ),
    (
        "f1 h2c is not offered",
        "GET / HTTP/1.1^Host: a.test^Connection: Upgrade, HTTP2-Settings^Upgrade: h2c^HTTP2-Settings: x^^",
        "GET / HTTP/1.1^host: a.test^^",
    ),
    (
        "f1 nor one of its drafts",
        "GET / HTTP/1.1^Host: a.test^Connection: Upgrade^Upgrade: H2C-14^^",
        "GET / HTTP/1.1^host: a.test^^",
    ),
    (
        "f1 an upgrade that is not in Connection",
        "GET / HTTP/1.1^Host: a.test^Upgrade: websocket^^",
        "GET / HTTP/1.1^host: a.test^^",
    ),
    (
        "d4 our own names in every spelling",
        "GET / HTTP/1.1^Host: a.test^Lockgate-Ephemeral-Label: x^Lockgate_Generation: 1^X_Forwarded_For: 1.1.1.1^X.Real.IP: 1^Content_Length: 5^X_Other: 1^^",
        "GET / HTTP/1.1^host: a.test^x_other: 1^^",
    ),
    (
        "d1 what strangers say of themselves",
        "GET / HTTP/1.1^Host: a.test^X-Forwarded-Prefix: /x^Forwarded: for=1.1.1.1^X-Real-IP: 1.1.1.1^^",
        "GET / HTTP/1.1^host: a.test^^",
    ),
];

#[tokio::test]
async fn what_goes_upstream_is_written_anew() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let added = [
        "x-forwarded-for: ",
        "x-forwarded-proto: ",
        "x-forwarded-host: ",
        "x-forwarded-port: ",
        "x-real-ip: ",
        "x-request-id: ",
        "traceparent: ",
    ];
    for (name, request, expected) in REWRITTEN {
        let mut client = plane.connect().await;
        client.send(lines(request)).await;
        let mut app = upstream.accept().await;
        let head = app.head().await;
        let body = match expected.split_once("^^") {
            Some((_, "")) | None => String::new(),
            Some((_, body)) => String::from_utf8(app.bytes(lines(body).len()).await).unwrap(),
        };
        let mut seen: Vec<&str> =
            head.lines().filter(|line| !added.iter().any(|added| line.starts_with(added))).collect();
        let expected = lines(expected);
        let (expected_head, expected_body) = expected.split_once("\r\n\r\n").unwrap();
        let mut expected: Vec<&str> = expected_head.lines().chain([""]).collect();
        seen[1..].sort_unstable();
        expected[1..].sort_unstable();
        assert_eq!((seen, body.as_str()), (expected, expected_body), "{name}");
        app.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 204, "{name}");
    }
    plane.shutdown().await;
}

const BOTH: &str = "POST /both HTTP/1.1^Host: a.test^Content-Length: 4^Transfer-Encoding: chunked^^0^^";

#[tokio::test]
async fn b1_a_length_beside_chunks_is_refused_wherever_the_reads_cut_its_head_and_whatever_came_before() {
    let (plane, upstream) =
        (Plane::start(), Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await);
    plane.route("*", &upstream);
    let get = "GET / HTTP/1.1^Host: a.test^^";
    let post = "POST / HTTP/1.1^Host: a.test^Content-Length: 11^^a^^b^^c";
    for before in ["", get, &get.repeat(2), post, &[get, post].concat()] {
        let both = lines(&[before, BOTH].concat());
        for cut in [both.len(), both.len() - 8, both.len() - 30, both.len() - 60, both.len() - 85] {
            let mut client = plane.connect().await;
            let count = before.matches(" HTTP/1.1").count();
            client.send(&both[..cut]).await;
            if cut < both.len() {
                // The requests before are answered; so what there is of this one has been read.
                for _ in 0..count {
                    assert_eq!(status(&client.head().await), 200);
                }
                client.send(&both[cut..]).await;
            }
            let rest = client.rest().await;
            let refusal = rest.rfind("HTTP/1.1 ").map(|at| status(&rest[at..]));
            assert_eq!(refusal, Some(400), "cut at {cut} of {}: {rest}", both.len());
        }
    }
    let heads = upstream.heads();
    assert!(!heads.iter().any(|head| head.contains("/both")), "reached the upstream: {heads:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn b1_a_length_that_stands_in_another_request_is_nobodys_fault() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let chunked = "POST /chunked HTTP/1.1^Host: a.test^X-Content-Length: 1^Transfer-Encoding: chunked^^0^^";
    let sized = "POST /sized HTTP/1.1^Host: a.test^Content-Length: 35^^Content-Length: 1^Host: a.test^^";
    let mut client = plane.connect().await;
    client.send(lines(&[sized, chunked, sized].concat())).await;
    let mut app = upstream.accept().await;
    for (path, length) in [("/sized", 35), ("/chunked", 5), ("/sized", 35)] {
        let head = app.head().await;
        assert!(head.starts_with(&format!("POST {path} ")), "{head}");
        app.bytes(length).await;
        app.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 204);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a9_a_fragment_is_refused_behind_other_requests_and_never_leaves_an_empty_target() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("*", &upstream);
    let fragment = "GET http://a.test#x HTTP/1.1^Host: a.test^^";
    let post = "POST /1 HTTP/1.1^Host: a.test^Content-Length: 2^^#^";
    for before in ["GET /1 HTTP/1.1^Host: a.test^X: #^^", post] {
        let answers = plane.exchange(lines(&[before, before, fragment].concat())).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
        assert_eq!(answers.rfind("HTTP/1.1 ").map(|at| status(&answers[at..])), Some(400), "{answers}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a9_a_fragment_that_cannot_be_seen_leaves_no_empty_target() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let mut client = plane.connect().await;
    let chunked = "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^0^^";
    client.send(lines(&[chunked, "GET http://a.test#x HTTP/1.1^Host: a.test^^"].concat())).await;
    let mut app = upstream.accept().await;
    app.head().await;
    assert_eq!(app.bytes(5).await, b"0\r\n\r\n");
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    let head = app.head().await;
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    plane.shutdown().await;
}

/// Fixed fault: the rest of a field was taken for a field, and the rest of a value for a target.
#[tokio::test]
async fn b1_a_field_that_is_cut_behind_chunks_is_not_taken_for_another() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let chunked = "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^0^^";
    let other = "POST /2 HTTP/1.1^X-Content-Length: 1#^Host: a.test^Transfer-Encoding: chunked^^0^^";
    for cut_behind in ["X-", "Length: 1"] {
        let mut client = plane.connect().await;
        let all = lines(&[chunked, other].concat());
        let cut = all.find(cut_behind).unwrap() + cut_behind.len();
        client.send(&all[..cut]).await;
        let mut app = upstream.accept().await;
        for path in ["/", "/2"] {
            let head = app.head().await;
            assert!(head.starts_with(&format!("POST {path} ")), "{head}");
            assert_eq!(app.bytes(5).await, b"0\r\n\r\n");
            app.send(OK).await;
            assert_eq!(status(&client.head().await), 200, "cut behind {cut_behind}");
            if path == "/" {
                client.send(&all[cut..]).await;
            }
        }
    }
    plane.shutdown().await;
}

/// A whole field behind the cut counts as ever.
#[tokio::test]
async fn b1_a_length_behind_a_cut_is_refused() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let chunked = "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^0^^";
    let mut client = plane.connect().await;
    client.send(lines(&[chunked, "POST /2 HTTP/1.1^Ho"].concat())).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.bytes(5).await;
    app.send(OK).await;
    assert_eq!(status(&client.head().await), 200);
    client.send(lines("st: a.test^Content-Length: 4^Transfer-Encoding: chunked^^0^^")).await;
    assert_eq!(status(&client.head().await), 400);
    plane.shutdown().await;
}

/// Where chunks end is not followed a second time; so a head behind them, in the same read, is not seen as it came.
#[tokio::test]
async fn b1_where_it_cannot_be_seen_the_length_is_dropped_and_the_connection_closed_after_the_answer() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    let mut client = plane.connect().await;
    let chunked = "POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^0^^";
    client.send(lines(&[chunked, BOTH, "GET /smuggled HTTP/1.1^Host: a.test^^"].concat())).await;
    let mut app = upstream.accept().await;
    for path in ["/", "/both"] {
        let head = app.head().await;
        assert!(head.starts_with(&format!("POST {path} ")), "{head}");
        let framing = (field(&head, "content-length"), field(&head, "transfer-encoding"));
        assert_eq!(framing, (None, Some("chunked")));
        assert_eq!(app.bytes(5).await, b"0\r\n\r\n");
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 200);
    }
    client.closed().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn k6_b5_chunks_that_are_malformed_are_the_clients_fault_and_abort_the_upstream() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("*", &upstream);
    for body in [
        "0x3^abc^0^^",
        "+3^abc^0^^",
        "0_3^abc^0^^",
        "^abc^0^^",
        "3^abcd^0^^",
        "g^abc^0^^",
        "fffffffffffffffff^abc^0^^",
        "3;\n^abc^0^^",
        &format!("3;{}^abc^0^^", "x".repeat(17 * 1024)),
    ] {
        let mut client = plane.connect().await;
        client.send(lines(&format!("POST / HTTP/1.1^Host: a.test^Transfer-Encoding: chunked^^{body}"))).await;
        let answer = client.rest().await;
        assert_eq!(status(&answer), 400, "{body}");
        // The request may have been begun, but never ends.
        let seen = upstream.accept().await.rest().await;
        assert!(!seen.ends_with("0\r\n\r\n"), "{body}: {seen}");
    }
    assert_eq!(upstream.target.gate.in_flight().requests, 0);
    plane.shutdown().await;
}

fn lines(text: &str) -> String {
    text.replace('^', "\r\n")
}
