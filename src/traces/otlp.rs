//! Spans in the JSON encoding of OTLP (opentelemetry-proto 1.x, `trace/v1/trace.proto`): names in camel case, ids in hex, 64-bit
//! numbers as text, enums as numbers.
//!
//! A span is written once, by whoever recorded it; what is sent is such texts between a head and a tail.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

use super::queue::Batch;

const JSON: &str = "application/json";

/// One span.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span<'a> {
    pub(crate) trace_id: Hex<'a>,
    pub(crate) span_id: Hex<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent_span_id: Option<Hex<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_state: Option<&'a str>,
    pub(crate) flags: u32,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) start_time_unix_nano: Number,
    pub(crate) end_time_unix_nano: Number,
    pub(crate) attributes: Vec<Attribute<'a>>,
    pub(crate) status: Status,
}

/// Which side of a request it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Server = 2,
    Client = 3,
}

#[derive(Serialize)]
pub(crate) struct Status {
    code: u8,
}

/// One thing that is said of a span, or of whose they are.
#[derive(Serialize)]
pub(crate) struct Attribute<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Value<'a> {
    StringValue(Cow<'a, str>),
    IntValue(Number),
}

pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

/// Of 64 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(pub(crate) u64);

impl Span<'_> {
    /// W3C's flags: it is sampled.
    const SAMPLED: u32 = 0x01;
    /// It is known whether the parent is of another process, and it is.
    const KNOWS_PARENT: u32 = 0x100;
    const PARENT_IS_REMOTE: u32 = 0x200;

    pub(crate) fn flags_of(parent_is_remote: bool) -> u32 {
        Self::SAMPLED | Self::KNOWS_PARENT | if parent_is_remote { Self::PARENT_IS_REMOTE } else { 0 }
    }
}

impl Status {
    pub(crate) fn of(is_error: bool) -> Self {
        Self { code: if is_error { 2 } else { 0 } }
    }
}

impl<'a> Attribute<'a> {
    pub(crate) fn text(key: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        Self { key, value: Value::StringValue(value.into()) }
    }

    pub(crate) fn number(key: &'static str, value: impl Into<u64>) -> Self {
        Self { key, value: Value::IntValue(Number(value.into())) }
    }
}

impl Batch {
    pub(crate) fn add(&mut self, span: &Span<'_>) {
        if self.spans > 0 {
            self.text.push(b',');
        }
        // Text and numbers can always be written, and memory takes them.
        let _written = serde_json::to_writer(&mut self.text, span);
        self.spans += 1;
    }
}

/// What is sent: all of `batches` in one, of the service of that name.
pub(super) fn request<'a>(service: &str, batches: impl Iterator<Item = &'a Batch>) -> Vec<u8> {
    let whose = [
        Attribute::text("service.name", service),
        Attribute::text("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let whose = serde_json::to_string(&whose).unwrap_or_default();
    let mut text = Vec::new();
    text.extend_from_slice(b"{\"resourceSpans\":[{\"resource\":{\"attributes\":");
    text.extend_from_slice(whose.as_bytes());
    text.extend_from_slice(b"},\"scopeSpans\":[{\"scope\":{\"name\":\"lockgate\"},\"spans\":[");
    for (at, batch) in batches.enumerate() {
        if at > 0 {
            text.push(b',');
        }
        text.extend_from_slice(&batch.text);
    }
    text.extend_from_slice(b"]}]}]}");
    text
}

pub(super) fn content_type() -> http::HeaderValue {
    http::HeaderValue::from_static(JSON)
}

/// How many spans a collector says that it did not take, of a request that it took otherwise, and why.
pub(super) fn rejected(answer: &[u8]) -> Option<(usize, String)> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let partial = answer.get("partialSuccess")?;
    let count = match partial.get("rejectedSpans")? {
        serde_json::Value::String(text) => text.parse().ok()?,
        number => number.as_u64()?,
    };
    let why = partial.get("errorMessage").and_then(serde_json::Value::as_str).unwrap_or_default();
    (count > 0).then(|| (usize::try_from(count).unwrap_or(usize::MAX), why.to_owned()))
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(*self as u8)
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_did_not_take_is_read_as_text_or_as_a_number() {
        for (answer, expected) in [
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}"#, Some((3, "too old"))),
            (r#"{"partialSuccess":{"rejectedSpans":2}}"#, Some((2, ""))),
            (r#"{"partialSuccess":{"rejectedSpans":"0","errorMessage":"be gentle"}}"#, None),
            (r#"{"partialSuccess":{}}"#, None),
            // As a collector has answered.
            (r#"{"partialSuccess":null}"#, None),
            ("{}", None),
            ("", None),
            (r#"{"partialSuccess":{"rejectedSpans":-1}}"#, None),
        ] {
            let found = rejected(answer.as_bytes());
            let found = found.as_ref().map(|(count, why)| (*count, why.as_str()));
            assert_eq!(found, expected, "{answer}");
        }
    }
}
