//! A response's body, compressed as it passes: what has come is never kept back for what has not.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::routing::policy::compress::Coding;

/// A quarter of a MiB is what is looked back at, so that a stream costs little memory.
const ZSTD_WINDOW_LOG: u32 = 18;
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 5;

/// Compresses a stream.
pub(crate) struct Encoder {
    /// `None` once it has ended.
    kind: Option<Kind>,
    /// Something was put in that has not come out.
    has_more: bool,
}

enum Kind {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    pub(super) fn new(coding: Coding) -> io::Result<Self> {
        let kind = match coding {
            Coding::Gzip => Kind::Gzip(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                Kind::Zstd(encoder)
            }
        };
        Ok(Self { kind: Some(kind), has_more: false })
    }

    /// Takes more in, and gives what comes out of it, which may be nothing.
    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<Bytes> {
        self.has_more |= !data.is_empty();
        self.with(|writer| writer.write_all(data))
    }

    /// Gives all that was taken in and has not come out; nothing if there is nothing.
    pub(crate) fn flush(&mut self) -> io::Result<Bytes> {
        if !std::mem::take(&mut self.has_more) {
            return Ok(Bytes::new());
        }
        self.with(|writer| writer.flush())
    }

    /// Ends the stream, and gives the rest of it; nothing if it has ended.
    pub(crate) fn finish(&mut self) -> io::Result<Bytes> {
        match self.kind.take() {
            None => Ok(Bytes::new()),
            Some(Kind::Gzip(encoder)) => encoder.finish().map(Bytes::from),
            Some(Kind::Zstd(encoder)) => encoder.finish().map(Bytes::from),
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.kind.is_none()
    }

    fn with(&mut self, what: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Bytes> {
        let out = match &mut self.kind {
            None => return Ok(Bytes::new()),
            Some(Kind::Gzip(encoder)) => {
                what(encoder)?;
                encoder.get_mut()
            }
            Some(Kind::Zstd(encoder)) => {
                what(encoder)?;
                encoder.get_mut()
            }
        };
        Ok(Bytes::from(std::mem::take(out)))
    }
}
