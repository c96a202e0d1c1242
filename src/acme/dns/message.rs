//! The few messages of the DNS that are needed: questions and dynamic updates are written, answers are read (RFC 1035
//! section 4, RFC 2136 sections 2 and 3).

use std::ops::Range;

use super::name::DnsName;

const HEADER_BYTES: usize = 12;
const CLASS_IN: u16 = 1;
const CLASS_NONE: u16 = 254;
pub(super) const CLASS_ANY: u16 = 255;
pub(super) const TYPE_CNAME: u16 = 5;
pub(super) const TYPE_SOA: u16 = 6;
pub(super) const TYPE_TXT: u16 = 16;
pub(super) const TYPE_TSIG: u16 = 250;

const OPCODE_UPDATE: u16 = 5 << 11;
const OPCODE_MASK: u16 = 0xf << 11;
const IS_ANSWER: u16 = 1 << 15;
const IS_AUTHORITATIVE: u16 = 1 << 10;
const CODE_MASK: u16 = 0xf;

/// Labels and pointers that a name may take: it has no more than 127 labels, and pointers may lead around in a ring.
const NAME_STEPS_MAX: usize = 256;

/// Where the count of additional records stands.
const ADDITIONAL_AT: usize = 10;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// With a time to live, in seconds.
    Add(u32),
    /// The one that has this value; no other at its name.
    Delete,
}

/// Not a message of the DNS, or not one that answers what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::acme) struct Malformed(pub(super) &'static str);

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    flags: u16,
    pub(super) answers: Vec<Resource>,
    pub(super) authority: Vec<Resource>,
    /// The last record, if it is a signature.
    pub(super) signature: Option<Resource>,
}

/// A resource record.
#[derive(Debug)]
pub(super) struct Resource {
    /// Where it begins.
    pub(super) at: usize,
    pub(super) name: DnsName,
    pub(super) kind: u16,
    pub(super) data: Range<usize>,
}

/// Reads one field after the other.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Asks for the records of type `kind` that `name` has.
pub(super) fn question(id: u16, name: &DnsName, kind: u16) -> Vec<u8> {
    let mut message = header(id, 0, [1, 0, 0, 0]);
    put_question(&mut message, name, kind);
    message
}

/// Has `zone` changed by the TXT record `value` at `name`; `None` if that is too long for a record.
pub(super) fn update(
    id: u16,
    zone: &DnsName,
    change: Change,
    name: &DnsName,
    value: &str,
) -> Option<Vec<u8>> {
    let mut message = header(id, OPCODE_UPDATE, [1, 0, 1, 0]);
    put_question(&mut message, zone, TYPE_SOA);
    let (class, ttl) = match change {
        Change::Add(ttl) => (CLASS_IN, ttl),
        Change::Delete => (CLASS_NONE, 0),
    };
    let data = text_of(value);
    message.extend(name.as_wire());
    message.extend(TYPE_TXT.to_be_bytes());
    message.extend(class.to_be_bytes());
    message.extend(ttl.to_be_bytes());
    message.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
    message.extend(data);
    Some(message)
}

/// `value` as a TXT record has it: in strings of up to 255 octets.
pub(super) fn text_of(value: &str) -> Vec<u8> {
    let strings = value.as_bytes().chunks(usize::from(u8::MAX));
    strings.flat_map(|string| u8::try_from(string.len()).into_iter().chain(string.iter().copied())).collect()
}

/// Changes the count of additional records by one.
pub(super) fn count_additional(message: &mut [u8], count: impl FnOnce(u16) -> u16) {
    if let Some([high, low]) = message.get_mut(ADDITIONAL_AT..HEADER_BYTES) {
        [*high, *low] = count(u16::from_be_bytes([*high, *low])).to_be_bytes();
    }
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    [id, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect()
}

fn put_question(message: &mut Vec<u8>, name: &DnsName, kind: u16) {
    message.extend(name.as_wire());
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
}

impl Answer {
    /// Reads the answer to `request`.
    pub(super) fn read(bytes: Vec<u8>, request: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes: &bytes, at: 0 };
        let mut asked = Reader { bytes: request, at: 0 };
        let (id, flags) = (reader.u16()?, reader.u16()?);
        if id != asked.u16()? || flags & IS_ANSWER == 0 || flags & OPCODE_MASK != asked.u16()? & OPCODE_MASK {
            return Err(Malformed("it answers something else"));
        }
        let [questions, answers, authority, additional] =
            [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        for _ in 0..questions {
            reader.name()?;
            reader.take(4)?;
        }
        let answers = reader.resources(answers)?;
        let authority = reader.resources(authority)?;
        let mut additional = reader.resources(additional)?;
        if reader.at != bytes.len() {
            return Err(Malformed("something follows its last record"));
        }
        let signature = additional.pop_if(|last| last.kind == TYPE_TSIG);
        Ok(Self { bytes, flags, answers, authority, signature })
    }

    pub(super) fn code(&self) -> u16 {
        self.flags & CODE_MASK
    }

    pub(super) fn is_authoritative(&self) -> bool {
        self.flags & IS_AUTHORITATIVE != 0
    }

    pub(super) fn data(&self, resource: &Resource) -> &[u8] {
        self.bytes.get(resource.data.clone()).unwrap_or_default()
    }
}

impl<'a> Reader<'a> {
    /// Reads the data of `resource`.
    pub(super) fn of(answer: &'a Answer, resource: &Resource) -> Self {
        Self { bytes: &answer.bytes, at: resource.data.start }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count));
        self.at += count;
        taken.ok_or(Malformed("it ends too early"))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(self.take(2)?.iter().fold(0, |value, byte| value << 8 | u16::from(*byte)))
    }

    /// Of six octets.
    pub(super) fn u48(&mut self) -> Result<u64, Malformed> {
        Ok(self.take(6)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A name, perhaps compressed (RFC 1035 section 4.1.4).
    pub(super) fn name(&mut self) -> Result<DnsName, Malformed> {
        let mut labels = Vec::new();
        let mut reader = self.clone();
        let mut end = None;
        for _ in 0..NAME_STEPS_MAX {
            let length = reader.take(1)?[0];
            match length >> 6 {
                0 if length == 0 => {
                    self.at = end.unwrap_or(reader.at);
                    return DnsName::of_labels(labels).map_err(Malformed);
                }
                0 => labels.push(reader.take(usize::from(length))?),
                0b11 => {
                    let to = usize::from(length & 0x3f) << 8 | usize::from(reader.take(1)?[0]);
                    end.get_or_insert(reader.at);
                    reader.at = to;
                }
                _ => return Err(Malformed("a name has a label of no known kind")),
            }
        }
        Err(Malformed("a name has no end"))
    }

    fn resources(&mut self, count: u16) -> Result<Vec<Resource>, Malformed> {
        (0..count).map(|_| self.resource()).collect()
    }

    fn resource(&mut self) -> Result<Resource, Malformed> {
        let at = self.at;
        let name = self.name()?;
        let kind = self.u16()?;
        // Class and time to live say nothing that is needed.
        self.take(6)?;
        let length = usize::from(self.u16()?);
        let data = self.at..self.at + length;
        self.take(length)?;
        Ok(Resource { at, name, kind, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    /// What answers `request` with these records, each a name, a type and data.
    fn answer(request: &[u8], flags: u16, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let count = u16::try_from(records.len()).unwrap();
        let id = u16::from_be_bytes([request[0], request[1]]);
        let mut bytes = header(id, IS_ANSWER | flags, [0, count, 0, 0]);
        for (name, kind, data) in records {
            bytes.extend(*name);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 0, 60]);
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn an_update_is_what_the_standard_says() {
        let update = |change| update(0x1234, &name("a.test"), change, &name("_x.a.test"), "v").unwrap();
        let head = b"\x12\x34\x28\x00\x00\x01\x00\x00\x00\x01\x00\x00\x01a\x04test\x00\x00\x06\x00\x01";
        let (added, deleted) = (update(Change::Add(60)), update(Change::Delete));
        assert_eq!(
            added,
            [&head[..], b"\x02_x\x01a\x04test\x00\x00\x10\x00\x01\x00\x00\x00\x3c\x00\x02\x01v"].concat()
        );
        // Of class NONE (RFC 2136 section 2.5.4): this one record.
        assert_eq!(
            deleted,
            [&head[..], b"\x02_x\x01a\x04test\x00\x00\x10\x00\xfe\x00\x00\x00\x00\x00\x02\x01v"].concat()
        );
    }

    #[test]
    fn a_value_is_in_strings_of_255_octets_and_no_longer_than_a_record() {
        let text = text_of(&"v".repeat(300));
        assert_eq!((text[0], text[256], text.len()), (255, 45, 302));
        assert_eq!(update(0, &name("a"), Change::Delete, &name("b.a"), &"v".repeat(70_000)), None);
    }

    #[test]
    fn names_are_read_by_their_pointers() {
        let request = question(7, &name("x.a.test"), TYPE_TXT);
        let bytes = answer(
            &request,
            IS_AUTHORITATIVE | 3,
            &[(b"\x01A\x04tesT\0", 1, b""), (b"\x01x\xc0\x0c", TYPE_TXT, b"\x01v")],
        );
        let read = Answer::read(bytes, &request).unwrap();
        let names: Vec<_> = read.answers.iter().map(|found| found.name.to_string()).collect();
        assert_eq!(names, ["a.test", "x.a.test"]);
        assert_eq!(read.data(&read.answers[1]), b"\x01v");
        assert_eq!((read.code(), read.is_authoritative()), (3, true));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let request = question(7, &name("a.test"), TYPE_TXT);
        let good = answer(&request, 0, &[(b"\x01a\0", TYPE_TXT, b"\x01v")]);
        assert!(Answer::read(good.clone(), &request).is_ok());
        let other = update(7, &name("a"), Change::Delete, &name("a"), "v").unwrap();
        let mut unasked = good.clone();
        unasked[1] = 8;
        let mut question_itself = good.clone();
        question_itself[2] = 0;
        let ring = answer(&request, 0, &[(b"\xc0\x0c", TYPE_TXT, b"")]);
        let ring_of_two = answer(&request, 0, &[(b"\x01a\xc0\x0c", TYPE_TXT, b"")]);
        let beyond = answer(&request, 0, &[(b"\xff\xff", TYPE_TXT, b"")]);
        let no_label = answer(&request, 0, &[(b"\x41aaaa\0", TYPE_TXT, b"")]);
        let behind = [&good[..], b"x"].concat();
        for (what, bytes) in [
            ("another id", unasked),
            ("no answer", question_itself),
            ("a ring", ring),
            ("a ring with a label", ring_of_two),
            ("a pointer beyond the end", beyond),
            ("a label of another kind", no_label),
            ("something behind it", behind),
        ] {
            assert!(Answer::read(bytes, &request).is_err(), "{what}");
        }
        assert!(Answer::read(good.clone(), &other).is_err(), "it answers no update");
        for end in 0..good.len() {
            assert!(Answer::read(good[..end].to_vec(), &request).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..200), is_near in any::<bool>()) {
            let request = question(7, &name("a.test"), TYPE_TXT);
            if is_near && bytes.len() > 12 {
                bytes[..12].copy_from_slice(&[0, 7, 0x84, 0, 0, 1, 0, 2, 0, 1, 0, 1]);
            }
            if let Ok(answer) = Answer::read(bytes, &request) {
                for found in answer.answers.iter().chain(&answer.authority).chain(&answer.signature) {
                    answer.data(found);
                }
            }
        }

        #[test]
        fn what_is_in_an_answer_is_read_as_it_was_written(
            records in prop::collection::vec(("([a-z0-9]{1,9}[.]){0,4}test", 0_u16..300, prop::collection::vec(any::<u8>(), 0..40)), 0..9)
        ) {
            let request = question(7, &name("a.test"), TYPE_TXT);
            let names: Vec<_> = records.iter().map(|(text, ..)| name(text)).collect();
            let written: Vec<_> = records.iter().zip(&names).map(|((_, kind, data), name)| (name.as_wire(), *kind, data.as_slice())).collect();
            let read = Answer::read(answer(&request, 0, &written), &request).unwrap();
            let found: Vec<_> = read.answers.iter().map(|found| (found.name.as_wire(), found.kind, read.data(found))).collect();
            prop_assert_eq!(found, written);
        }
    }
}
