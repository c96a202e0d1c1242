//! Version 2: binary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{BYTES_MAX, Ends, Extent, HeaderError};

pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What every header has: the signature, version and command, family and transport, and the length of the rest.
const FIXED: usize = 16;

const VERSION: u8 = 0x20;
const COMMAND_LOCAL: u8 = VERSION;
const COMMAND_PROXY: u8 = VERSION | 1;

const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

/// Bytes of two addresses with their ports, and of two paths.
const IPV4_BYTES: u8 = 12;
const IPV6_BYTES: u8 = 36;
const UNIX_BYTES: u8 = 216;

/// The type of the one field that is looked at.
const CRC32C: u8 = 0x03;

/// The whole header of a connection that its sender made for itself.
pub(super) const LOCAL: [u8; FIXED] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

const CUT: HeaderError = HeaderError::Malformed("it ends within its addresses");

pub(super) fn extent(begin: &[u8]) -> Result<Extent, HeaderError> {
    if begin.get(12).is_some_and(|command| ![COMMAND_LOCAL, COMMAND_PROXY].contains(command)) {
        return Err(HeaderError::Malformed("its version or command is not known"));
    }
    let Some(&[high, low]) = begin.get(14..FIXED) else { return Ok(Extent::Partial) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > BYTES_MAX {
        return Err(HeaderError::TooLong);
    }
    Ok(if begin.len() < length { Extent::Partial } else { Extent::Whole(length) })
}

/// A header of just as many bytes as it says.
pub(super) fn parse(header: &[u8]) -> Result<Option<Ends>, HeaderError> {
    let (Some(&command), Some(&family), Some(rest)) = (header.get(12), header.get(13), header.get(FIXED..))
    else {
        return Err(CUT);
    };
    if command == COMMAND_LOCAL {
        // The rest is to be skipped, whatever it is.
        return Ok(None);
    }
    let (length, ends) = match family {
        // How long an address of no family is, nobody knows.
        UNSPECIFIED => return Ok(None),
        TCP4 => (IPV4_BYTES, Some(ends::<4, Ipv4Addr>(rest)?)),
        TCP6 => (IPV6_BYTES, Some(ends::<16, Ipv6Addr>(rest)?)),
        UDP4 => (IPV4_BYTES, None),
        UDP6 => (IPV6_BYTES, None),
        UNIX_STREAM | UNIX_DATAGRAM => (UNIX_BYTES, None),
        _ => return Err(HeaderError::Malformed("its family or transport is not known")),
    };
    let length = usize::from(length);
    if rest.len() < length {
        return Err(CUT);
    }
    check_fields(header, FIXED + length)?;
    Ok(ends)
}

/// Two addresses of `N` bytes, then two ports.
fn ends<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(block: &[u8]) -> Result<Ends, HeaderError> {
    let cut = || {
        let (source, rest) = block.split_first_chunk::<N>()?;
        let (destination, rest) = rest.split_first_chunk::<N>()?;
        let (source_port, rest) = rest.split_first_chunk::<2>()?;
        let end = |address: [u8; N], port: [u8; 2]| {
            SocketAddr::new(A::from(address).into(), u16::from_be_bytes(port))
        };
        Some(Ends {
            source: end(*source, *source_port),
            destination: end(*destination, *rest.first_chunk::<2>()?),
        })
    };
    cut().ok_or(CUT)
}

/// Walks over the fields that begin at `at`, each a type, two bytes of length, and a value; and holds the header to its
/// checksum, if it has one.
fn check_fields(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else {
            return Err(HeaderError::Malformed("a field has no length"));
        };
        let value = at + 3;
        at = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(told) = header.get(value..at) else {
            return Err(HeaderError::Malformed("a field is longer than the header"));
        };
        if kind == CRC32C {
            // It is taken of the header with zeros in its place.
            let zeroed = header[..value].iter().chain(&[0; 4]).chain(&header[at..]);
            if told != crc32c(zeroed).to_be_bytes() {
                return Err(HeaderError::Malformed("its checksum is wrong"));
            }
        }
    }
    Ok(())
}

/// Of RFC 4960 appendix B; bit by bit, because few senders have it, and headers are short.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
    let add = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc));
    !bytes.fold(u32::MAX, add)
}

/// Of ends in one family.
pub(super) fn write(Ends { source, destination }: Ends) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(COMMAND_PROXY);
    let (family, length, addresses) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (TCP4, IPV4_BYTES, [from.octets(), to.octets()].concat()),
        (from, to) => (TCP6, IPV6_BYTES, [octets(from), octets(to)].concat()),
    };
    header.extend([family, 0, length]);
    header.extend(addresses);
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(super::crc32c(b"123456789".iter()), 0xE306_9283);
    }
}
