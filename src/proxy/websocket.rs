//! Where the frames of a WebSocket end (RFC 6455 section 5.2), from server to client: the only places where a
//! close frame of ours may stand.

use bytes::{Bytes, BytesMut};

/// Close, 1012 "service restart".
const CLOSE: &[u8] = &[0x88, 0x02, 0x03, 0xf4];

/// Follows the frame headers of one direction.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; 14],
    header_len: usize,
    payload_left: u64,
    close: Close,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Close {
    #[default]
    Unasked,
    Asked,
    /// Written; nothing of the server follows it.
    Done,
}

impl Frames {
    /// Asks for a close frame at the next boundary.
    pub(crate) fn close(&mut self) {
        if self.close == Close::Unasked {
            self.close = Close::Asked;
        }
    }

    /// The close frame, if it was asked for and this is a boundary.
    pub(crate) fn take_close(&mut self) -> Option<Bytes> {
        let is_due = self.close == Close::Asked && self.is_boundary();
        is_due.then(|| {
            self.close = Close::Done;
            Bytes::from_static(CLOSE)
        })
    }

    /// What of `bytes` goes to the client, with a close frame in it if one is due on the way.
    pub(crate) fn pass(&mut self, mut bytes: Bytes) -> Bytes {
        if self.close == Close::Done {
            return Bytes::new();
        }
        let mut passed = 0;
        while passed < bytes.len() {
            if self.close == Close::Asked && self.is_boundary() {
                self.close = Close::Done;
                let mut closed = BytesMut::from(&bytes[..passed]);
                closed.extend_from_slice(CLOSE);
                return closed.freeze();
            }
            passed += self.follow(&bytes[passed..]);
        }
        bytes.truncate(passed);
        bytes
    }

    fn is_boundary(&self) -> bool {
        self.header_len == 0 && self.payload_left == 0
    }

    /// Follows a part of `bytes` and says how much.
    fn follow(&mut self, bytes: &[u8]) -> usize {
        if self.payload_left > 0 {
            let here = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            self.payload_left -= here as u64;
            return here;
        }
        self.header[self.header_len] = bytes[0];
        self.header_len += 1;
        if let Some(length) = self.payload_length() {
            self.payload_left = length;
            self.header_len = 0;
        }
        1
    }

    /// The payload's length, once the header is complete.
    fn payload_length(&self) -> Option<u64> {
        let header = &self.header[..self.header_len];
        let second = *header.get(1)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, size) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)), 4),
            127 => (u64::from_be_bytes(header.get(2..10)?.try_into().ok()?), 10),
            short => (u64::from(short), 2),
        };
        (header.len() == size + mask).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(u8::try_from(length).unwrap()),
            126..=65_535 => {
                frame.push(126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(std::iter::repeat_n(7, length));
        frame
    }

    proptest! {
        /// However the bytes come, the close frame stands between two frames, and nothing follows it.
        #[test]
        fn a_close_stands_at_a_boundary(
            lengths in prop::collection::vec(prop_oneof![0..200_usize, 60_000..70_000_usize], 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            asked in any::<prop::sample::Index>(),
        ) {
            let frames: Vec<Vec<u8>> = lengths.iter().map(|length| frame(*length)).collect();
            let all = frames.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len())).collect();
            let asked = asked.index(all.len());
            cuts.extend([0, asked, all.len()]);
            cuts.sort_unstable();
            let (mut parser, mut sent) = (Frames::default(), Vec::new());
            for piece in cuts.windows(2) {
                if piece[0] == asked {
                    parser.close();
                }
                sent.extend(parser.pass(Bytes::copy_from_slice(&all[piece[0]..piece[1]])));
            }
            sent.extend(parser.take_close().into_iter().flatten());
            let boundaries: Vec<usize> = frames.iter().scan(0, |at, frame| {
                *at += frame.len();
                Some(*at)
            }).collect();
            let end = if asked == 0 { 0 } else { *boundaries.iter().find(|end| **end >= asked).unwrap() };
            prop_assert_eq!(&sent[..end], &all[..end]);
            prop_assert_eq!(&sent[end..], CLOSE);
        }
    }
}
