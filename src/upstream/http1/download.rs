//! The body of a response, by the framing that its head says (RFC 9112 section 6.3).

use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;

use crate::upstream::WireError;

use super::chunks::{Chunks, Part};
use super::head::{Codings, Head, Length};

/// What is to come of a body.
#[derive(Debug)]
pub(super) enum Download {
    Ended,
    /// So many bytes.
    Length(u64),
    Chunked(Box<Chunks>),
    /// As much as comes before the connection ends.
    UntilEnd,
}

impl Download {
    /// The body behind `head`.
    ///
    /// # Errors
    /// If nobody can tell where it ends.
    pub(super) fn of(head: &Head, status: StatusCode, is_head: bool) -> Result<Self, WireError> {
        let has_none = matches!(
            status,
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if has_none || is_head {
            return Ok(Self::Ended);
        }
        match (head.codings, head.length) {
            (Codings::Odd, _) => Err(WireError::Form("its Transfer-Encoding")),
            (Codings::Chunked, _) => Ok(Self::Chunked(Box::default())),
            (Codings::None, Length::Odd) => Err(WireError::Form("its Content-Length")),
            (Codings::None, Length::Of(0)) => Ok(Self::Ended),
            (Codings::None, Length::Of(length)) => Ok(Self::Length(length)),
            (Codings::None, Length::None) => Ok(Self::UntilEnd),
        }
    }

    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// What is missing, if anybody knows.
    pub(super) fn missing(&self) -> Option<u64> {
        match self {
            Self::Ended => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilEnd => None,
        }
    }

    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilEnd)
    }

    /// Takes the next frame off `input`. `None` if all of it is taken, or the body has ended.
    ///
    /// # Errors
    /// If the body is malformed.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame<Bytes>>, WireError> {
        let frame = match self {
            Self::Ended => return Ok(None),
            Self::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= len as u64;
                if *left == 0 {
                    *self = Self::Ended;
                }
                Some(Frame::data(input.split_to(len)))
            }
            Self::UntilEnd => Some(Frame::data(std::mem::take(input))),
            Self::Chunked(chunks) => {
                let part = chunks.next(input)?;
                if chunks.has_ended() {
                    *self = Self::Ended;
                }
                part.map(|part| match part {
                    Part::Data(data) => Frame::data(data),
                    Part::Trailers(trailers) => Frame::trailers(trailers),
                })
            }
        };
        Ok(frame)
    }
}
