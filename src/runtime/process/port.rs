//! A free port for an instance, kept for as long as the instance is.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

/// Below what Linux gives to outgoing connections: one of those could take the port while the app is down.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that is free now, beside those that are `kept` for other instances.
pub(super) fn choose(kept: &HashSet<u16>) -> io::Result<u16> {
    let random = getrandom::u32().map_err(io::Error::other)?;
    // Anywhere in the range, so that two Lockgates of one machine seldom want the same.
    let begin = u16::try_from(random % u32::from(COUNT)).unwrap_or_default();
    (0..COUNT)
        .map(|step| FIRST + (begin + step) % COUNT)
        .find(|port| !kept.contains(port) && is_free(*port))
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, format!("no free port from {FIRST} on")))
}

/// Whether nobody listens on it, on any address.
pub(super) fn is_free(port: u16) -> bool {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(_) => true,
        Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => false,
        // No IPv6 here.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_kept_or_listened_on_is_not_chosen() {
        let all_but =
            |port: u16| (FIRST..FIRST + COUNT).filter(|other| *other != port).collect::<HashSet<_>>();
        let free = choose(&HashSet::new()).unwrap();
        assert_eq!(choose(&all_but(free)).unwrap(), free);
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free)).unwrap();
        assert!(choose(&all_but(free)).is_err());
    }
}
