//! Fields that the proxy puts on a request, beside those that its client sent.
//!
//! Written behind them, a field costs a fraction of what it costs to be put into their map and to be found there again.
//! Whoever has to see all fields has them put there first ([`Added::settle`]).

use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Fields of one request, none of which its head has.
#[derive(Debug, Default)]
pub(crate) struct Added {
    lines: Option<Rc<Lines>>,
    /// As many as there are nearly always, without memory of their own.
    fields: SmallVec<[(HeaderName, HeaderValue); 4]>,
}

/// Fields that are the same in many requests, and how they are written.
#[derive(Debug)]
pub(crate) struct Lines {
    fields: Vec<(HeaderName, HeaderValue)>,
    text: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(fields: Vec<(HeaderName, HeaderValue)>) -> Self {
        let mut text = Vec::new();
        fields.iter().for_each(|(name, value)| write_field(name, value, &mut text));
        Self { fields, text }
    }
}

impl Added {
    pub(crate) fn new(lines: &Rc<Lines>) -> Self {
        Self { lines: Some(Rc::clone(lines)), fields: SmallVec::new() }
    }

    pub(crate) fn push(&mut self, name: HeaderName, value: HeaderValue) {
        self.fields.push((name, value));
    }

    /// Puts them among `headers`, and is none afterwards.
    pub(crate) fn settle(&mut self, headers: &mut HeaderMap) {
        let lines = self.lines.take();
        let lines = lines.iter().flat_map(|lines| lines.fields.iter().cloned());
        for (name, value) in lines.chain(self.fields.drain(..)) {
            headers.insert(name, value);
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if let Some(lines) = &self.lines {
            out.extend_from_slice(&lines.text);
        }
        self.fields.iter().for_each(|(name, value)| write_field(name, value, out));
    }
}

/// One field as HTTP/1.1 has it (RFC 9112 section 5).
pub(super) fn write_field(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}
