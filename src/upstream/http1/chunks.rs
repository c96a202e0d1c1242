//! The chunked coding, read (RFC 9112 section 7.1).

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use crate::upstream::WireError;

use super::head;

/// Bytes of extensions that all chunks of one body may have together.
const EXTENSION_BYTES_MAX: usize = 4 * 1024;

/// Bytes of one size, with zeros before it and what pads it.
const SIZE_BYTES_MAX: usize = 256;

/// Bytes of trailers.
const TRAILER_BYTES_MAX: usize = 64 * 1024;

/// Where in a chunked body the next byte belongs.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    /// Of the size that is being read, or of the data that are to come.
    left: u64,
    extension_bytes: usize,
    /// Of the line that is being read, before its extensions.
    size_bytes: usize,
}

#[derive(Debug)]
enum At {
    /// Before the first digit of a size.
    Begin,
    Size,
    /// White space behind a size, which some pad it with.
    Padding,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers(BytesMut),
    End,
}

/// What came.
#[derive(Debug)]
pub(super) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Begin, left: 0, extension_bytes: 0, size_bytes: 0 }
    }
}

impl Chunks {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.at, At::End)
    }

    /// Takes the next part off `input`. `None` if all of it is taken, or the body has ended.
    ///
    /// # Errors
    /// If the body is malformed.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Part>, WireError> {
        loop {
            match &mut self.at {
                At::End => return Ok(None),
                At::Data if !input.is_empty() => {
                    let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                    self.left -= len as u64;
                    if self.left == 0 {
                        self.at = At::DataCr;
                    }
                    return Ok(Some(Part::Data(input.split_to(len))));
                }
                At::Trailers(came) => {
                    if !take_trailers(came, input)? {
                        return Ok(None);
                    }
                    let came = std::mem::take(came);
                    self.at = At::End;
                    // The empty line alone: there are none.
                    let trailers =
                        (came.len() > 2).then(|| head::read_trailers(&came.freeze())).transpose()?;
                    return Ok(trailers.map(Part::Trailers));
                }
                _ => {
                    let Some(byte) = input.first().copied() else { return Ok(None) };
                    input.advance(1);
                    self.step(byte)?;
                }
            }
        }
    }

    /// One byte of what stands around the data.
    fn step(&mut self, byte: u8) -> Result<(), WireError> {
        self.size_bytes = match self.at {
            At::Size | At::Padding => self.size_bytes + 1,
            _ => 0,
        };
        if self.size_bytes > SIZE_BYTES_MAX {
            return Err(WireError::Form("the size of a chunk"));
        }
        self.at = match (&self.at, byte) {
            (At::Begin | At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let size = self.left.checked_mul(16).and_then(|size| size.checked_add(digit));
                self.left = size.ok_or(WireError::Form("the size of a chunk"))?;
                At::Size
            }
            (At::Size | At::Padding, b' ' | b'\t') => At::Padding,
            (At::Size | At::Padding, b';') => At::Extension,
            (At::Extension, byte) if byte != b'\r' && byte != b'\n' => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(WireError::Form("the extensions of its chunks"));
                }
                At::Extension
            }
            (At::Size | At::Padding | At::Extension, b'\r') => At::SizeLf,
            (At::SizeLf, b'\n') if self.left == 0 => At::Trailers(BytesMut::new()),
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Begin,
            _ => return Err(WireError::Form("its chunks")),
        };
        Ok(())
    }
}

/// Moves trailers from `input` to what `came` before; whether they came whole.
fn take_trailers(came: &mut BytesMut, input: &mut Bytes) -> Result<bool, WireError> {
    while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
        came.extend_from_slice(&input.split_to(end + 1));
        if came[..] == b"\r\n"[..] || came.ends_with(b"\n\r\n") {
            return Ok(true);
        }
        if came.len() > TRAILER_BYTES_MAX {
            return Err(WireError::Form("its trailers"));
        }
    }
    came.extend_from_slice(input);
    input.clear();
    if came.len() > TRAILER_BYTES_MAX { Err(WireError::Form("its trailers")) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Came = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Reads `body`, which comes in pieces that end at `cuts`: its data, its trailers, and what is left behind it.
    fn read(body: &[u8], cuts: &[usize]) -> Result<Came, WireError> {
        let mut chunks = Chunks::default();
        let (mut data, mut trailers, mut rest) = (Vec::new(), None, Vec::new());
        let ends = cuts.iter().copied().chain([body.len()]);
        let mut from = 0;
        for end in ends {
            let mut input = Bytes::copy_from_slice(&body[from..end]);
            from = end;
            while let Some(part) = chunks.next(&mut input)? {
                match part {
                    Part::Data(part) => data.extend_from_slice(&part),
                    Part::Trailers(part) => trailers = Some(part),
                }
            }
            rest.extend_from_slice(&input);
            assert!(input.is_empty() || chunks.has_ended(), "what is not taken is behind the end");
        }
        if chunks.has_ended() { Ok((data, trailers, rest)) } else { Err(WireError::Ended) }
    }

    proptest! {
        #[test]
        fn a_body_is_the_same_wherever_it_is_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..5),
            extension in prop::sample::select(vec!["", ";a", ";a=b;c=\"d\"", "  ", "\t;x"]),
            trailers in prop::collection::vec("[a-z]{1,5}: [a-z]{0,5}", 0..3),
            zeros in 0..3_usize,
            rest in prop::collection::vec(any::<u8>(), 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend(format!("{}{:X}{extension}\r\n", "0".repeat(zeros), part.len()).bytes());
                body.extend(part);
                body.extend(b"\r\n");
            }
            body.extend(format!("0{}{extension}\r\n", "0".repeat(zeros)).bytes());
            trailers.iter().for_each(|trailer| body.extend(format!("{trailer}\r\n").bytes()));
            body.extend(b"\r\n");
            let whole = body.len();
            body.extend(&rest);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            cuts.sort_unstable();
            let (data, came, left) = read(&body, &cuts).unwrap();
            prop_assert_eq!(data, parts.concat());
            prop_assert_eq!(came.map_or(0, |came| came.len()), trailers.len());
            prop_assert_eq!(left, rest);
            // And a body that is cut short is no body.
            let short: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < whole - 1).collect();
            prop_assert!(read(&body[..whole - 1], &short).is_err());
        }

        #[test]
        fn nothing_brings_it_down(input in prop::collection::vec(any::<u8>(), 0..200)) {
            // Whatever comes of it.
            let _any = read(&input, &[]);
        }
    }

    #[test]
    fn what_is_not_a_chunk_is_refused() {
        for body in [
            "\r\n0\r\n\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "1 1\r\na\r\n0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1;\n\r\na\r\n0\r\n\r\n",
            "1\r\na\r\n0\r\nno field\r\n\r\n",
            "1\r\na\r\n0\r\nX : y\r\n\r\n",
            "10000000000000000\r\n",
            "fffffffffffffffff\r\n",
            "1\r\na\r\n0\r\n\n\r\n",
        ] {
            let error = read(body.as_bytes(), &[]).expect_err(body);
            assert!(!matches!(error, WireError::Ended), "{body:?} may go on");
        }
        for size in ["0".repeat(300) + "1", "1".to_owned() + &" ".repeat(300)] {
            assert!(read(format!("{size}\r\na\r\n0\r\n\r\n").as_bytes(), &[]).is_err(), "{size}");
        }
        let long = format!("1;{}\r\na\r\n", "x".repeat(EXTENSION_BYTES_MAX / 2));
        assert!(read(format!("{long}0\r\n\r\n").as_bytes(), &[]).is_ok());
        assert!(
            read(format!("{long}{long}{long}0\r\n\r\n").as_bytes(), &[]).is_err(),
            "all of them together"
        );
        let trailer = format!("x: {}\r\n", "y".repeat(1000));
        assert!(read(format!("0\r\n{}\r\n", trailer.repeat(60)).as_bytes(), &[]).is_ok());
        assert!(read(format!("0\r\n{}\r\n", trailer.repeat(70)).as_bytes(), &[]).is_err());
        assert!(read(format!("0\r\nx: {}", "y".repeat(70_000)).as_bytes(), &[]).is_err(), "without an end");
    }
}
