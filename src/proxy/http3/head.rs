//! What of a request's head is malformed, where h3 does not look (RFC 9114 sections 4.2 and 4.3). It has refused names with
//! capitals, values with line ends, and pseudo-headers that are missing or contradict `Host`.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request};

use crate::proxy::headers::{KEEP_ALIVE, PROXY_CONNECTION};

use super::fields::Pseudo;

/// Whether the stream of such a head, which was written with these pseudo-headers, is reset.
pub(super) fn is_malformed(request: &Request<()>, pseudo: Pseudo) -> bool {
    let headers = request.headers();
    let of_connections = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE];
    of_connections.iter().any(|name| headers.contains_key(name))
        || headers.get_all(TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers"))
        || length(headers).is_err()
        || match (request.method() == Method::CONNECT, pseudo.has(Pseudo::PROTOCOL)) {
            // A tunnel leads to an authority and nothing else (RFC 9114 section 4.4).
            (true, false) => pseudo.has(Pseudo::SCHEME) || pseudo.has(Pseudo::PATH),
            // With a protocol it leads to a resource (RFC 9220 section 3).
            (true, true) => !pseudo.has(Pseudo::SCHEME) || !pseudo.has(Pseudo::PATH),
            (false, has_protocol) => has_protocol,
        }
}

/// How long the body is, as the head says.
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, NoLength> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return Ok(None) };
    let is_number = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    let length = first.to_str().ok().filter(|_| is_number).and_then(|text| text.parse().ok());
    if lengths.any(|other| other != first) { Err(NoLength) } else { length.map(Some).ok_or(NoLength) }
}

/// There is a length that is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoLength;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_a_connection_and_lengths_that_are_none_are_malformed() {
        for (name, value, expected) in [
            ("connection", "close", true),
            ("keep-alive", "timeout=5", true),
            ("proxy-connection", "close", true),
            ("transfer-encoding", "chunked", true),
            ("upgrade", "websocket", true),
            ("te", "trailers", false),
            ("te", "trailers, deflate", true),
            ("te", "gzip", true),
            ("content-length", "0", false),
            ("content-length", "007", false),
            ("content-length", "+7", true),
            ("content-length", "7, 7", true),
            ("content-length", "", true),
            ("content-length", "99999999999999999999", true),
            ("accept", "*/*", false),
        ] {
            let request = Request::get("https://a.test/").header(name, value).body(()).unwrap();
            assert_eq!(is_malformed(&request, Pseudo::PATH), expected, "{name}: {value}");
        }
        let request =
            |second| Request::get("/").header("content-length", "7").header("content-length", second);
        assert!(is_malformed(&request("8").body(()).unwrap(), Pseudo::PATH));
        assert!(!is_malformed(&request("7").body(()).unwrap(), Pseudo::PATH));
        let tunnel = Request::connect("a.test:443").body(()).unwrap();
        for (pseudo, expected) in [
            (Pseudo::AUTHORITY, false),
            (Pseudo::PATH, true),
            (Pseudo::SCHEME, true),
            (Pseudo::PROTOCOL, true),
        ] {
            assert_eq!(is_malformed(&tunnel, pseudo), expected, "{pseudo:?}");
        }
    }
}
