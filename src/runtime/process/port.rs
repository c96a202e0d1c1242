//! A free port for an instance, kept for as long as the instance is.
//!
//! An instance listens a moment after its port was chosen. That no other Lockgate of the machine chooses the port meanwhile
//! a socket's name says, which is known where the ports are, and goes with Lockgate's process however that ends.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Below what Linux gives to outgoing connections: one of those could take the port while the app is down.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Keeps a port from other Lockgates.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) port: u16,
    /// Its name is what counts.
    _socket: Option<UnixDatagram>,
}

/// A port that is free now, beside those that are `kept` for other instances.
pub(super) fn choose(kept: &HashSet<u16>) -> io::Result<Hold> {
    let random = getrandom::u32().map_err(io::Error::other)?;
    // Anywhere in the range, so that two Lockgates of one machine seldom want the same.
    let begin = u16::try_from(random % u32::from(COUNT)).unwrap_or_default();
    (0..COUNT)
        .map(|step| FIRST + (begin + step) % COUNT)
        .filter(|port| !kept.contains(port) && is_free(*port))
        .find_map(hold)
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, format!("no free port from {FIRST} on")))
}

/// Keeps that port from other Lockgates; `None` if one of them has it. Where it cannot be said, it is nobody's.
pub(super) fn hold(port: u16) -> Option<Hold> {
    let name = SocketAddr::from_abstract_name(format!("lockgate-port-{port}"));
    match name.and_then(|name| UnixDatagram::bind_addr(&name)) {
        Ok(socket) => Some(Hold { port, _socket: Some(socket) }),
        Err(cause) if cause.kind() == io::ErrorKind::AddrInUse => None,
        Err(_) => Some(Hold { port, _socket: None }),
    }
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

    /// What comes of it in the end: a process that another test is starting has our descriptors for a moment, and with
    /// them a port that we looked at.
    fn soon<T>(mut act: impl FnMut() -> io::Result<T>) -> T {
        for _ in 0..10_000 {
            if let Ok(done) = act() {
                return done;
            }
            std::thread::yield_now();
        }
        act().unwrap()
    }

    #[test]
    fn a_port_that_is_kept_or_listened_on_or_another_lockgates_is_not_chosen() {
        let kept = choose(&HashSet::new()).unwrap();
        let free = kept.port;
        let others: HashSet<u16> = (FIRST..FIRST + COUNT).filter(|other| *other != free).collect();
        assert!(choose(&others).is_err() && hold(free).is_none(), "another Lockgate has it");
        drop(kept);
        assert_eq!(soon(|| choose(&others)).port, free);
        let _listener = soon(|| TcpListener::bind((Ipv4Addr::LOCALHOST, free)));
        assert!(choose(&others).is_err());
    }
}
