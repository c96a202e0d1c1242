//! Bodies that the sample app makes: of known content, paced, or events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use crate::clock::Clock;

/// Every answer's body.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Every request's body.
pub(super) type Received = UnsyncBoxBody<Bytes, Broken>;

/// A request's body that broke off.
pub(super) type Broken = Box<dyn std::error::Error + Send + Sync>;

const CHUNK: u64 = 16 * 1024;

/// A body that is there as a whole.
pub(super) fn whole(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).boxed_unsync()
}

/// Bytes `from..to` of the content that never ends: each eight bytes tell their own place, so that a piece
/// that is missing, doubled or moved changes the digest.
fn piece(from: u64, to: u64) -> Bytes {
    let mut bytes = Vec::new();
    let mut word = from / 8;
    while word * 8 < to {
        bytes.extend_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        word += 1;
    }
    bytes.truncate(usize::try_from(to - from).unwrap_or(usize::MAX));
    Bytes::from(bytes)
}

/// The pieces of the first `length` bytes. `CHUNK` is a multiple of eight, so each begins with a whole word.
fn pieces(length: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length.div_ceil(CHUNK)).map(move |n| (n * CHUNK, length.min((n + 1) * CHUNK)))
}

/// The digest of the first `length` bytes.
pub(super) fn digest(length: u64) -> String {
    let mut hasher = blake3::Hasher::new();
    for (from, to) in pieces(length) {
        hasher.update(&piece(from, to));
    }
    hasher.finalize().to_hex().to_string()
}

/// The first `length` bytes, spread over `time`.
pub(super) fn bytes(clock: Arc<dyn Clock>, length: u64, time: Duration) -> Body {
    let pause = time.checked_div(u32::try_from(length.div_ceil(CHUNK)).unwrap_or(u32::MAX));
    let frames = stream::unfold((clock, pieces(length)), move |(clock, mut rest)| async move {
        let (from, to) = rest.next()?;
        if let Some(pause) = pause.filter(|pause| from > 0 && !pause.is_zero()) {
            clock.sleep(pause).await;
        }
        Some((Ok(Frame::data(piece(from, to))), (clock, rest)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Server-sent events with the ids 1 to `count`, `pause` apart; the first at once.
pub(super) fn events(clock: Arc<dyn Clock>, data: String, count: u64, pause: Duration) -> Body {
    let frames = stream::unfold((clock, data, 1), move |(clock, data, id)| async move {
        if id > count {
            return None;
        }
        if id > 1 {
            clock.sleep(pause).await;
        }
        let event = Bytes::from(format!("id: {id}\ndata: {data}\n\n"));
        Some((Ok(Frame::data(event)), (clock, data, id + 1)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// `text`, followed by its digest in the trailer `x-digest`.
pub(super) fn with_trailer(text: &str) -> Body {
    let mut trailers = HeaderMap::new();
    let digest = blake3::hash(text.as_bytes()).to_hex();
    if let Ok(value) = HeaderValue::from_str(&digest) {
        trailers.insert("x-digest", value);
    }
    let frames = [Ok(Frame::data(Bytes::from(text.to_owned()))), Ok(Frame::trailers(trailers))];
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_join_to_the_content_of_any_length() {
        for length in [0, 1, 7, 8, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let joined: Vec<u8> = pieces(length).flat_map(|(from, to)| piece(from, to)).collect();
            assert_eq!(joined, piece(0, length), "length {length}");
            assert_eq!(digest(length), blake3::hash(&joined).to_hex().as_str(), "length {length}");
        }
    }
}
