//! Heads: of requests, as they are written, and of responses, as they are read (RFC 9112 sections 2 to 5).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use crate::upstream::added::{Added, write_field};
use crate::upstream::{RequestBody, WireError};

use super::upload::Framing;

/// Fields of a response's head or trailers; one with more is malformed.
const FIELDS_MAX: usize = 100;

/// What the head of a response says of its connection and of the body behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Its bytes.
    pub(super) len: usize,
    /// The connection may be used again.
    pub(super) keeps: bool,
    pub(super) codings: Codings,
    /// `Content-Length`, the same wherever it stands.
    pub(super) length: Length,
}

/// `Transfer-Encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codings {
    None,
    Chunked,
    /// Anything else: nobody asked for it.
    Odd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    None,
    Of(u64),
    /// No number, or several.
    Odd,
}

/// Writes the head of `request` with what is `added`. Its body is framed as `framing` says: fields that say anything else are
/// left out.
pub(super) fn write(request: &Request<RequestBody>, added: &Added, framing: Framing, out: &mut Vec<u8>) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let headers = request.headers();
    let mut has_framing = framing == Framing::None;
    let mut has_length = false;
    for (name, value) in headers {
        let is_kept = match *name {
            CONTENT_LENGTH => match framing {
                Framing::None => value == "0" && !std::mem::replace(&mut has_length, true),
                Framing::Length(_) => !std::mem::replace(&mut has_framing, true),
                Framing::Chunked => false,
            },
            TRANSFER_ENCODING => framing == Framing::Chunked && !std::mem::replace(&mut has_framing, true),
            _ => true,
        };
        if is_kept {
            write_field(name, value, out);
        }
    }
    if !has_framing {
        // Nobody said it: a body whose length nobody knows.
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    added.write(out);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_fields(fields: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in fields {
        write_field(name, value, out);
    }
}

/// Reads the head that `bytes` begin with; `None` if it has not come whole. Its values share the memory of `bytes`. `room` gives
/// the map for its fields; of interim responses they are not read.
///
/// # Errors
/// If it is malformed.
pub(super) fn read(
    bytes: &Bytes,
    room: impl FnOnce() -> HeaderMap,
) -> Result<Option<(Head, Response<()>)>, WireError> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let status =
        ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields)?;
    let Status::Complete(len) = status else { return Ok(None) };
    let mut response = Response::new(());
    *response.status_mut() =
        parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(WireError::Form("its status"))?;
    let is_11 = parsed.version == Some(1);
    *response.version_mut() = if is_11 { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut head = Head { len, keeps: true, codings: Codings::None, length: Length::None };
    let (mut closes, mut is_kept) = (false, is_11);
    if parsed.reason != response.status().canonical_reason()
        && let Ok(reason) = ReasonPhrase::try_from(parsed.reason.unwrap_or_default().as_bytes())
    {
        // As the application says it, to clients of HTTP/1.1.
        response.extensions_mut().insert(reason);
    }
    if is_interim(response.status()) {
        return Ok(Some((head, response)));
    }
    let headers = response.headers_mut();
    *headers = room();
    headers.clear();
    headers.reserve(parsed.headers.len() + ADDED);
    for field in parsed.headers {
        let (name, value) = field_of(field, bytes)?;
        match name {
            // RFC 9112 section 9.3: an end is heeded whatever else is said.
            CONNECTION => {
                closes |= has_token(&value, b"close");
                is_kept |= has_token(&value, b"keep-alive");
            }
            TRANSFER_ENCODING => {
                let is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
                // Of a proxy or an application that does not know chunks (RFC 9112 section 6.1).
                let is_odd = !is_chunked || !is_11 || head.codings != Codings::None;
                head.codings = if is_odd { Codings::Odd } else { Codings::Chunked };
            }
            CONTENT_LENGTH => {
                let length = length_of(&value);
                head.length = match head.length {
                    Length::None => length,
                    before if before == length => length,
                    Length::Of(_) | Length::Odd => Length::Odd,
                };
            }
            _ => {}
        }
        headers.append(name, value);
    }
    head.keeps = is_kept && !closes && !is_in_doubt(response.status(), &head);
    Ok(Some((head, response)))
}

/// Whether some would look for the end of it elsewhere: with a length beside chunks (RFC 9112 section 6.3), or with either of
/// them where there is no body (RFC 9110 section 8.6, RFC 9112 section 6.1), which may follow all the same.
fn is_in_doubt(status: StatusCode, head: &Head) -> bool {
    let has_length = !matches!(head.length, Length::None | Length::Of(0));
    match head.codings {
        Codings::None => status == StatusCode::NO_CONTENT && has_length,
        Codings::Chunked | Codings::Odd => status == StatusCode::NO_CONTENT || head.length != Length::None,
    }
}

/// How many of `bytes` are empty lines before a head, which count for nothing (RFC 9112 section 2.2).
pub(super) fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let [b'\n', behind @ ..] | [b'\r', b'\n', behind @ ..] = rest {
        rest = behind;
    }
    bytes.len() - rest.len()
}

/// Whether another response follows this one (RFC 9110 section 15.2).
pub(super) fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Fields that are put on a response: room for them at once.
const ADDED: usize = 4;

/// Reads the trailers that `bytes` are, up to and with the empty line.
///
/// # Errors
/// If they are malformed, or not all that `bytes` are.
pub(super) fn read_trailers(bytes: &Bytes) -> Result<HeaderMap, WireError> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    match httparse::parse_headers(bytes, &mut fields)? {
        Status::Complete((len, fields)) if len == bytes.len() => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let (name, value) = field_of(field, bytes)?;
                trailers.append(name, value);
            }
            Ok(trailers)
        }
        Status::Complete(_) | Status::Partial => Err(WireError::Form("its trailers")),
    }
}

fn field_of(field: &httparse::Header<'_>, bytes: &Bytes) -> Result<(HeaderName, HeaderValue), WireError> {
    let name = HeaderName::from_bytes(field.name.as_bytes())
        .map_err(|_invalid| WireError::Form("the name of a field"))?;
    let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
    Ok((name, value.map_err(|_invalid| WireError::Form("the value of a field"))?))
}

fn has_token(value: &HeaderValue, token: &[u8]) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

/// Digits and nothing else.
fn length_of(value: &HeaderValue) -> Length {
    let digits = value.as_bytes();
    let is_number = digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
    number.map_or(Length::Odd, Length::Of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_new(bytes: &[u8]) -> Result<Option<(Head, Response<()>)>, WireError> {
        read(&Bytes::copy_from_slice(bytes), HeaderMap::new)
    }

    fn parsed(text: &str) -> Option<(Head, Response<()>)> {
        read_new(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_another_may_follow() {
        let none = (true, Codings::None, Length::None);
        for (line, fields, (keeps, codings, length)) in [
            ("HTTP/1.1 200 OK", "", none),
            ("HTTP/1.1 200", "", none),
            ("HTTP/1.0 200 OK", "", (false, Codings::None, Length::None)),
            ("HTTP/1.0 200 OK", "Connection: Keep-Alive\r\n", none),
            ("HTTP/1.1 200 OK", "Connection: x, CLOSE\r\n", (false, Codings::None, Length::None)),
            (
                "HTTP/1.1 200 OK",
                "Connection: close\r\nConnection: keep-alive\r\n",
                (false, Codings::None, Length::None),
            ),
            ("HTTP/1.1 200 OK", "Content-Length: 07\r\n", (true, Codings::None, Length::Of(7))),
            (
                "HTTP/1.1 200 OK",
                "Content-Length: 7\r\nContent-Length: 7\r\n",
                (true, Codings::None, Length::Of(7)),
            ),
            (
                "HTTP/1.1 200 OK",
                "Content-Length: 7\r\nContent-Length: 8\r\n",
                (true, Codings::None, Length::Odd),
            ),
            (
                "HTTP/1.1 200 OK",
                "Content-Length: x\r\nContent-Length: 8\r\n",
                (true, Codings::None, Length::Odd),
            ),
            ("HTTP/1.1 200 OK", "Content-Length: 7, 7\r\n", (true, Codings::None, Length::Odd)),
            ("HTTP/1.1 200 OK", "Content-Length: +7\r\n", (true, Codings::None, Length::Odd)),
            ("HTTP/1.1 200 OK", "Content-Length: \r\n", (true, Codings::None, Length::Odd)),
            (
                "HTTP/1.1 200 OK",
                "Content-Length: 18446744073709551616\r\n",
                (true, Codings::None, Length::Odd),
            ),
            (
                "HTTP/1.1 200 OK",
                "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
                (false, Codings::Chunked, Length::Of(1)),
            ),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: Chunked\r\n", (true, Codings::Chunked, Length::None)),
            ("HTTP/1.1 204 No Content", "", none),
            ("HTTP/1.1 204 No Content", "Content-Length: 0\r\n", (true, Codings::None, Length::Of(0))),
            ("HTTP/1.1 204 No Content", "Content-Length: 5\r\n", (false, Codings::None, Length::Of(5))),
            (
                "HTTP/1.1 204 No Content",
                "Transfer-Encoding: chunked\r\n",
                (false, Codings::Chunked, Length::None),
            ),
            ("HTTP/1.1 304 Not Modified", "Content-Length: 5\r\n", (true, Codings::None, Length::Of(5))),
            ("HTTP/1.0 200 OK", "Transfer-Encoding: chunked\r\n", (false, Codings::Odd, Length::None)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked\r\n", (true, Codings::Odd, Length::None)),
            (
                "HTTP/1.1 200 OK",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                (true, Codings::Odd, Length::None),
            ),
        ] {
            let text = format!("{line}\r\n{fields}\r\nbody");
            let (head, response) = parsed(&text).unwrap();
            assert_eq!((head.keeps, head.codings, head.length), (keeps, codings, length), "{text:?}");
            assert_eq!(head.len, text.len() - "body".len(), "{text:?}");
            assert_eq!(response.headers().len(), fields.lines().count(), "{text:?}");
        }
    }

    #[test]
    fn a_part_of_a_head_is_none_yet_and_what_is_none_is_refused() {
        let whole = "HTTP/1.1 404 Not \u{e9}\r\nX: \u{e9}\r\n\r\n";
        for end in 0..whole.len() {
            assert!(read_new(&whole.as_bytes()[..end]).unwrap().is_none(), "{end}");
        }
        let (_, response) = parsed(whole).unwrap();
        assert_eq!(response.status(), 404);
        assert!(response.extensions().get::<ReasonPhrase>().is_some());
        let (_, usual) = parsed("HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
        assert!(usual.extensions().is_empty());
        assert_eq!(response.headers()["x"], "\u{e9}".as_bytes());
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(FIELDS_MAX + 1));
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
            &many,
        ] {
            assert!(read_new(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lines_before_a_head_are_empty_or_its_own() {
        for (text, expected) in [
            ("", 0),
            ("HTTP/1.1 200 OK\r\n\r\n", 0),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", 2),
            ("\n\r\n\nHTTP/1.1 200 OK\r\n\r\n", 4),
            ("\r\n\r\n", 4),
            // What is behind it has not come, or is none.
            ("\r\n\r", 2),
            ("\r\r\n", 0),
            (" \r\n", 0),
        ] {
            assert_eq!(empty_lines(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_request_is_written_with_one_framing_and_no_other() {
        let written = |body: RequestBody, framing: Framing, fields: &[(&'static str, &'static str)]| {
            let mut request = Request::post("/p?q").body(body).unwrap();
            for (name, value) in fields {
                request.headers_mut().append(*name, HeaderValue::from_static(value));
            }
            let mut out = Vec::new();
            write(&request, &Added::default(), framing, &mut out);
            String::from_utf8(out).unwrap()
        };
        let none = || RequestBody::Empty;
        let both = [("content-length", "5"), ("transfer-encoding", "chunked"), ("x", "y")];
        for (framing, fields, expected) in [
            (Framing::None, &both[..], "x: y\r\n"),
            (Framing::None, &[("content-length", "0"), ("content-length", "0")], "content-length: 0\r\n"),
            (Framing::Length(5), &both, "content-length: 5\r\nx: y\r\n"),
            (
                Framing::Length(5),
                &[("content-length", "5"), ("content-length", "5")],
                "content-length: 5\r\n",
            ),
            (Framing::Chunked, &both, "transfer-encoding: chunked\r\nx: y\r\n"),
            (Framing::Chunked, &[], "transfer-encoding: chunked\r\n"),
        ] {
            assert_eq!(written(none(), framing, fields), format!("POST /p?q HTTP/1.1\r\n{expected}\r\n"));
        }
        for (uri, target) in [("/", "/"), ("*", "*"), ("http://h", "/"), ("http://h?q", "/?q")] {
            let request = Request::get(uri).body(none()).unwrap();
            let mut out = Vec::new();
            write(&request, &Added::default(), Framing::None, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("GET {target} HTTP/1.1\r\n\r\n"), "{uri}");
        }
    }
}
