//! HTTP/1.1 as applications speak it: what comes in any pieces, and what is in doubt.

use crate::support::{GET, Plane, Upstream, status};

#[tokio::test]
async fn c6_trailers_of_a_request_go_up_announced_or_not() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    for announced in ["Trailer: X-Sum\r\n", ""] {
        let mut client = plane.connect().await;
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{announced}Transfer-Encoding: chunked\r\n\r\n"))
            .await;
        client.send("2;x=y\r\nab\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\nVia: 1.1 x\r\n\r\n").await;
        let mut app = upstream.accept().await;
        let head = app.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(app.until("\r\n\r\n").await, "2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n");
        app.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 204);
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn k1_a_response_may_come_byte_by_byte_behind_interim_ones() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    client.send(GET).await;
    let mut app = upstream.accept().await;
    app.head().await;
    let response = "\r\n\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3;a\r\nabc\r\n001\r\nd\r\n0\r\nX-Sum: 1\r\n\r\n";
    for byte in response.bytes() {
        app.send([byte]).await;
        tokio::task::yield_now().await;
    }
    let head = client.head().await;
    assert!(status(&head) == 200 && head.contains("x: y\r\n") && !head.contains("link"), "{head}");
    let mut body = String::new();
    while !body.ends_with("0\r\n\r\n") {
        body += &client.until("\r\n").await;
    }
    let data: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(data, "abcd");
    // Nothing was in doubt: the connection is kept.
    client.send(GET).await;
    app.head().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn b5_l_what_a_response_may_have_beside_its_data_is_bounded() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    let chunk = |extension: usize| format!("1;{}\r\na\r\n", "x".repeat(extension));
    for (body, is_whole) in
        [(chunk(2000) + &chunk(2000), true), (chunk(2000).repeat(3), false), (chunk(5000), false)]
    {
        let mut client = plane.connect().await;
        client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 200);
        app.send(format!("{body}0\r\n\r\n")).await;
        let end = if is_whole { Ok(()) } else { Err(std::io::ErrorKind::ConnectionReset) };
        if is_whole {
            assert_eq!(client.bytes(2).await, b"aa");
        }
        assert_eq!(client.end().await, end, "{}", body.len());
    }
    // Heads: a field too many, and one that has no end.
    let many = "X: y\r\n".repeat(101);
    for head in
        [format!("HTTP/1.1 200 OK\r\n{many}\r\n"), format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(70_000))]
    {
        let mut client = plane.connect().await;
        client.send(GET).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send(head).await;
        let head = client.head().await;
        assert!(status(&head) == 502 && head.contains("upstream_malformed"), "{head}");
    }
    plane.shutdown().await;
}
