//! `traceparent` of W3C Trace Context, level 1: continued where a client sent a valid one, started where not.
//!
//! A trace that starts here is marked as sampled: an application that follows its caller's choice, as most do by
//! default, would otherwise record nothing once it stands behind Lockgate.

use http::header::{HeaderMap, HeaderName};

use super::request_id::{RequestIds, hex};
use super::validate::Seen;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-` trace id `-` parent id `-` flags
const LENGTH: usize = 55;
const TRACE_ID: std::ops::Range<usize> = 3..35;
const PARENT_ID: std::ops::Range<usize> = 36..52;
const FLAGS: std::ops::Range<usize> = 53..55;

/// Puts this hop into the trace. `tracestate` means nothing without the `traceparent` that it came with.
pub(crate) fn pass_on(headers: &mut HeaderMap, seen: Seen, ids: &RequestIds) {
    let given = if seen.has(Seen::TRACEPARENT) { only(headers).and_then(continued) } else { None };
    if given.is_none() && seen.has(Seen::TRACESTATE) {
        headers.remove(TRACESTATE);
    }
    let mut text = given.unwrap_or_else(|| {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        let id = u128::from(ids.random()) << 64 | u128::from(ids.random() | 1);
        hex(&id.to_be_bytes(), &mut text[TRACE_ID]);
        text
    });
    hex(&(ids.random() | 1).to_be_bytes(), &mut text[PARENT_ID]);
    headers.insert(TRACEPARENT, ids.trace_text(&text));
}

/// The trace id of what [`pass_on`] wrote.
pub(crate) fn trace_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(TRACEPARENT)?.to_str().ok()?.get(TRACE_ID)
}

fn only(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

/// What goes on from `given`: in our version, and with no flag that we do not know. `None` if it is not valid.
fn continued(given: &[u8]) -> Option<[u8; LENGTH]> {
    let (head, more) = given.split_first_chunk::<LENGTH>()?;
    let is_ours = head.starts_with(b"00");
    // A later version may have more fields behind these.
    let is_whole = more.is_empty() || !is_ours && more[0] == b'-';
    let has_dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let is_hex = [0..2, TRACE_ID, PARENT_ID, FLAGS]
        .into_iter()
        .flat_map(|field| &head[field])
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |field: std::ops::Range<usize>| head[field].iter().all(|digit| *digit == b'0');
    let is_valid = is_whole && has_dashes && is_hex && !is_zero(TRACE_ID) && !is_zero(PARENT_ID);
    if !is_valid || head.starts_with(b"ff") {
        return None;
    }
    let mut text = *head;
    text[..2].copy_from_slice(b"00");
    let is_sampled = char::from(head[FLAGS.end - 1]).to_digit(16).is_some_and(|digit| digit & 1 == 1);
    text[FLAGS].copy_from_slice(if is_sampled { b"01" } else { b"00" });
    Some(text)
}
