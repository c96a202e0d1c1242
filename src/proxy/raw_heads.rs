//! Request heads as they came off the wire, for what hyper takes out of them before anybody sees it: a
//! `Content-Length` beside a `Transfer-Encoding`, which is how requests are smuggled (RFC 9112 section 6.1), and the
//! fragment of a target.
//!
//! What is read while a head is awaited is copied, and but for its first line looked at only if a request has a
//! `Transfer-Encoding`: for all others this is one copy of a few hundred bytes. Requests behind one another in the
//! same read are told apart by their lengths. Bodies are not followed a second time: a head behind chunks in the same
//! read, or behind the rest of a body that came later than its head, is not seen here, and then it is what hyper made
//! of it that counts: the length dropped, the connection closed after the answer. Of one that is cut there only what
//! follows its first line end is looked at.

/// Room that a connection keeps between requests, in bytes.
const KEPT: usize = 4096;

/// Bytes that are copied for one head and what came with it.
const COPIED_MAX: usize = 64 * 1024;

/// What one connection read while it waited for heads.
#[derive(Debug, Default)]
pub(crate) struct RawHeads {
    bytes: Vec<u8>,
    last: Last,
    /// Nobody knows whether they begin with a line or within one.
    begins_unseen: bool,
    has_fragment: bool,
}

/// The request that hyper found last in what was read.
#[derive(Clone, Copy, Debug, Default)]
enum Last {
    /// None yet.
    #[default]
    None,
    /// It begins there, and has a body of `length` or of chunks.
    At { start: usize, length: Option<u64> },
    /// Nobody knows where it begins, and what is behind it.
    Unseen,
}

impl RawHeads {
    /// Bytes came while the connection had no request to serve: a head begins, or goes on that stood behind the last
    /// request in its read.
    pub(crate) fn begin(&mut self, bytes: &[u8]) {
        let end = if self.ends_with_a_head() { Some(self.bytes.len()) } else { self.end_of_last() };
        self.begins_unseen = end.is_none();
        self.bytes.drain(..end.unwrap_or(self.bytes.len()));
        self.bytes.shrink_to(KEPT);
        self.last = Last::None;
        self.go_on(bytes);
    }

    /// More bytes of a head that has begun.
    pub(crate) fn go_on(&mut self, bytes: &[u8]) {
        let room = COPIED_MAX.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Nothing stands behind what was read, and it is served.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// What was read, which is not HTTP/1.1.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }

    /// Whether what was read begins as `bytes`.
    pub(crate) fn begin_with(&self, bytes: &[u8]) -> bool {
        self.bytes.starts_with(bytes)
    }

    /// hyper found a request, with a body of `length` or of chunks.
    pub(crate) fn pass(&mut self, length: Option<u64>) {
        self.last = self.end_of_last().map_or(Last::Unseen, |start| Last::At { start, length });
        let mut lines = self.last_and_rest().split(|byte| *byte == b'\n');
        let first = lines.find(|line| !matches!(*line, b"" | b"\r")).unwrap_or_default();
        // The end of a field may have a `#` as well, where the head's begin was not seen.
        self.has_fragment = first.contains(&b'#') && (!self.is_cut() || is_request_line(first));
        if length.is_some_and(|length| length > self.bytes.len() as u64) {
            // Nothing stands behind it, and it may take long.
            self.bytes = Vec::new();
        }
    }

    /// Whether the head of the request that was found last has a `Content-Length`, as far as it was seen.
    pub(crate) fn has_length(&self) -> bool {
        let rest = self.last_and_rest();
        // What may be the end of a field is not taken for a field: `X-Content-Length`, cut behind its hyphen.
        let mut lines = rest[..head_len(rest)].split(|byte| *byte == b'\n').skip(usize::from(self.is_cut()));
        lines.any(|line| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            name.eq_ignore_ascii_case(b"content-length")
        })
    }

    /// Whether the target of the request that was found last has a fragment, as far as it was seen.
    pub(crate) fn has_fragment(&self) -> bool {
        self.has_fragment
    }

    /// Whether the first line of what was found last may be the end of one.
    fn is_cut(&self) -> bool {
        self.begins_unseen && matches!(self.last, Last::At { start: 0, .. })
    }

    /// Whether nothing can have come behind the head that ends here: no body, and not a part of another head.
    fn ends_with_a_head(&self) -> bool {
        matches!(self.last, Last::At { length: Some(0), .. })
            && (self.bytes.ends_with(b"\n\r\n") || self.bytes.ends_with(b"\n\n"))
    }

    /// The request that was found last, and what came behind it.
    fn last_and_rest(&self) -> &[u8] {
        match self.last {
            Last::At { start, .. } => self.bytes.get(start..).unwrap_or_default(),
            Last::None | Last::Unseen => &[],
        }
    }

    /// Where it ends; `None` if it has chunks or did not come whole in what was read.
    fn end_of_last(&self) -> Option<usize> {
        match self.last {
            Last::None => Some(0),
            Last::At { start, length } => {
                let body = start + head_len(self.last_and_rest());
                usize::try_from(length?).ok()?.checked_add(body).filter(|end| *end <= self.bytes.len())
            }
            Last::Unseen => None,
        }
    }
}

fn is_request_line(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

/// How long the head is that `bytes` begin with, with the empty lines before it, which count for nothing.
fn head_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    let mut has_begun = false;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        len += line.len();
        let is_empty = matches!(line, b"\n" | b"\r\n");
        if is_empty && has_begun {
            break;
        }
        has_begun |= !is_empty;
    }
    len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However requests stand behind one another, and wherever reads cut the one behind them: what it has is found,
        /// and what it does not have is not made up.
        #[test]
        fn a_length_and_a_fragment_are_those_of_the_last_request(
            before in prop::collection::vec(0..40_usize, 0..4),
            has_length in any::<bool>(),
            has_fragment in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut heads = RawHeads::default();
            let earlier: Vec<String> = before
                .iter()
                .map(|length| {
                    let body = "#\nContent-Length: 9\n".repeat(3);
                    format!("POST /x HTTP/1.1\r\nX: #\r\nContent-Length: {length}\r\n\r\n{}", &body[..*length])
                })
                .collect();
            let fragment = if has_fragment { "#f" } else { "" };
            let length = if has_length { "Content-Length: 1\r\n" } else { "X-Content-Length: 1\r\n" };
            let last = format!("GET /{fragment} HTTP/1.1\r\nX: #\r\n{length}Transfer-Encoding: chunked\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(last.len())).collect();
            cuts.sort_unstable();
            // What comes with the requests before it, in their read.
            let first = cuts.first().copied().unwrap_or(last.len());
            heads.begin(format!("{}{}", earlier.concat(), &last[..first]).as_bytes());
            for length in &before {
                heads.pass(Some(*length as u64));
            }
            for (at, cut) in cuts.iter().enumerate() {
                let end = cuts.get(at + 1).copied().unwrap_or(last.len());
                let rest = &last.as_bytes()[*cut..end];
                // The requests before are answered: a head begins, or goes on.
                if at == 0 && !before.is_empty() { heads.begin(rest) } else { heads.go_on(rest) }
            }
            heads.pass(None);
            prop_assert_eq!((heads.has_length(), heads.has_fragment()), (has_length, has_fragment));
        }

        #[test]
        fn no_order_of_reads_and_requests_brings_it_down(
            acts in prop::collection::vec((0..3_u8, "[a:#\r\n -]{0,20}", prop::option::of(0..50_u64)), 0..30),
        ) {
            let mut heads = RawHeads::default();
            for (act, text, length) in acts {
                match act {
                    0 => heads.begin(text.as_bytes()),
                    1 => heads.go_on(text.as_bytes()),
                    _ => heads.pass(length),
                }
                prop_assert!(!heads.has_length(), "a length that nobody sent");
            }
        }
    }
}
