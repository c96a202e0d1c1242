//! Request ids: UUIDv7, made without a system call or an allocation of their own.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;

use crate::clock::Clock;

/// Texts that are cut out of one block.
const TEXTS: usize = 64;

/// Makes one worker's ids, and its other random numbers: unpredictable enough to be unique, not secrets.
#[derive(Debug)]
pub(crate) struct RequestIds {
    state: Cell<u64>,
    block: Block,
    /// Apart, because ids live as long as their requests, and these until they are written.
    traces: Block,
    /// Wall time in milliseconds at a moment of the monotonic clock.
    began: (Instant, u64),
}

/// Where header values are cut from, so that not each is an allocation.
#[derive(Debug, Default)]
struct Block(RefCell<BytesMut>);

impl RequestIds {
    pub(crate) fn new(clock: &dyn Clock) -> Self {
        let mut seed = [0; 8];
        // Without the system's randomness the clock has to do: the ids stay unique on this machine.
        let wall = u64::try_from(clock.wall().as_millisecond()).unwrap_or_default();
        let seed = getrandom::fill(&mut seed).map_or(wall, |()| u64::from_le_bytes(seed));
        Self {
            state: Cell::new(seed | 1),
            block: Block::default(),
            traces: Block::default(),
            began: (clock.now(), wall),
        }
    }

    /// A number between 0 and `u64::MAX` (splitmix64).
    pub(crate) fn random(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The id of a request that began at `now`.
    pub(crate) fn make(&self, now: Instant) -> HeaderValue {
        let passed =
            u64::try_from(now.saturating_duration_since(self.began.0).as_millis()).unwrap_or_default();
        let high = (self.began.1 + passed) << 16 | 0x7000 | self.random() >> 52;
        let low = 0x8000_0000_0000_0000 | self.random() >> 2;
        self.block.cut(&uuid_text(high, low))
    }

    /// A header value of `text`, which is ASCII.
    pub(crate) fn trace_text(&self, text: &[u8]) -> HeaderValue {
        self.traces.cut(text)
    }
}

impl Block {
    fn cut(&self, text: &[u8]) -> HeaderValue {
        let mut block = self.0.borrow_mut();
        if block.capacity() < text.len() {
            *block = BytesMut::with_capacity(text.len() * TEXTS);
        }
        block.put_slice(text);
        let value: Bytes = block.split().freeze();
        HeaderValue::from_maybe_shared(value).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}

/// Whether a client's id is kept: up to 128 of `A-Z a-z 0-9 . _ -`.
pub(crate) fn is_request_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=128).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn uuid_text(high: u64, low: u64) -> [u8; 36] {
    /// Where the digits of each byte stand: the gaps are the dashes.
    const AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let mut text = [b'-'; 36];
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    for (byte, at) in bytes.into_iter().zip(AT) {
        hex(&[byte], &mut text[at..at + 2]);
    }
    text
}

/// Writes `bytes` as lower-case digits into `text`, which is twice as long.
pub(crate) fn hex(bytes: &[u8], text: &mut [u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (byte, digits) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        digits[0] = HEX[usize::from(byte >> 4)];
        digits[1] = HEX[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn an_id_is_a_uuid_of_version_7_and_never_the_same() {
        let ids = RequestIds::new(&SystemClock);
        let now = SystemClock.now();
        let mut seen = std::collections::HashSet::new();
        for n in 0..1000 {
            let id = ids.make(now + Duration::from_millis(n));
            let uuid: uuid::Uuid = id.to_str().unwrap().parse().unwrap();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
            assert!(is_request_id(&id) && seen.insert(id));
        }
    }
}
