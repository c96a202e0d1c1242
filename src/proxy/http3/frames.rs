//! Follows the frames of one request as they are read, because h3 holds back whole ones however large they say that they are
//! (RFC 9114 section 7.1), and does not tell of field sections what they begin with.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::fields::{Head, Pseudo, Refused, check_trailers};

/// The largest frame that is not data: as much as a list of header fields may have.
const FRAME_MAX: u64 = crate::proxy::http2::HEADER_LIST as u64;

/// Frames in a row that bring nothing: each costs more to read than to send.
const EMPTY_MAX: u32 = 100;

const DATA: u64 = 0;
const HEADERS: u64 = 1;

/// What frames are where in what was read.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The frame that is being read, of which its beginning is known.
    payload: Payload,
    /// The beginning of one that is looked at once more is there.
    held: BytesMut,
    /// How much of it has to be there before it is looked at once more: it may come a byte at a time.
    wanted: usize,
    /// Frames since the last that brought data.
    empty: u32,
    /// The request's head has come.
    has_head: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Payload {
    is_data: bool,
    left: u64,
}

/// What was read, once it was looked at.
#[derive(Debug)]
pub(super) struct Followed {
    /// What h3 may see of it by now.
    pub(super) pass: Bytes,
    /// How much of that is data.
    pub(super) data: u64,
    /// The request's head has come, with these pseudo-headers.
    pub(super) head: Option<Pseudo>,
}

/// Why a request is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Excess(Excess),
    Section(Refused),
}

/// More than anybody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Excess;

/// A `:protocol` that h3 does not get to see: it refuses those that it does not know.
struct Cut {
    frame: Range<usize>,
    /// How much of the frame is its section.
    section: usize,
    /// Where in the section it stands.
    protocol: Range<usize>,
}

/// How a frame begins.
struct Beginning {
    kind: u64,
    length: u64,
    /// Bytes that say so.
    bytes: usize,
}

impl Frames {
    /// Goes on with what was read. A field section is passed on whole: h3 does not begin with one before.
    pub(super) fn follow(&mut self, read: Bytes) -> Result<Followed, Fault> {
        let read = match self.held.is_empty() {
            true => read,
            false => {
                self.held.extend_from_slice(&read);
                if self.held.len() < self.wanted {
                    return Ok(Followed { pass: Bytes::new(), data: 0, head: None });
                }
                std::mem::take(&mut self.held).freeze()
            }
        };
        let (mut at, mut data, mut head, mut cut) = (0, 0, None, None);
        while at < read.len() {
            let rest = &read[at..];
            if self.payload.left > 0 {
                let there = usize::try_from(self.payload.left).unwrap_or(usize::MAX).min(rest.len());
                self.payload.left -= there as u64;
                if self.payload.is_data {
                    data += there as u64;
                    self.empty = 0;
                }
                at += there;
                continue;
            }
            let section = match Beginning::of(rest) {
                None => {
                    self.wanted = rest.len() + 1;
                    None
                }
                Some(Beginning { kind, length, .. }) if kind != DATA && length > FRAME_MAX => {
                    return Err(Excess.into());
                }
                Some(Beginning { kind: HEADERS, length, bytes }) => {
                    self.wanted = bytes + usize::try_from(length).map_err(|_too_long| Excess)?;
                    rest.get(bytes..self.wanted)
                }
                Some(Beginning { kind, length, bytes }) => {
                    self.payload = Payload { is_data: kind == DATA, left: length };
                    at += bytes;
                    self.count()?;
                    continue;
                }
            };
            let Some(section) = section else {
                self.held = BytesMut::from(rest);
                break;
            };
            let from = at;
            at += section.as_ptr().addr() - rest.as_ptr().addr() + section.len();
            self.count()?;
            if std::mem::replace(&mut self.has_head, true) {
                check_trailers(section)?;
                continue;
            }
            let Head { pseudo, protocol } = Head::of(section)?;
            head = Some(pseudo);
            cut = protocol.map(|protocol| Cut { frame: from..at, section: section.len(), protocol });
        }
        let pass = read.slice(..at);
        Ok(Followed { pass: cut.map_or_else(|| pass.clone(), |cut| cut.out_of(&pass)), data, head })
    }

    /// Whether a stream may end here.
    pub(super) fn is_between(&self) -> bool {
        self.payload.left == 0 && self.held.is_empty()
    }

    /// One more.
    fn count(&mut self) -> Result<(), Excess> {
        self.empty += 1;
        if self.empty > EMPTY_MAX { Err(Excess) } else { Ok(()) }
    }
}

impl Cut {
    /// What was read, without it.
    fn out_of(self, read: &[u8]) -> Bytes {
        let (before, behind) = (&read[..self.frame.start], &read[self.frame.end..]);
        let section = &read[self.frame.end - self.section..self.frame.end];
        let (first, rest) = (&section[..self.protocol.start], &section[self.protocol.end..]);
        let mut written = BytesMut::with_capacity(read.len() + 4);
        written.extend_from_slice(before);
        written.extend_from_slice(&HEADERS.to_be_bytes()[7..]);
        // As one of four bytes (RFC 9000 section 16); a section is no larger than [`FRAME_MAX`].
        let length = (first.len() + rest.len()) as u64;
        written.extend_from_slice(&(0x8000_0000 | length).to_be_bytes()[4..]);
        for part in [first, rest, behind] {
            written.extend_from_slice(part);
        }
        written.freeze()
    }
}

impl Beginning {
    /// `None` if it has not come whole.
    fn of(read: &[u8]) -> Option<Self> {
        let (kind, rest) = number(read)?;
        let (length, rest) = number(rest)?;
        Some(Self { kind, length, bytes: read.len() - rest.len() })
    }
}

/// A number of QUIC's, and what is behind it (RFC 9000 section 16).
fn number(read: &[u8]) -> Option<(u64, &[u8])> {
    let length = 1 << (read.first()? >> 6);
    let (number, rest) = read.split_at_checked(length)?;
    let first = u64::from(number[0] & 0x3f);
    Some((number[1..].iter().fold(first, |value, byte| value << 8 | u64::from(*byte)), rest))
}

impl From<Excess> for Fault {
    fn from(excess: Excess) -> Self {
        Self::Excess(excess)
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        Self::Section(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a kind that nobody knows.
    const UNKNOWN: u8 = 0x21;
    const HEADERS: u8 = 1;

    const EXCESS: Fault = Fault::Excess(Excess);

    fn follow(frames: &mut Frames, read: &[u8]) -> Result<Followed, Fault> {
        frames.follow(Bytes::copy_from_slice(read))
    }

    fn data(frames: &mut Frames, read: &[u8]) -> Result<u64, Fault> {
        follow(frames, read).map(|followed| followed.data)
    }

    #[test]
    fn data_is_told_from_the_rest_however_it_is_cut_and_all_of_it_is_passed_on() {
        // The head is `:path`; its trailers are none.
        let frames = [
            &[HEADERS, 3, 0, 0, 0xc1, 0, 3][..],
            b"abc",
            &[UNKNOWN, 1, 7, 0, 0x40, 2],
            b"de",
            &[0x40, HEADERS, 2, 0, 0],
        ];
        let whole = frames.concat();
        for at in 0..whole.len() {
            let mut frames = Frames::default();
            let (first, rest) = whole.split_at(at);
            let parts = [follow(&mut frames, first).unwrap(), follow(&mut frames, rest).unwrap()];
            let data: u64 = parts.iter().map(|part| part.data).sum();
            let passed: Vec<u8> = parts.iter().flat_map(|part| part.pass.to_vec()).collect();
            assert_eq!((data, frames.is_between(), passed), (5, true, whole.clone()), "cut at {at}");
            let heads: Vec<Pseudo> = parts.iter().filter_map(|part| part.head).collect();
            assert_eq!(heads, [Pseudo::PATH], "cut at {at}");
        }
        let mut frames = Frames::default();
        let parts: Vec<_> = whole.iter().map(|byte| follow(&mut frames, &[*byte]).unwrap()).collect();
        let passed: Vec<u8> = parts.iter().flat_map(|part| part.pass.to_vec()).collect();
        let heads: Vec<Pseudo> = parts.iter().filter_map(|part| part.head).collect();
        assert_eq!((passed, heads, frames.is_between()), (whole, vec![Pseudo::PATH], true), "byte by byte");
    }

    /// Fixed fault: each piece of a section cost a copy of all before it.
    #[test]
    fn a_section_that_comes_in_pieces_is_looked_at_once_it_is_whole() {
        let mut frames = Frames::default();
        follow(&mut frames, &[HEADERS, 0x40, 200, 0, 0]).unwrap();
        assert_eq!(frames.wanted, 203);
        // With room for all of it there is no reason to copy what is there.
        frames.held.reserve(203);
        let place = frames.held.as_ptr();
        for _ in 0..100 {
            assert!(follow(&mut frames, &[0xc1]).unwrap().pass.is_empty());
            assert_eq!(frames.held.as_ptr(), place, "it was copied");
        }
        assert_eq!((frames.held.len(), frames.wanted), (105, 203));
    }

    #[test]
    fn a_section_is_looked_at_before_anything_of_it_is_passed_on() {
        let mut frames = Frames::default();
        // `:path` twice.
        let followed = follow(&mut frames, &[UNKNOWN, 0, HEADERS, 4, 0, 0, 0xc1]).unwrap();
        assert_eq!((&followed.pass[..], frames.is_between()), (&[UNKNOWN, 0][..], false));
        assert_eq!(data(&mut frames, &[0xc1]), Err(Fault::Section(Refused::Malformed)));
        let mut frames = Frames::default();
        assert_eq!(data(&mut frames, &[HEADERS, 1, 0]), Err(Fault::Section(Refused::Undecodable)));
        // In trailers.
        let trailers = &[HEADERS, 2, 0, 0, HEADERS, 3, 0, 0, 0xc1];
        assert_eq!(data(&mut Frames::default(), trailers), Err(Fault::Section(Refused::Malformed)));
    }

    #[test]
    fn a_protocol_is_kept_from_h3() {
        let protocol = [&[0x27, 2][..], b":protocol", &[9], b"websocket"].concat();
        let length = u8::try_from(3 + protocol.len() + 1).unwrap();
        let head = [&[UNKNOWN, 0, HEADERS, length, 0, 0, 0xc1][..], &protocol, &[0xc0], &[0, 1, 7]].concat();
        for at in [0, 5, head.len() - 4] {
            let mut frames = Frames::default();
            let (first, rest) = head.split_at(at);
            let parts = [follow(&mut frames, first).unwrap(), follow(&mut frames, rest).unwrap()];
            let passed: Vec<u8> = parts.iter().flat_map(|part| part.pass.to_vec()).collect();
            assert_eq!(
                passed,
                [UNKNOWN, 0, HEADERS, 0x80, 0, 0, 4, 0, 0, 0xc1, 0xc0, 0, 1, 7],
                "cut at {at}"
            );
            assert!(parts[1].head.unwrap().has(Pseudo::WEBSOCKET));
            assert_eq!((parts[1].data, frames.is_between()), (1, true));
        }
    }

    #[test]
    fn an_end_in_the_middle_of_a_frame_is_seen() {
        for (read, ends) in [
            (&[][..], true),
            (&[0x40], false),
            (&[0], false),
            (&[0, 0x40], false),
            (&[0, 3, 1], false),
            (&[HEADERS, 3, 0], false),
            (&[0, 1, 1], true),
            (&[0, 0], true),
        ] {
            let mut frames = Frames::default();
            follow(&mut frames, read).unwrap();
            assert_eq!(frames.is_between(), ends, "{read:?}");
        }
    }

    #[test]
    fn a_frame_that_h3_would_hold_back_and_frames_that_bring_nothing_are_too_much() {
        // 1 GiB, of a head, of something unknown, and of data, which goes on as it comes.
        for (kind, expected) in [(HEADERS, Err(EXCESS)), (UNKNOWN, Err(EXCESS)), (0, Ok(0))] {
            assert_eq!(data(&mut Frames::default(), &[kind, 0xbf, 0, 0, 0]), expected, "{kind}");
        }
        for kind in [0, UNKNOWN] {
            let mut frames = Frames::default();
            let ended = (0..=EMPTY_MAX).find(|_| data(&mut frames, &[kind, 0]).is_err());
            assert_eq!(ended, Some(EMPTY_MAX));
        }
        let mut frames = Frames::default();
        for _ in 0..2 * EMPTY_MAX {
            assert_eq!(data(&mut frames, &[UNKNOWN, 0, 0, 1, 9]), Ok(1));
        }
    }
}
