//! Clients of HTTP/2 that mean no good: what they may cost, and how they are told to stop.

use std::time::Duration;

use lockgate::gate::InFlight;

use crate::support::{OK, Plane, Upstream, Wire};
use crate::support_http2::{
    CONTINUATION, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, fields, frame, request,
};

const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

async fn start() -> (Plane, Upstream) {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    plane.route("a.test", &upstream);
    (plane, upstream)
}

fn calmed(plane: &Plane) -> u64 {
    plane.plane.telemetry().of(0).http2_connections_calmed.get()
}

#[tokio::test]
async fn k3_streams_that_are_reset_before_they_are_answered_end_the_connection() {
    for (per_minute, ever) in [(5, 500), (100, 5)] {
        let plane = Plane::with(|settings| {
            settings.limits.http2_resets_per_minute = per_minute;
            settings.limits.http2_resets = ever;
        });
        let upstream = Upstream::start().await;
        plane.route("a.test", &upstream);
        let mut client = Wire::begin_http2(&plane).await;
        for n in 0..5 {
            client.send(request(n * 2 + 1, END_STREAM, &[])).await;
            // Paced: each has reached the application.
            let mut app = upstream.accept().await;
            app.head().await;
            assert_eq!(calmed(&plane), 0);
            client.send(frame(RST_STREAM, 0, n * 2 + 1, &CANCEL)).await;
            app.closed().await;
        }
        assert_eq!(client.goaway().await, ENHANCE_YOUR_CALM);
        plane.settle(|| calmed(&plane) == 1).await;
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn k3_streams_that_are_reset_after_they_were_answered_do_not_count() {
    let plane = Plane::with(|settings| settings.limits.http2_resets_per_minute = 2);
    let upstream = Upstream::start().await;
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    for n in 0..5 {
        client.send(request(n * 2 + 1, END_STREAM, &[])).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
        client.frame(HEADERS).await;
        client.send(frame(RST_STREAM, 0, n * 2 + 1, &CANCEL)).await;
        app.closed().await;
    }
    assert_eq!(calmed(&plane), 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn h4_a_burst_of_opened_and_reset_streams_ends_the_connection_and_costs_the_app_little() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    let mut burst = Vec::new();
    for n in 0..500 {
        burst.extend(request(n * 2 + 1, END_STREAM, &[]));
        burst.extend(frame(RST_STREAM, 0, n * 2 + 1, &CANCEL));
    }
    client.send(burst).await;
    assert_eq!(client.goaway().await, ENHANCE_YOUR_CALM);
    plane.settle(|| upstream.target.gate.in_flight() == InFlight::default()).await;
    let reached = upstream.heads().len();
    assert!(reached < 100, "{reached} requests reached the application");
    plane.shutdown().await;
}

/// What is sent again and again, until the connection is ended.
async fn flooded(plane: &Plane, first: &[u8], part: &[u8]) -> u32 {
    let mut client = Wire::begin_http2(plane).await;
    client.send(first).await;
    let (mut reader, mut writer) = client.stream.into_split();
    let flood = part.repeat(100);
    let writing = async {
        // Much more than may come; less than anybody would wait for.
        for _ in 0..1000 {
            if tokio::io::AsyncWriteExt::write_all(&mut writer, &flood).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut all = Vec::new();
        let _end = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all).await;
        all
    };
    let ((), all) = crate::support::within(async { tokio::join!(writing, reading) }).await;
    let mut rest = &all[..];
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        if rest[3] == GOAWAY {
            return u32::from_be_bytes(rest[13..17].try_into().unwrap());
        }
        rest = &rest[9 + length..];
    }
    panic!("no GOAWAY in {} bytes", all.len());
}

#[tokio::test]
async fn h4_frames_that_carry_nothing_end_the_connection_if_they_do_not_stop() {
    let (plane, _upstream) = start().await;
    let floods = [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("priority", frame(2, 0, 1, &[0, 0, 0, 3, 1])),
        ("window", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown", frame(99, 0, 0, &[])),
    ];
    for (number, (name, part)) in floods.iter().enumerate() {
        assert_eq!(flooded(&plane, &[], part).await, ENHANCE_YOUR_CALM, "{name}");
        plane.settle(|| calmed(&plane) == number as u64 + 1).await;
    }
    let empty = frame(0, 0, 1, &[]);
    assert_eq!(flooded(&plane, &request(1, 0, &[]), &empty).await, ENHANCE_YOUR_CALM, "data");
    plane.shutdown().await;
}

#[tokio::test]
async fn h4_a_head_that_never_ends_ends_the_connection() {
    let (plane, upstream) = start().await;
    let first = frame(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET")]));
    let part = frame(CONTINUATION, 0, 1, &fields(&[("x", "y")]));
    assert_eq!(flooded(&plane, &first, &part).await, ENHANCE_YOUR_CALM);
    assert_eq!(upstream.target.gate.in_flight(), InFlight::default());
    plane.shutdown().await;
}

#[tokio::test]
async fn b8_a_list_of_fields_over_the_limit_is_431_and_far_over_it_the_end() {
    let (plane, upstream) = (Plane::start(), Upstream::answering(OK).await);
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    let large = "v".repeat(15_000);
    send_large(&mut client, 1, &large, 6).await;
    let answer = client.frame(HEADERS).await;
    assert_eq!((answer.stream, answer.payload[0]), (1, 0x48), "a literal :status: {answer:?}");
    client.send(request(3, END_STREAM, &[])).await;
    assert_eq!(client.frame(HEADERS).await.stream, 3);
    send_large(&mut client, 5, &large, 60).await;
    client.goaway().await;
    assert_eq!(upstream.heads().len(), 1);
    plane.shutdown().await;
}

/// A request with so many large fields, one a frame.
async fn send_large(client: &mut Wire, stream: u32, large: &str, count: usize) {
    let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")];
    client.send(frame(HEADERS, END_STREAM, stream, &fields(&usual))).await;
    for n in 0..count {
        let flags = if n + 1 == count { END_HEADERS } else { 0 };
        let frame = frame(CONTINUATION, flags, stream, &fields(&[("x-large", large)]));
        if client.stream.try_write(&frame).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn k4_a_window_that_stays_closed_ends_the_stream_and_not_its_connection() {
    let plane = Plane::with(|settings| settings.limits.response_idle = Duration::from_millis(100));
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
    plane.route("a.test", &upstream);
    let mut client = plane.connect().await;
    // The window of each stream is zero from the beginning.
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    client.send([crate::support_http2::PREFACE, &settings, &request(1, END_STREAM, &[])].concat()).await;
    assert_eq!(client.frame(HEADERS).await.stream, 1);
    let reset = client.frame(RST_STREAM).await;
    assert_eq!((reset.stream, reset.reason()), (1, 8));
    client.send(request(3, END_STREAM, &[])).await;
    assert_eq!(client.frame(HEADERS).await.stream, 3);
    let stats = upstream.backend.stats.tally();
    assert_eq!(stats.failed(), 0, "the application did nothing wrong");
    plane.shutdown().await;
}

#[tokio::test]
async fn k4_who_reads_nothing_at_all_is_not_kept() {
    let plane = Plane::with(|settings| {
        settings.limits.response_idle = Duration::from_millis(100);
        settings.limits.keep_alive = Duration::from_millis(100);
    });
    let upstream = Upstream::answering(OK).await;
    plane.route("a.test", &upstream);
    let mut client = Wire::begin_http2(&plane).await;
    client.send(request(1, 0, &[])).await;
    plane.settle(|| plane.taken()[0] == 1).await;
    let telemetry = plane.plane.telemetry().clone();
    drop(plane.connect().await);
    plane.settle(|| telemetry.of(0).connections_ended.get() >= 1).await;
    client.rest().await;
    plane.shutdown().await;
}

#[tokio::test]
async fn k2_heads_that_expand_a_thirtyfold_are_refused_and_nothing_of_them_is_kept() {
    let (plane, upstream) = start().await;
    let mut client = Wire::begin_http2(&plane).await;
    let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/")];
    for n in 0..300 {
        let mut block = fields(&usual);
        if n == 0 {
            // A literal that the table remembers.
            block.extend([0x40, 1, b'x', 1, b'y']);
        }
        // References of one byte to it, as many as nearly fill the list; none of these requests ends.
        block.extend(std::iter::repeat_n(0x80 | 62, 1800));
        client.send(frame(HEADERS, END_HEADERS, n * 2 + 1, &block)).await;
        let answer = client.frame(HEADERS).await;
        assert_eq!(answer.stream, n * 2 + 1);
        // More than may be open at once: each is over.
        assert_eq!(client.frame(RST_STREAM).await.reason(), 0);
    }
    assert_eq!(upstream.target.gate.in_flight(), InFlight::default());
    assert!(plane.metrics().contains(r#"lockgate_errors_total{reason="headers_too_large"} 300"#));
    plane.shutdown().await;
}
