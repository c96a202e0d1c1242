//! The header of the PROXY protocol, by which a proxy says whose connection it passes on. Versions 1 and 2 are read, and
//! written to applications that want it. After HAProxy's proxy-protocol.txt.
//!
//! Whatever follows a header is not its reader's: [`extent`] says how many of the bytes that came belong to it.

mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

use crate::settings::ProxyProtocol;

/// A longer one is refused: addresses take 52 bytes at most, and what else one may say is skipped.
pub(crate) const BYTES_MAX: usize = 4096;

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The client's.
    pub(crate) source: SocketAddr,
    /// Where it connected to.
    pub(crate) destination: SocketAddr,
}

/// How far a header goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// It has so many bytes, all of which came.
    Whole(usize),
    /// All that came belongs to it, and more is to come.
    Partial,
}

/// Why what a connection begins with is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("there is none")]
    Missing,
    #[error("it is too long")]
    TooLong,
    #[error("{0}")]
    Malformed(&'static str),
}

impl Ends {
    /// Both in one family: of two, IPv4 is mapped into IPv6.
    fn in_one_family(self) -> Self {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (source, destination) = (plain(self.source), plain(self.destination));
        if source.is_ipv4() == destination.is_ipv4() {
            return Self { source, destination };
        }
        let mapped = |end: SocketAddr| match end.ip() {
            IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), end.port()),
            IpAddr::V6(_) => end,
        };
        Self { source: mapped(source), destination: mapped(destination) }
    }
}

/// How far the header goes that `begin` begins with; `begin` has a byte at least.
///
/// # Errors
/// As soon as it can be none.
pub(crate) fn extent(begin: &[u8]) -> Result<Extent, HeaderError> {
    if agree(begin, &v2::SIGNATURE) {
        v2::extent(begin)
    } else if agree(begin, v1::BEGIN) {
        v1::extent(begin)
    } else {
        Err(HeaderError::Missing)
    }
}

/// Whose connection it is; `None` if the header says that it is its sender's own, or does not know.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(header: &[u8]) -> Result<Option<Ends>, HeaderError> {
    if header.starts_with(&v2::SIGNATURE) { v2::parse(header) } else { v1::parse(header) }
}

/// The header of a connection that is made for a client's, of which these are the `ends`.
pub(crate) fn of_client(version: ProxyProtocol, ends: Ends) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => v1::write(ends.in_one_family()),
        ProxyProtocol::V2 => v2::write(ends.in_one_family()),
    }
}

/// The header of a connection that is made for nobody, and has these `ends`: a health check.
pub(crate) fn of_own(version: ProxyProtocol, ends: Ends) -> Vec<u8> {
    match version {
        // It has no word for it that receivers are sure to take.
        ProxyProtocol::V1 => v1::write(ends.in_one_family()),
        ProxyProtocol::V2 => v2::LOCAL.to_vec(),
    }
}

/// As far as both go.
fn agree(one: &[u8], other: &[u8]) -> bool {
    let common = one.len().min(other.len());
    one[..common] == other[..common]
}

#[cfg(test)]
mod tests;
