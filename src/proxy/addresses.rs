//! How many connections each client address has, over all workers. Written when a connection comes and when it goes.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// The addresses that have connections.
#[derive(Debug)]
pub(crate) struct Addresses {
    counts: DashMap<IpAddr, usize, foldhash::fast::RandomState>,
    max: usize,
}

/// One connection of an address, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// At most `max` connections each.
    pub(crate) fn new(max: usize) -> Self {
        Self { counts: DashMap::default(), max }
    }

    /// A place for one more connection of `address`; `None` if it has as many as it may have.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut count = self.counts.entry(address).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        drop(count);
        Some(Place { addresses: Arc::clone(self), address })
    }
}

/// What one client can have many of counts as one: the last 64 bits of an IPv6 address are its own to choose.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX << 64).into(),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.addresses.counts.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let addresses = Arc::new(Addresses::new(2));
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        let places = [addresses.enter(one).unwrap(), addresses.enter(one).unwrap()];
        assert!(addresses.enter(one).is_none() && addresses.enter(other).is_some());
        drop(places);
        assert!(addresses.counts.is_empty());
        assert!(addresses.enter(one).is_some());
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_client() {
        let addresses = Arc::new(Addresses::new(1));
        let _place = addresses.enter("2001:db8:0:1::1".parse().unwrap()).unwrap();
        assert!(addresses.enter("2001:db8:0:1:ffff::2".parse().unwrap()).is_none());
        assert!(addresses.enter("2001:db8:0:2::1".parse().unwrap()).is_some());
    }
}
