//! Version 1: a line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::{FromStr, Split};

use super::{Ends, Extent, HeaderError};

pub(super) const BEGIN: &[u8] = b"PROXY ";

/// With its end.
const BYTES_MAX: usize = 107;

const END: &[u8] = b"\r\n";

pub(super) fn extent(begin: &[u8]) -> Result<Extent, HeaderError> {
    let line = &begin[..begin.len().min(BYTES_MAX)];
    match line.windows(END.len()).position(|window| window == END) {
        Some(at) => Ok(Extent::Whole(at + END.len())),
        None if line.len() == BYTES_MAX => Err(HeaderError::TooLong),
        None => Ok(Extent::Partial),
    }
}

pub(super) fn parse(header: &[u8]) -> Result<Option<Ends>, HeaderError> {
    let line = header.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.ok_or(HeaderError::Malformed("its line is not text"))?.split(' ');
    match words.next() {
        Some("TCP4") => ends::<Ipv4Addr>(words).map(Some),
        Some("TCP6") => ends::<Ipv6Addr>(words).map(Some),
        // Whatever follows it.
        Some("UNKNOWN") => Ok(None),
        Some(_) | None => Err(HeaderError::Malformed("its protocol is not known")),
    }
}

fn ends<A: FromStr + Into<IpAddr>>(mut words: Split<'_, char>) -> Result<Ends, HeaderError> {
    let mut word = || words.next().unwrap_or_default();
    let [source, destination] = [word(), word()].map(|word| word.parse::<A>().map(Into::into).ok());
    let [source_port, destination_port] = [word(), word()].map(port);
    let (Some(source), Some(destination), None) = (source, destination, words.next()) else {
        return Err(HeaderError::Malformed("its addresses are none"));
    };
    let (Some(source_port), Some(destination_port)) = (source_port, destination_port) else {
        return Err(HeaderError::Malformed("its ports are none"));
    };
    Ok(Ends {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// Digits alone, and no zero before others.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

/// Of ends in one family.
pub(super) fn write(Ends { source, destination }: Ends) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let [from, to] = [source, destination].map(|end| shown(end.ip()));
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

/// An IPv6 address is eight groups: a part in the form of IPv4 is not allowed.
fn shown(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join(":"),
    }
}
