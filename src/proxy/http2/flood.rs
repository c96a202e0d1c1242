//! Frames that carry nothing: a client may send so many of them, and more for what it is served.
//!
//! h2 answers PING and SETTINGS for as long as they come, and takes PRIORITY, WINDOW_UPDATE and what it does not know
//! without an end. Who sends nothing else is told to calm down.

use std::cell::Cell;
use std::rc::Rc;

use crate::upstream::Tick;

/// Such frames that may come at once, and that can be saved up.
const BURST: u32 = 1000;
const SAVED_MAX: u32 = 10_000;

/// Further ones for a request or a part of its body, for so many bytes sent, and with time.
const PER_MESSAGE: u32 = 10;
const BYTES_SENT: u32 = 64;
const PER_TICK: u32 = 25;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// What a client may still send.
#[derive(Debug)]
pub(super) struct Allowance {
    now: Rc<Cell<Tick>>,
    at: Cell<Tick>,
    left: Cell<u32>,
    /// Bytes sent that have not earned one yet.
    sent: Cell<u32>,
    is_spent: Cell<bool>,
}

/// Follows the frames that a client sends.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; 9],
    has: usize,
    /// Bytes until the next header begins: of the preface, at first.
    skips: usize,
}

impl Allowance {
    pub(super) fn new(now: Rc<Cell<Tick>>) -> Self {
        let at = Cell::new(now.get());
        Self { now, at, left: Cell::new(BURST), sent: Cell::new(0), is_spent: Cell::new(false) }
    }

    /// Whether more came than may.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// Bytes were sent to the client.
    pub(super) fn sent(&self, bytes: usize) {
        let sent = self.sent.get().saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.earn(sent / BYTES_SENT);
        self.sent.set(sent % BYTES_SENT);
    }

    fn earn(&self, frames: u32) {
        self.left.set(self.left.get().saturating_add(frames).min(SAVED_MAX));
    }

    fn spend(&self) {
        let passed = self.now.get() - self.at.replace(self.now.get());
        self.earn(passed.saturating_mul(PER_TICK));
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.is_spent.set(true),
        }
    }

    fn take(&self, frame: u8, flags: u8, length: usize) {
        match frame {
            HEADERS => self.earn(PER_MESSAGE),
            DATA if length > 0 => self.earn(PER_MESSAGE),
            DATA if flags & END_STREAM != 0 => {}
            _ => self.spend(),
        }
    }
}

impl Frames {
    /// From the beginning of a connection, whose preface is so long.
    pub(super) fn behind(preface: usize) -> Self {
        Self { header: [0; 9], has: 0, skips: preface }
    }

    /// What the client sent next.
    pub(super) fn follow(&mut self, mut bytes: &[u8], allowance: &Allowance) {
        while !bytes.is_empty() {
            let skipped = self.skips.min(bytes.len());
            self.skips -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.header.len() - self.has).min(bytes.len());
            self.header[self.has..self.has + taken].copy_from_slice(&bytes[..taken]);
            self.has += taken;
            bytes = &bytes[taken..];
            if self.has == self.header.len() {
                let [high, middle, low, frame, flags, ..] = self.header;
                let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                allowance.take(frame, flags, length);
                (self.has, self.skips) = (0, length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    fn allowance() -> Allowance {
        Allowance::new(Rc::default())
    }

    #[test]
    fn what_carries_nothing_is_counted_and_what_is_served_earns_more() {
        let allowance = allowance();
        let mut frames = Frames::behind(24);
        frames.follow(&[b'x'; 24], &allowance);
        for _ in 0..BURST {
            frames.follow(&PING, &allowance);
        }
        assert!(!allowance.is_spent());
        // A request with an empty body.
        frames.follow(&[0, 0, 2, HEADERS, 4, 0, 0, 0, 1, 0, 0], &allowance);
        frames.follow(&[0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1], &allowance);
        for _ in 0..PER_MESSAGE {
            frames.follow(&PING, &allowance);
        }
        allowance.sent(63);
        allowance.sent(1);
        frames.follow(&PING, &allowance);
        allowance.now.set(1);
        for _ in 0..PER_TICK {
            frames.follow(&PING, &allowance);
        }
        assert!(!allowance.is_spent());
        // An empty piece of a body carries nothing.
        frames.follow(&[0, 0, 0, DATA, 0, 0, 0, 0, 1], &allowance);
        assert!(allowance.is_spent());
    }

    proptest! {
        /// However the bytes come.
        #[test]
        fn frames_are_found_wherever_reads_cut_them(cuts in prop::collection::vec(1..40_usize, 1..40)) {
            let allowance = allowance();
            let mut frames = Frames::behind(3);
            let mut all = vec![b'x'; 3];
            for length in 0..30_u8 {
                all.extend([0, 0, length, HEADERS, 0, 0, 0, 0, 1]);
                all.extend(std::iter::repeat_n(6, usize::from(length)));
                all.extend(PING);
            }
            let mut rest = &all[..];
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                frames.follow(piece, &allowance);
                rest = more;
            }
            frames.follow(rest, &allowance);
            prop_assert_eq!(allowance.left.get(), BURST + 30 * (PER_MESSAGE - 1));
        }
    }
}
