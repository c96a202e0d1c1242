//! Sockets that are listened on, as the kernel tells in `/proc/<pid>/net`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

const LISTEN: &str = "0A";

/// A socket that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

/// All of a network namespace, by the `net` folder of a process in it.
pub(super) fn listening(net: &Path) -> Vec<Listening> {
    let tables = ["tcp", "tcp6"].into_iter().filter_map(|table| fs::read_to_string(net.join(table)).ok());
    tables.flat_map(|text| text.lines().skip(1).filter_map(row).collect::<Vec<_>>()).collect()
}

fn row(line: &str) -> Option<Listening> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(Listening { address: SocketAddr::new(ip_of(ip)?, port), inode: fields.get(9)?.parse().ok()? })
}

/// Words of 32 bits, each in the machine's own byte order.
fn ip_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let words = [word(0)?, word(8)?, word(16)?, word(24)?];
    let bytes: [u8; 16] = words.concat().try_into().ok()?;
    Some(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_with_its_address_and_nothing_else_is() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().unwrap();
            let is_found = || listening(Path::new("/proc/self/net")).iter().any(|one| one.address == address);
            // The kernel leaves out rows while others come and go, and a process that another test is starting has its
            // descriptors for a moment.
            let comes_to = |expected: bool| {
                (0..10_000).any(|_| {
                    std::thread::yield_now();
                    is_found() == expected
                })
            };
            assert!(comes_to(true), "{address}");
            drop(listener);
            assert!(comes_to(false), "{address}");
        }
        assert_eq!(row("0: 0100007F:1F90 00000000:0000 01 0 0 0 0 0 7 1"), None, "connected, not listening");
        assert_eq!(row("0: cut"), None);
    }
}
