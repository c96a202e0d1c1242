//! Policies of a route over HTTP/2 and HTTP/3, where a request is one of many on its connection.

use bytes::Bytes;
use http::{Request, Response};

use crate::policies::{beginning, decoded, publish};
use crate::support::{Plane, Upstream, within};
use crate::support_http2::{Http2, all, data};
#[cfg(feature = "http3")]
use crate::support_http3::Http3;
use crate::tls::Bed;

/// A client that speaks one of them, and its responses as both give them.
enum Client {
    Http2(Http2),
    #[cfg(feature = "http3")]
    Http3(Box<Http3>),
}

impl Client {
    async fn all(bed: &Bed) -> Vec<Self> {
        let mut tls = bed.ca.client();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let http2 = Http2::over(bed.connect_as(tls, "a.test").await.unwrap().stream).await;
        vec![
            Self::Http2(http2),
            #[cfg(feature = "http3")]
            Self::Http3(Box::new(Http3::connect(bed).await)),
        ]
    }

    async fn ask(&mut self, request: Request<()>, body: &'static [u8]) -> Response<Vec<u8>> {
        let body = Bytes::from_static(body);
        match self {
            Self::Http2(client) => {
                let (response, mut sending) = client.begin(request, !body.is_empty()).await;
                if !body.is_empty() {
                    sending.send_data(body, true).unwrap();
                }
                let whole = crate::support_http2::Whole::of(response).await;
                assert!(whole.error.is_none(), "{:?}", whole.error);
                whole.head.map(|()| whole.body)
            }
            #[cfg(feature = "http3")]
            Self::Http3(client) => {
                let mut asked = client.begin(request).await;
                if !body.is_empty() {
                    asked.send_data(body).await.unwrap();
                }
                asked.finish().await.unwrap();
                let whole = crate::support_http3::Whole::of(asked).await.unwrap();
                assert!(whole.error.is_none(), "{:?}", whole.error);
                whole.head.map(|()| whole.body)
            }
        }
    }
}

async fn bed() -> Bed {
    let bed = Bed::with(|tls| tls.http3 = cfg!(feature = "http3"), |_| {}).await;
    bed.offer(&[&bed.ca.leaf(&["a.test"])]);
    bed
}

fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let request = Request::builder().method(method).uri(format!("https://a.test{path}"));
    fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

fn told<'a>(answer: &'a Response<Vec<u8>>, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

const POLICIES: &str = "
- cors: { origins: ['https://page.test'], methods: [GET, PUT] }
- { paths: [/denied], ip: { deny: [127.0.0.0/8] } }
- { paths: [/staff], basic_auth: { realm: Staff, users: [{ user: ann, password: 's3cret:x' }], user_header: X-User } }
- { paths: [/seldom], rate_limit: { requests: 1, per: 1h } }
- { paths: [/old], redirect: { to: /new, status: 302 } }
- { paths: [/up], body: { max_bytes: 5 } }
- headers: { request: { set: { X-Set: new } }, response: { remove: [Server], set: { X-Frame-Options: DENY } } }";

#[tokio::test]
async fn what_policies_refuse_answer_and_change_is_the_same_over_each_protocol() {
    let bed = bed().await;
    bed.upstream.answer("HTTP/1.1 200 OK\r\nServer: app\r\nContent-Length: 0\r\n\r\n");
    for mut client in Client::all(&bed).await {
        // Anew for each, with what the limit knows.
        publish(&bed.plane, "a.test", &bed.upstream, POLICIES);
        let before = bed.upstream.heads().len();
        for (method, path, fields, status, field) in [
            ("GET", "/denied", &[][..], 403, ("lockgate-reason", "address_refused")),
            ("GET", "/staff", &[], 401, ("www-authenticate", "Basic realm=\"Staff\", charset=\"UTF-8\"")),
            ("GET", "/old/x?y=1", &[], 302, ("location", "/new")),
            ("POST", "/up", &[("content-length", "6")], 413, ("lockgate-reason", "body_too_large")),
            (
                "OPTIONS",
                "/",
                &[("origin", "https://page.test"), ("access-control-request-method", "PUT")],
                204,
                ("access-control-allow-methods", "GET, PUT"),
            ),
        ] {
            let body: &[u8] = if method == "POST" { b"abcdef" } else { b"" };
            let answer = client.ask(request(method, path, fields), body).await;
            assert_eq!((answer.status().as_u16(), told(&answer, field.0)), (status, Some(field.1)), "{path}");
        }
        assert_eq!(bed.upstream.heads().len(), before, "the application was asked");
        for status in [200, 429] {
            assert_eq!(client.ask(request("GET", "/seldom", &[]), b"").await.status(), status);
        }
        // ann:s3cret:x
        let fields = [("authorization", "Basic YW5uOnMzY3JldDp4"), ("origin", "https://page.test")];
        let answer = client.ask(request("GET", "/staff", &fields), b"").await;
        assert_eq!((answer.status().as_u16(), told(&answer, "server")), (200, None));
        for (name, value) in
            [("x-frame-options", "DENY"), ("access-control-allow-origin", "https://page.test")]
        {
            assert_eq!(told(&answer, name), Some(value), "{answer:?}");
        }
        let head = bed.upstream.heads().pop().unwrap().to_ascii_lowercase();
        assert!(head.contains("x-set: new\r\n") && head.contains("x-user: ann\r\n"), "{head}");
        assert!(!head.contains("authorization"), "{head}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_compressed_response_is_the_same_once_it_is_read_over_each_protocol() {
    let bed = bed().await;
    let page = "All the same, all the same. ".repeat(20_000);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"x\"\r\n";
    let whole = format!("{head}Content-Length: {}\r\n\r\n{page}", page.len());
    bed.upstream.answer(Box::leak(whole.into_boxed_str()));
    publish(&bed.plane, "a.test", &bed.upstream, "- compress: {}");
    for mut client in Client::all(&bed).await {
        for (accept, coding) in [("gzip, br", Some("gzip")), ("gzip, zstd", Some("zstd")), ("br", None)] {
            let answer = client.ask(request("GET", "/", &[("accept-encoding", accept)]), b"").await;
            assert_eq!(
                (told(&answer, "content-encoding"), told(&answer, "vary")),
                (coding, Some("accept-encoding")),
                "{:?}",
                answer.headers()
            );
            // The length is that of the whole.
            let length = told(&answer, "content-length").map(|length| length.parse::<usize>().unwrap());
            assert_eq!(length, coding.is_none().then_some(page.len()));
            assert!(coding.is_none() || answer.body().len() < page.len() / 50);
            assert!(decoded(coding, answer.body()) == page.as_bytes(), "{coding:?}");
        }
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn what_has_come_of_a_compressed_stream_is_not_kept_back_and_a_cut_is_seen_as_one_over_http2() {
    let (plane, upstream) = (Plane::start(), Upstream::start().await);
    publish(&plane, "a.test", &upstream, "- compress: { min_bytes: 0 }");
    let mut client = Http2::connect(&plane).await;
    for (coding, is_cut) in [("gzip", false), ("gzip", true), ("zstd", false), ("zstd", true)] {
        let (response, _) = client.begin(request("GET", "/", &[("accept-encoding", coding)]), false).await;
        let mut app = upstream.accept().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        app.send("5\r\nfirst\r\n").await;
        let (head, mut body) = within(response).await.unwrap().into_parts();
        assert_eq!(head.headers["content-encoding"], coding);
        let mut stream = Vec::new();
        while beginning(coding, &stream)[..] != b"first"[..] {
            stream.extend(data(&mut body).await.expect("it ended before what had come").unwrap());
        }
        if is_cut {
            app.reset();
            let mut end = data(&mut body).await.expect("an end in order hides the cut");
            while end.is_ok() {
                end = data(&mut body).await.expect("an end in order hides the cut");
            }
        } else {
            app.send("6\r\n, last\r\n0\r\nConnection: close\r\n\r\n").await;
            app.finish().await;
            stream.extend(all(&mut body).await);
            assert_eq!(decoded(Some(coding), &stream), b"first, last");
        }
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_body_that_grows_over_the_limit_is_cut_as_it_passes_over_each_protocol() {
    let bed = bed().await;
    for mut client in Client::all(&bed).await {
        let upstream = Upstream::start().await;
        publish(&bed.plane, "a.test", &upstream, "- body: { max_bytes: 5 }");
        let asked = client.ask(request("POST", "/", &[]), b"abcdef");
        let app = async {
            let mut app = upstream.accept().await;
            assert!(!app.rest().await.contains("0\r\n\r\n"), "it looks whole to its application");
        };
        let (answer, ()) = tokio::join!(asked, app);
        assert_eq!(
            (answer.status().as_u16(), told(&answer, "lockgate-reason")),
            (413, Some("body_too_large"))
        );
    }
    bed.plane.shutdown().await;
}
