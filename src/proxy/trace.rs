//! `traceparent` of W3C Trace Context, level 1: continued where a client sent a valid one, started where not.
//!
//! While no spans are exported a trace that starts here is marked as sampled: an application that follows its caller's
//! choice, as most do by default, would otherwise record nothing once it stands behind Lockgate.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::request_id::{RequestIds, hex};
use super::spans::Traced;
use super::validate::Seen;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

pub(crate) type TraceId = [u8; 16];
pub(crate) type SpanId = [u8; 8];

/// `00-` trace id `-` parent id `-` flags
const LENGTH: usize = 55;
const TRACE_ID: std::ops::Range<usize> = 3..35;
const PARENT_ID: std::ops::Range<usize> = 36..52;
const FLAGS: std::ops::Range<usize> = 53..55;

/// A place in a trace, as a `traceparent` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) is_sampled: bool,
}

/// Puts this hop into the trace: as `traced` says, if spans are exported. `tracestate` means nothing without the
/// `traceparent` that it came with.
pub(crate) fn pass_on(headers: &mut HeaderMap, seen: Seen, ids: &RequestIds, traced: Option<&Traced>) {
    let given = match traced {
        None if seen.has(Seen::TRACEPARENT) => given(headers),
        None => None,
        Some(traced) => traced.caller(),
    };
    if given.is_none() && seen.has(Seen::TRACESTATE) {
        headers.remove(TRACESTATE);
    }
    let here = match traced {
        Some(traced) => traced.context(),
        None => Context { span_id: span_id(ids), ..given.unwrap_or_else(|| Context::started(ids)) },
    };
    here.write(headers, ids);
}

/// The `traceparent` of a trace that starts here.
pub(crate) fn start(ids: &RequestIds) -> HeaderValue {
    Context { span_id: span_id(ids), ..Context::started(ids) }.value(ids)
}

/// The trace id in a `traceparent` of ours.
pub(crate) fn trace_id(traceparent: &HeaderValue) -> Option<&str> {
    traceparent.to_str().ok()?.get(TRACE_ID)
}

/// A new span's id. Zero is none.
pub(crate) fn span_id(ids: &RequestIds) -> SpanId {
    (ids.random() | 1).to_be_bytes()
}

/// What the client sent, if that is one valid `traceparent`.
pub(crate) fn given(headers: &HeaderMap) -> Option<Context> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Context::read(value.as_bytes()),
        _ => None,
    }
}

impl Context {
    /// A new trace.
    pub(crate) fn started(ids: &RequestIds) -> Self {
        let id = u128::from(ids.random()) << 64 | u128::from(ids.random() | 1);
        Self { trace_id: id.to_be_bytes(), span_id: SpanId::default(), is_sampled: true }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap, ids: &RequestIds) {
        headers.insert(TRACEPARENT, self.value(ids));
    }

    fn value(&self, ids: &RequestIds) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hex(&self.trace_id, &mut text[TRACE_ID]);
        hex(&self.span_id, &mut text[PARENT_ID]);
        hex(&[u8::from(self.is_sampled)], &mut text[FLAGS]);
        ids.trace_text(&text)
    }

    /// `None` if it is not valid. Flags that we do not know mean nothing.
    fn read(given: &[u8]) -> Option<Self> {
        let (head, more) = given.split_first_chunk::<LENGTH>()?;
        let is_ours = head.starts_with(b"00");
        // A later version may have more fields behind these.
        let is_whole = more.is_empty() || !is_ours && more[0] == b'-';
        let has_dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        if !is_whole || !has_dashes || head.starts_with(b"ff") {
            return None;
        }
        let [_version]: [u8; 1] = unhex(&head[0..2])?;
        let [flags]: [u8; 1] = unhex(&head[FLAGS])?;
        let (trace_id, span_id): (TraceId, SpanId) = (unhex(&head[TRACE_ID])?, unhex(&head[PARENT_ID])?);
        let is_zero = trace_id == TraceId::default() || span_id == SpanId::default();
        (!is_zero).then_some(Self { trace_id, span_id, is_sampled: flags & 1 == 1 })
    }
}

/// Lower-case digits, which are twice as many.
fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}
