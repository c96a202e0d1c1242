//! gRPC: how its clients are told what Lockgate answers itself, and how long a call may take.
//!
//! A call is a POST over HTTP/2 whose outcome is in its trailers. Its clients do not look at the status of HTTP unless they
//! have to guess, so an answer of Lockgate's is one of trailers alone, with the code that says whether to try again.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};

use super::error::Verdict;
use super::error_page::REASON;

const GRPC: &[u8] = b"application/grpc";

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Milliseconds after which a client may try again.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The codes that are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// Whether the request is a call.
pub(crate) fn is_call(request: &Request<impl Sized>) -> bool {
    request.version() >= Version::HTTP_2
        && request.headers().get(CONTENT_TYPE).is_some_and(|content_type| {
            // Not gRPC-Web, which is for browsers, and has its trailers in the body.
            let rest = content_type.as_bytes().strip_prefix(GRPC);
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
}

/// Whether a response is one of gRPC or its kin, which may rest for as long as the two sides like.
pub(crate) fn is_of_call(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(GRPC)
}

/// How long the client waits for the end of its call, if it says so.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let (digits, unit) = headers.get(GRPC_TIMEOUT)?.to_str().ok()?.split_at_checked_last()?;
    let is_count = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u32 = digits.parse().ok().filter(|_| is_count)?;
    Some(match unit {
        "H" => Duration::from_secs(3600) * count,
        "M" => Duration::from_secs(60) * count,
        "S" => Duration::from_secs(1) * count,
        "m" => Duration::from_millis(1) * count,
        "u" => Duration::from_micros(1) * count,
        "n" => Duration::from_nanos(1) * count,
        _ => return None,
    })
}

trait SplitLast {
    /// All but the last byte, and that.
    fn split_at_checked_last(&self) -> Option<(&str, &str)>;
}

impl SplitLast for str {
    fn split_at_checked_last(&self) -> Option<(&str, &str)> {
        self.split_at_checked(self.len().checked_sub(1)?)
    }
}

/// The answer for `verdict`: trailers alone.
pub(crate) fn render(verdict: Verdict) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(SERVER, HeaderValue::from_static("lockgate"));
    headers.insert(REASON, HeaderValue::from_static(verdict.code));
    headers.insert(GRPC_STATUS, HeaderValue::from(code_of(verdict) as u16));
    if let Ok(message) = HeaderValue::from_str(&encoded(verdict.detail)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if let Some(seconds) = verdict.retry_after {
        headers.insert(PUSHBACK, HeaderValue::from(u64::from(seconds) * 1000));
    }
    response
}

/// As gRPC has its clients translate statuses, but where Lockgate knows more: that the time was up, or that something was too
/// large.
fn code_of(verdict: Verdict) -> Code {
    match verdict.status {
        // No call has begun: it may go out again.
        StatusCode::GATEWAY_TIMEOUT if verdict.code == "connect_timeout" => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::BAD_GATEWAY
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::MISDIRECTED_REQUEST => Code::Unavailable,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Code::Unimplemented
        }
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::BAD_REQUEST => Code::Internal,
        _ => Code::Unknown,
    }
}

/// What is not printable ASCII, by per cents.
fn encoded(message: &str) -> String {
    use std::fmt::Write as _;
    message.bytes().fold(String::with_capacity(message.len()), |mut text, byte| {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            write!(text, "%{byte:02X}").unwrap_or_default();
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it_and_nothing_else_is() {
        let read = |text: &'static str| {
            timeout(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(text))]))
        };
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("30S", Duration::from_secs(30)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("5u", Duration::from_micros(5)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_message_is_printable_whatever_an_operator_wrote() {
        assert_eq!(encoded("back at noon: 100 % ö\n"), "back at noon: 100 %25 %C3%B6%0A");
    }

    #[test]
    fn what_is_a_call_is_told_by_its_type() {
        for (version, content_type, expected) in [
            (Version::HTTP_2, "application/grpc", true),
            (Version::HTTP_2, "application/grpc+proto", true),
            (Version::HTTP_2, "application/grpc; x=1", true),
            (Version::HTTP_2, "application/grpc-web", false),
            (Version::HTTP_2, "application/json", false),
            (Version::HTTP_11, "application/grpc", false),
        ] {
            let request = Request::builder().version(version).header(CONTENT_TYPE, content_type);
            assert_eq!(is_call(&request.body(()).unwrap()), expected, "{content_type}");
        }
    }
}
