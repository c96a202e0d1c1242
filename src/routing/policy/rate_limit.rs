//! So many requests in a time, by the generic cell rate algorithm: of each client one number is kept, the time at which
//! it would have used up nothing.
//!
//! # Invariants
//! 1. No client gets more than `burst` requests at once, nor more than the rate in the long run, over all workers.
//! 2. Memory is bounded: past 100,000 clients that are known, the others share one number.
//! 3. A deploy forgives nothing: a version with the same limit goes on with what is known ([`Limiters`]).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::header::{HeaderMap, HeaderName};

use crate::settings::policy::{RateLimitBy, RateLimitSettings};

/// Clients of one limit that are known at once; 16 bytes each.
const CLIENTS_MAX: usize = 100_000;

/// A limit of a route.
#[derive(Debug)]
pub struct RateLimit {
    by: By,
    limiter: Arc<Limiter>,
}

#[derive(Debug)]
enum By {
    Client,
    Header(HeaderName),
    Everyone,
}

/// The limits that count, so that those that stay the same go on counting.
#[derive(Debug, Default)]
pub struct Limiters(Mutex<HashMap<String, Weak<Limiter>>>);

/// What is known of those who came.
#[derive(Debug)]
struct Limiter {
    /// Between two requests at the rate.
    interval: Duration,
    /// So far ahead of the rate one may be.
    burst: Duration,
    /// When the first came.
    epoch: OnceLock<Instant>,
    /// From when on each is as if it never came, since `epoch`. By a hash: names are strangers' and of any length.
    free_at: DashMap<u64, Duration, foldhash::fast::RandomState>,
    known: AtomicUsize,
    /// Of those that are not known for want of room, and when room was last looked for.
    others: Mutex<(Duration, Duration)>,
    hasher: foldhash::fast::RandomState,
    clients_max: usize,
}

impl RateLimit {
    pub(super) fn new(settings: &RateLimitSettings, limiters: &Limiters, scope: &str) -> Option<Self> {
        let by = match (settings.by, &settings.header) {
            (RateLimitBy::Client, _) => By::Client,
            (RateLimitBy::Everyone, _) => By::Everyone,
            (RateLimitBy::Header, name) => {
                By::Header(HeaderName::from_bytes(name.as_ref()?.as_bytes()).ok()?)
            }
        };
        Some(Self { by, limiter: limiters.get(settings, scope)? })
    }

    /// Counts the request, if it may come.
    ///
    /// # Errors
    /// After how long it may, if not now.
    pub fn admit(&self, client: IpAddr, headers: &HeaderMap, now: Instant) -> Result<(), Duration> {
        let hasher = &self.limiter.hasher;
        let of_client = || hasher.hash_one((0_u8, network(client)));
        let key = match &self.by {
            By::Client => of_client(),
            By::Everyone => 0,
            By::Header(name) => {
                headers.get(name).map_or_else(of_client, |value| hasher.hash_one((1_u8, value.as_bytes())))
            }
        };
        self.limiter.admit(key, now)
    }
}

impl Limiters {
    /// The one that counts for `scope` by the same settings, or a new one.
    fn get(&self, settings: &RateLimitSettings, scope: &str) -> Option<Arc<Limiter>> {
        let key = format!("{scope}\0{}", serde_json::to_string(settings).ok()?);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = known.get(&key).and_then(Weak::upgrade) {
            return Some(limiter);
        }
        let limiter = Arc::new(Limiter::new(settings, CLIENTS_MAX)?);
        known.retain(|_, limiter| limiter.strong_count() > 0);
        known.insert(key, Arc::downgrade(&limiter));
        Some(limiter)
    }
}

impl Limiter {
    fn new(settings: &RateLimitSettings, clients_max: usize) -> Option<Self> {
        let interval = settings.per.0.checked_div(settings.requests)?;
        Some(Self {
            interval,
            burst: interval.checked_mul(settings.burst.unwrap_or(settings.requests))?,
            epoch: OnceLock::new(),
            free_at: DashMap::default(),
            known: AtomicUsize::new(0),
            others: Mutex::default(),
            hasher: foldhash::fast::RandomState::default(),
            clients_max,
        })
    }

    fn admit(&self, key: u64, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(*self.epoch.get_or_init(|| now));
        match self.free_at.entry(key) {
            Entry::Occupied(mut known) => return self.take(known.get_mut(), now),
            Entry::Vacant(place) if self.known.load(Ordering::Relaxed) < self.clients_max => {
                self.known.fetch_add(1, Ordering::Relaxed);
                return self.take(&mut place.insert(Duration::ZERO), now);
            }
            Entry::Vacant(_) => {}
        }
        // The entry is let go of: whoever looks for room locks them all, one after another.
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let (free_at, looked_at) = &mut *others;
        if now >= *looked_at + Duration::from_secs(1) || looked_at.is_zero() {
            *looked_at = now.max(Duration::from_nanos(1));
            self.free_at.retain(|_, free_at| *free_at > now);
            self.known.store(self.free_at.len(), Ordering::Relaxed);
        }
        self.take(free_at, now)
    }

    /// Moves the time on by one request, if that is not too far ahead.
    fn take(&self, free_at: &mut Duration, now: Duration) -> Result<(), Duration> {
        let next = (*free_at).max(now) + self.interval;
        let ahead = next - now;
        if ahead > self.burst {
            return Err(ahead - self.burst);
        }
        *free_at = next;
        Ok(())
    }
}

/// IPv6 clients have whole networks.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::settings::Delay;

    fn settings(requests: u32, burst: Option<u32>, by: RateLimitBy) -> RateLimitSettings {
        let header = (by == RateLimitBy::Header).then(|| "X-Key".to_owned());
        RateLimitSettings { requests, per: Delay::seconds(1), burst, by, header }
    }

    fn limit(settings: &RateLimitSettings) -> RateLimit {
        RateLimit::new(settings, &Limiters::default(), "a").unwrap()
    }

    const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limit = limit(&settings(10, Some(3), RateLimitBy::Everyone));
        let start = SystemClock.now();
        let admit = |ms| limit.admit(NOBODY, &HeaderMap::new(), start + Duration::from_millis(ms));
        assert_eq!([admit(0), admit(0), admit(0)], [Ok(()); 3]);
        assert_eq!(admit(0), Err(Duration::from_millis(100)));
        assert_eq!(admit(40), Err(Duration::from_millis(60)), "who is refused pays nothing");
        assert_eq!(admit(100), Ok(()));
        assert_eq!(admit(100), Err(Duration::from_millis(100)));
        assert_eq!([admit(900), admit(900), admit(900)], [Ok(()); 3], "no more than the burst is saved up");
        assert!(admit(900).is_err());
    }

    #[test]
    fn clients_are_counted_each_by_itself_and_networks_of_ipv6_as_one() {
        let limit = limit(&settings(1, None, RateLimitBy::Client));
        let now = SystemClock.now();
        let admit = |address: &str| limit.admit(address.parse().unwrap(), &HeaderMap::new(), now).is_ok();
        assert!(admit("192.0.2.1") && admit("192.0.2.2") && !admit("192.0.2.1"));
        assert!(admit("2001:db8::1") && !admit("2001:db8::ffff:2") && admit("2001:db8:0:1::1"));
    }

    #[test]
    fn values_of_a_header_are_counted_and_who_has_none_by_his_address() {
        let limit = limit(&settings(1, None, RateLimitBy::Header));
        let now = SystemClock.now();
        let admit = |address: &str, key: Option<&'static str>| {
            let key = key.map(|key| (HeaderName::from_static("x-key"), http::HeaderValue::from_static(key)));
            limit.admit(address.parse().unwrap(), &key.into_iter().collect(), now).is_ok()
        };
        assert!(
            admit("192.0.2.1", Some("a")) && !admit("192.0.2.2", Some("a")) && admit("192.0.2.2", Some("b"))
        );
        assert!(admit("192.0.2.1", None) && !admit("192.0.2.1", None) && admit("192.0.2.2", None));
    }

    #[test]
    fn past_the_most_that_are_known_others_share_and_room_is_found_again() {
        let limiter = Limiter::new(&settings(1, None, RateLimitBy::Client), 2).unwrap();
        let start = SystemClock.now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(limiter.admit(1, at(1)).is_ok() && limiter.admit(2, at(1)).is_ok());
        assert!(limiter.admit(3, at(1)).is_ok() && limiter.admit(4, at(1)).is_err(), "they share");
        assert!(limiter.admit(1, at(1)).is_err(), "who is known stays known");
        assert_eq!(limiter.free_at.len(), 2);
        assert!(limiter.admit(5, at(3)).is_ok(), "still among the others, and finds the room");
        assert!(limiter.admit(6, at(3)).is_ok() && limiter.admit(7, at(3)).is_ok());
        assert_eq!(limiter.free_at.len(), 2);
    }

    #[test]
    fn the_same_limit_goes_on_counting_and_another_begins() {
        let (limiters, settings) = (Limiters::default(), settings(1, None, RateLimitBy::Everyone));
        let first = RateLimit::new(&settings, &limiters, "web").unwrap();
        let now = SystemClock.now();
        assert!(first.admit(NOBODY, &HeaderMap::new(), now).is_ok());
        let again = RateLimit::new(&settings, &limiters, "web").unwrap();
        assert!(again.admit(NOBODY, &HeaderMap::new(), now).is_err());
        let other = RateLimit::new(&settings, &limiters, "api").unwrap();
        assert!(other.admit(NOBODY, &HeaderMap::new(), now).is_ok());
    }

    #[test]
    fn many_at_once_get_no_more_than_the_burst() {
        let limit = limit(&settings(1, Some(50), RateLimitBy::Client));
        let now = SystemClock.now();
        let admitted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        if limit.admit(NOBODY, &HeaderMap::new(), now).is_ok() {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner(), 50);
    }
}
