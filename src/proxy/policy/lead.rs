//! The beginning of a request's body, read before the application is asked.

use std::collections::VecDeque;

use http_body_util::BodyExt as _;

use crate::upstream::RequestBody;
use crate::upstream::body::Again;

use super::super::error::ForwardError;

/// Reads up to `bytes` of the body, and all of it if it is no longer; the rest goes on as it comes.
///
/// # Errors
/// If the client does not send what it should.
pub(super) async fn read(body: &mut RequestBody, bytes: usize) -> Result<(), ForwardError> {
    let (mut first, mut read, mut trailers) = (VecDeque::new(), 0, None);
    while read < bytes {
        let Some(frame) = body.frame().await else { break };
        match frame.map_err(ForwardError::RequestBody)?.into_data() {
            Ok(data) => {
                read += data.len();
                // A copy: what was received is a slice of a read buffer, and would keep all of it.
                first.push_back(bytes::Bytes::copy_from_slice(&data));
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if !first.is_empty() || trailers.is_some() {
        let rest = std::mem::replace(body, RequestBody::Empty);
        *body = RequestBody::Again(Box::new(Again { first, rest, trailers }));
    }
    Ok(())
}
