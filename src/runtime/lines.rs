//! The last lines of an output that comes in pieces, bounded in count and in bytes.

use std::collections::VecDeque;

/// A longer line is cut: one that never ends must not fill memory.
const LONGEST: usize = 16 * 1024;

/// Collects lines from two interleaved streams.
#[derive(Debug)]
pub(super) struct Lines {
    count: usize,
    whole: VecDeque<String>,
    begun: [Vec<u8>; 2],
}

impl Lines {
    /// Keeps the last `count`.
    pub(super) fn last(count: usize) -> Self {
        Self { count, whole: VecDeque::new(), begun: [Vec::new(), Vec::new()] }
    }

    /// Takes a piece of stream 0 or 1.
    pub(super) fn push(&mut self, stream: usize, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let line = &mut self.begun[stream];
            let room = LONGEST.saturating_sub(line.len());
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < part.len() {
                let line = std::mem::take(line);
                self.keep(&line);
            }
        }
    }

    /// The whole lines so far, oldest first. From now on none is dropped.
    pub(super) fn take(&mut self) -> Vec<String> {
        self.count = usize::MAX;
        std::mem::take(&mut self.whole).into()
    }

    /// The lines, oldest first; what has no end yet is a line too.
    pub(super) fn finish(mut self) -> Vec<String> {
        for line in std::mem::take(&mut self.begun) {
            if !line.is_empty() {
                self.keep(&line);
            }
        }
        self.whole.into()
    }

    fn keep(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.whole.push_back(String::from_utf8_lossy(line).into_owned());
        if self.whole.len() > self.count {
            self.whole.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_two_streams_stay_whole_and_the_last_ones_are_kept() {
        let mut lines = Lines::last(3);
        lines.push(0, b"one\ntw");
        lines.push(1, b"error\r\n");
        lines.push(0, b"o\nthree");
        assert_eq!(lines.finish(), ["error", "two", "three"]);
    }

    #[test]
    fn after_the_last_lines_were_taken_all_are_kept() {
        let mut lines = Lines::last(1);
        lines.push(0, b"one\ntwo\nthr");
        assert_eq!(lines.take(), ["two"]);
        lines.push(0, b"ee\nfour\nfi");
        assert_eq!(lines.take(), ["three", "four"]);
        assert_eq!(lines.finish(), ["fi"]);
    }

    #[test]
    fn a_line_without_end_does_not_fill_memory() {
        let mut lines = Lines::last(1);
        for _ in 0..100 {
            lines.push(0, &[b'x'; 1024]);
        }
        assert_eq!(lines.finish()[0].len(), LONGEST);
    }
}
