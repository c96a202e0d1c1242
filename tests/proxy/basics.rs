//! Requests that go through.

use crate::support::{Plane, Upstream, field, status};

#[tokio::test]
async fn a_request_goes_up_and_its_response_comes_down() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("POST /x//y/../%2F?q=1&q= HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello").await;
    let mut app = upstream.accept().await;
    let head = app.head().await;
    assert!(head.starts_with("POST /x//y/../%2F?q=1&q= HTTP/1.1\r\n"), "{head}");
    assert_eq!((field(&head, "host"), field(&head, "content-length")), (Some("a.test"), Some("5")));
    assert_eq!(app.bytes(5).await, b"hello");
    assert_eq!(upstream.target.gate.in_flight().requests, 1);
    app.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-App: yes\r\n\r\nok").await;
    let head = client.head().await;
    assert_eq!((status(&head), field(&head, "x-app")), (201, Some("yes")));
    assert_eq!(client.bytes(2).await, b"ok");
    assert_eq!(upstream.target.gate.in_flight().requests, 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn kept_connections_serve_one_request_after_another() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send("GET /0 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let mut app = upstream.accept().await;
    for n in 0..3 {
        assert!(app.head().await.starts_with(&format!("GET /{n} ")));
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 200);
        assert_eq!(client.until("0\r\n\r\n").await, "2\r\nok\r\n0\r\n\r\n");
        if n < 2 {
            client.send(format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", n + 1)).await;
        }
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a5_a_name_without_route_is_404_no_route_in_the_form_that_is_accepted() {
    let plane = Plane::start();
    for (accept, content_type, body) in [
        ("*/*", "application/problem+json", "\"code\":\"no_route\""),
        ("text/html", "text/html; charset=utf-8", "<!doctype html>"),
    ] {
        let answer = plane
            .exchange(format!(
                "GET / HTTP/1.1\r\nHost: a.test\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
            ))
            .await;
        assert_eq!((status(&answer), field(&answer, "content-type")), (404, Some(content_type)), "{answer}");
        assert_eq!(
            (field(&answer, "lockgate-reason"), field(&answer, "cache-control")),
            (Some("no_route"), Some("no-store"))
        );
        assert!(answer.contains(body) && answer.contains(field(&answer, "x-request-id").unwrap()));
    }
    plane.shutdown().await;
}
