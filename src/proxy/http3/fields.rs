//! The pseudo-headers of a field section as they were written, which h3 does not tell: of two the last counts there, and where
//! they stand is nothing to it (RFC 9114 section 4.3). Nor does it know all protocols of an extended CONNECT. Sections are encoded by QPACK without a table of their own (RFC 9204).

use std::ops::Range;

/// The pseudo-headers that a section has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pseudo(u8);

/// What a request's head begins with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) pseudo: Pseudo,
    /// Where in the section `:protocol` stands.
    pub(super) protocol: Option<Range<usize>>,
}

/// Why a section is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It says what no request does.
    Malformed,
    /// Nobody can say what it says.
    Undecodable,
}

impl Pseudo {
    pub(super) const METHOD: Self = Self(1);
    pub(super) const SCHEME: Self = Self(2);
    pub(super) const AUTHORITY: Self = Self(4);
    pub(super) const PATH: Self = Self(8);
    pub(super) const PROTOCOL: Self = Self(16);
    /// The protocol is that of WebSockets.
    pub(super) const WEBSOCKET: Self = Self(32);

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Head {
    /// Each pseudo-header is there once, and before all other fields.
    pub(super) fn of(section: &[u8]) -> Result<Self, Refused> {
        let (mut head, mut is_behind) = (Self::default(), false);
        for_each_line(section, |line| {
            let Some(pseudo) = line.name.pseudo()? else {
                is_behind = true;
                return Ok(());
            };
            if is_behind || head.pseudo.has(pseudo) {
                return Err(Refused::Malformed);
            }
            head.pseudo.add(pseudo);
            if pseudo == Pseudo::PROTOCOL {
                head.protocol = Some(line.at);
                if line.value.is_some_and(Text::is_websocket) {
                    head.pseudo.add(Pseudo::WEBSOCKET);
                }
            }
            Ok(())
        })?;
        Ok(head)
    }
}

/// Trailers have no pseudo-headers.
pub(super) fn check_trailers(section: &[u8]) -> Result<(), Refused> {
    for_each_line(section, |line| line.name.pseudo()?.map_or(Ok(()), |_| Err(Refused::Malformed)))
}

/// One field.
struct Line<'a> {
    name: Name<'a>,
    /// `None`: that of the static table.
    value: Option<Text<'a>>,
    at: Range<usize>,
}

enum Name<'a> {
    /// That one of the static table.
    Static(u64),
    Written(Text<'a>),
}

/// As it is written.
#[derive(Clone, Copy)]
enum Text<'a> {
    Plain(&'a [u8]),
    Huffman(&'a [u8]),
}

/// The names of pseudo-headers, and what Huffman's code makes of them (RFC 7541 appendix B).
const NAMES: [(Pseudo, &[u8], &[u8]); 5] = [
    (Pseudo::METHOD, b":method", &[0xb9, 0x49, 0x53, 0x39, 0xe4]),
    (Pseudo::SCHEME, b":scheme", &[0xb8, 0x82, 0x4e, 0x5a, 0x4b]),
    (Pseudo::AUTHORITY, b":authority", &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]),
    (Pseudo::PATH, b":path", &[0xb9, 0x58, 0xd3, 0x3f]),
    (Pseudo::PROTOCOL, b":protocol", &[0xb9, 0x5d, 0x87, 0x49, 0xc8, 0x7a, 0x3f]),
];

/// `websocket`
const WEBSOCKET: [u8; 7] = [0xf0, 0x58, 0xd0, 0x72, 0x75, 0x2a, 0x7f];

/// The seven bits by which a colon begins in Huffman's code.
const COLON: u8 = 0x5c;

impl Name<'_> {
    /// `None` if it is a field like others. A pseudo-header that no request has is malformed, however it is written.
    fn pseudo(&self) -> Result<Option<Pseudo>, Refused> {
        let named = match self {
            Self::Static(0) => Some(Pseudo::AUTHORITY),
            Self::Static(1) => Some(Pseudo::PATH),
            Self::Static(15..=21) => Some(Pseudo::METHOD),
            Self::Static(22 | 23) => Some(Pseudo::SCHEME),
            // `:status`
            Self::Static(24..=28 | 63..=71) => None,
            Self::Written(name) if name.begins_with_colon() => name.pseudo(),
            Self::Static(_) | Self::Written(_) => return Ok(None),
        };
        named.map(Some).ok_or(Refused::Malformed)
    }
}

impl Text<'_> {
    fn begins_with_colon(self) -> bool {
        match self {
            Self::Plain(name) => name.first() == Some(&b':'),
            Self::Huffman(name) => name.first().is_some_and(|first| first >> 1 == COLON),
        }
    }

    fn pseudo(self) -> Option<Pseudo> {
        let named = NAMES.iter().find(|(_, plain, huffman)| self.is(plain, huffman));
        named.map(|(pseudo, ..)| *pseudo)
    }

    fn is_websocket(self) -> bool {
        self.is(b"websocket", &WEBSOCKET)
    }

    fn is(self, plain: &[u8], huffman: &[u8]) -> bool {
        match self {
            Self::Plain(text) => text == plain,
            Self::Huffman(text) => text == huffman,
        }
    }
}

/// Goes through the lines of a section (RFC 9204 section 4.5).
fn for_each_line(
    section: &[u8],
    mut look: impl FnMut(Line<'_>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut left = section;
    let rest = &mut left;
    // How much of a table has to be there, and from where it is counted.
    if integer(rest, 8)? != 0 {
        return Err(Refused::Undecodable);
    }
    integer(rest, 7)?;
    while let Some(first) = rest.first().copied() {
        let from = section.len() - rest.len();
        let is_static = match first {
            0x80.. => first & 0x40 != 0,
            0x40..0x80 => first & 0x10 != 0,
            0x20..0x40 => true,
            _ => false,
        };
        if !is_static {
            // There is no other table.
            return Err(Refused::Undecodable);
        }
        let name = match first {
            0x80.. => Name::Static(integer(rest, 6)?),
            0x40..0x80 => Name::Static(integer(rest, 4)?),
            _ => Name::Written(text(rest, 3)?),
        };
        let value = if first < 0x80 { Some(text(rest, 7)?) } else { None };
        look(Line { name, value, at: from..section.len() - rest.len() })?;
    }
    Ok(())
}

/// A string whose length begins in the last `bits` of the first byte; how it is written stands before them.
fn text<'a>(rest: &mut &'a [u8], bits: u32) -> Result<Text<'a>, Refused> {
    let is_huffman = rest.first().is_some_and(|first| first & 1 << bits != 0);
    let length = integer(rest, bits)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
    let (text, behind) = rest.split_at(length.ok_or(Refused::Undecodable)?);
    *rest = behind;
    Ok(if is_huffman { Text::Huffman(text) } else { Text::Plain(text) })
}

/// An integer that begins in the last `bits` of the first byte (RFC 7541 section 5.1). More than 32 bits are nothing that a
/// section could have.
fn integer(rest: &mut &[u8], bits: u32) -> Result<u64, Refused> {
    let mut next = || {
        let (first, behind) = rest.split_first().ok_or(Refused::Undecodable)?;
        *rest = behind;
        Ok(u64::from(*first))
    };
    let most = (1 << bits) - 1;
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21, 28] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Refused::Undecodable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: u8 = 0x20;
    const HUFFMAN: u8 = 0x28;

    /// A line whose name is written out.
    fn line(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut line = vec![kind | u8::try_from(name.len().min(7)).unwrap()];
        if name.len() >= 7 {
            line.push(u8::try_from(name.len() - 7).unwrap());
        }
        line.extend(name);
        line.push(u8::try_from(value.len()).unwrap());
        line.extend(value);
        line
    }

    fn section(lines: &[&[u8]]) -> Vec<u8> {
        [&[0, 0][..], &lines.concat()].concat()
    }

    fn pseudo_of(section: &[u8]) -> Result<Pseudo, Refused> {
        Head::of(section).map(|head| head.pseudo)
    }

    #[test]
    fn a_protocol_is_found_where_it_stands() {
        for (written, is_websocket) in [
            (line(PLAIN, b":protocol", b"websocket"), true),
            (line(HUFFMAN, NAMES[4].2, b"websocket"), true),
            (line(PLAIN, b":protocol", b"webtransport"), false),
            (line(PLAIN, b":protocol", b"Websocket"), false),
        ] {
            let head = Head::of(&section(&[&[0xc1], &written, &[0xc0 | 17]])).unwrap();
            assert_eq!(head.protocol, Some(3..3 + written.len()), "{written:x?}");
            assert_eq!(head.pseudo.has(Pseudo::WEBSOCKET), is_websocket, "{written:x?}");
        }
        let huffman = [&[0x27, 2][..], b":protocol", &[0x80 | 7], &WEBSOCKET].concat();
        let head = Head::of(&section(&[&huffman])).unwrap();
        assert!(head.pseudo.has(Pseudo::WEBSOCKET));
    }

    #[test]
    fn a_pseudo_header_is_known_however_it_is_written() {
        let names = [
            (Pseudo::METHOD, vec![0xc0 | 17], vec![0x5f, 0, 3, b'G', b'E', b'T']),
            (Pseudo::SCHEME, vec![0xc0 | 23], vec![0x5f, 7, 5, b'h', b't', b't', b'p', b's']),
            (Pseudo::AUTHORITY, vec![0xc0], vec![0x50, 1, b'a']),
            (Pseudo::PATH, vec![0xc1], vec![0x71, 1, b'/']),
        ];
        for (pseudo, indexed, referred) in names {
            let (_, plain, huffman) = NAMES.iter().find(|(named, ..)| *named == pseudo).unwrap();
            let all = [indexed, referred, line(PLAIN, plain, b"x"), line(HUFFMAN, huffman, b"x")];
            for first in &all {
                assert_eq!(pseudo_of(&section(&[first])), Ok(pseudo), "{first:x?}");
                for second in &all {
                    let twice = pseudo_of(&section(&[first, second]));
                    assert_eq!(twice, Err(Refused::Malformed), "{first:x?} {second:x?}");
                }
                let late = section(&[&line(PLAIN, b"x", b"y"), first]);
                assert_eq!(pseudo_of(&late), Err(Refused::Malformed), "{first:x?}");
                assert_eq!(check_trailers(&section(&[first])), Err(Refused::Malformed), "{first:x?}");
            }
        }
    }

    #[test]
    fn a_pseudo_header_that_no_request_has_is_malformed() {
        // `:status`, and one whose end is not filled up as it has to be.
        let status = [0xb8, 0x84, 0x8d, 0x36, 0xa3];
        let filled = [0xb9, 0x58, 0xd3, 0x30];
        for line in [
            vec![0xc0 | 25],
            vec![0xff, 0],
            line(PLAIN, b":status", b"200"),
            line(PLAIN, b":", b""),
            line(HUFFMAN, &status, b"200"),
            line(HUFFMAN, &filled, b"/"),
        ] {
            assert_eq!(pseudo_of(&section(&[&line])), Err(Refused::Malformed), "{line:x?}");
        }
    }

    #[test]
    fn other_fields_are_none_and_what_cannot_be_read_is_refused() {
        // `accept: */*`, `user-agent` by its place, and both kinds of literals: Huffman's `x` is 1111001.
        let fields = [&[0xc0 | 29][..], &[0x5f, 80, 1, b'x'], &[0x21, b'x', 0], &[0x29, 0xf3, 0x81, 0xf3]];
        assert_eq!(pseudo_of(&section(&fields)), Ok(Pseudo::default()));
        assert_eq!(check_trailers(&section(&fields)), Ok(()));
        for lines in [
            // Of a table that is not there.
            &[0x80][..],
            &[0x40, 0],
            &[0x10],
            &[0x00, 0],
            // Cut short, or longer than anything.
            &[0x5f],
            &[0x5f, 0],
            &[0x5f, 0, 3, b'G'],
            &[0x23, b'x'],
            &[0x21, b'x', 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(pseudo_of(&section(&[lines])), Err(Refused::Undecodable), "{lines:x?}");
        }
        for prefix in [&[][..], &[0], &[1, 0]] {
            assert_eq!(pseudo_of(prefix), Err(Refused::Undecodable), "{prefix:x?}");
        }
    }

    #[test]
    fn names_are_as_huffman_writes_them() {
        let code = |letter| match letter {
            b':' => (0x5c, 7),
            b'a' => (0x3, 5),
            b'b' => (0x23, 6),
            b'c' => (0x4, 5),
            b'd' => (0x24, 6),
            b'e' => (0x5, 5),
            b'h' => (0x27, 6),
            b'i' => (0x6, 5),
            b'k' => (0x75, 7),
            b'l' => (0x28, 6),
            b'm' => (0x29, 6),
            b'o' => (0x7, 5),
            b'p' => (0x2b, 6),
            b'r' => (0x2c, 6),
            b's' => (0x8, 5),
            b't' => (0x9, 5),
            b'u' => (0x2d, 6),
            b'w' => (0x78, 7),
            b'y' => (0x7a, 7),
            other => panic!("{other}"),
        };
        let websocket: (_, &[u8], &[u8]) = (Pseudo::WEBSOCKET, b"websocket", &WEBSOCKET);
        for (_, plain, huffman) in NAMES.into_iter().chain([websocket]) {
            let (mut bits, mut length) = (0_u128, 0);
            for letter in plain {
                let (code, of) = code(*letter);
                (bits, length) = (bits << of | code, length + of);
            }
            let fill = (8 - length % 8) % 8;
            let written = (bits << fill | ((1 << fill) - 1)).to_be_bytes();
            assert_eq!(&written[16 - (length + fill) / 8..], huffman, "{plain:?}");
        }
    }
}
