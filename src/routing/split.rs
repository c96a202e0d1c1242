//! Two versions behind one route for a while: a share of the visitors gets the new one, and each stays where it is.
//!
//! A visitor is given a place from 0 to 99, which a cookie keeps; places below the share get the new version. So nobody
//! who got the new version is sent back while the share rises, and the others follow when it has come to their place.
//! The cookie names its split: what is left of another one gives no place in this one.

use std::sync::Arc;

use super::backend::Backend;

const COOKIE: &str = "__lockgate_split";
/// Places that a visitor can have.
const PLACES: u64 = 100;

/// The new version of a route, and who gets it.
#[derive(Debug)]
pub struct Split {
    /// Of this split and no other; characters that a cookie's value may have.
    id: Box<str>,
    new: Arc<Backend>,
    /// In a hundred.
    share: u8,
}

/// A visitor's place, 0 to 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u8);

impl Split {
    /// `share` in a hundred get `new`.
    #[must_use]
    pub fn new(id: &str, new: Arc<Backend>, share: u8) -> Self {
        Self { id: id.into(), new, share }
    }

    /// How many in a hundred get the new version.
    #[must_use]
    pub fn share(&self) -> u8 {
        self.share
    }

    /// What they get.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.new
    }

    /// What a visitor at `place` gets, if it is the new version. One that has no target gets nobody.
    #[must_use]
    pub fn leads(&self, place: Place) -> Option<&Arc<Backend>> {
        (place.0 < self.share && !self.new.targets.is_empty()).then_some(&self.new)
    }

    /// The place that the value of a `Cookie` field gives.
    #[must_use]
    pub fn place_in(&self, cookies: &[u8]) -> Option<Place> {
        cookies.split(|byte| *byte == b';').find_map(|cookie| {
            let value = cookie.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")?;
            let place = value.strip_prefix(self.id.as_bytes())?.strip_prefix(b".")?;
            let place = std::str::from_utf8(place).ok()?.parse().ok()?;
            (u64::from(place) < PLACES).then_some(Place(place))
        })
    }

    /// The value of the `Set-Cookie` field that keeps `place` for paths under `path`, until the browser is closed.
    #[must_use]
    pub fn cookie(&self, place: Place, path: &str, is_secure: bool) -> String {
        let secure = if is_secure { "; Secure" } else { "" };
        format!("{COOKIE}={}.{}; Path={path}; HttpOnly; SameSite=Lax{secure}", self.id, place.0)
    }
}

impl Place {
    /// Of a visitor that has none yet.
    #[must_use]
    pub fn of(random: u64) -> Self {
        Self(u8::try_from(random % PLACES).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InstanceId;
    use crate::routing::Target;
    use crate::telemetry::BackendStats;

    fn split(share: u8) -> Split {
        let target = Arc::new(Target::new(InstanceId::generate(), ([127, 0, 0, 1], 1).into(), 1));
        let stats = Arc::new(BackendStats::for_service("new", 1));
        Split::new("op_1", Arc::new(Backend::new([target].into(), stats)), share)
    }

    #[test]
    fn only_a_cookie_of_this_split_gives_a_place() {
        for (cookies, expected) in [
            ("__lockgate_split=op_1.7", Some(7)),
            ("a=b; __lockgate_split=op_1.99;c=d", Some(99)),
            ("__lockgate_split=op_2.7; __lockgate_split=op_1.8", Some(8)),
            ("__lockgate_split=op_1.100", None),
            ("__lockgate_split=op_1.", None),
            ("__lockgate_split=op_1.-1", None),
            ("__lockgate_split=op_12.7", None),
            ("x__lockgate_split=op_1.7", None),
            ("__lockgate_split", None),
            ("", None),
        ] {
            assert_eq!(split(5).place_in(cookies.as_bytes()), expected.map(Place), "{cookies:?}");
        }
        let set = split(5).cookie(Place(7), "/shop", true);
        assert_eq!(set, "__lockgate_split=op_1.7; Path=/shop; HttpOnly; SameSite=Lax; Secure");
        assert!(!split(5).cookie(Place(7), "/", false).contains("Secure"));
    }

    #[test]
    fn who_got_the_new_version_keeps_it_while_the_share_rises() {
        for place in (0..PLACES).map(Place::of) {
            let gets_new = [0, 5, 25, 100].map(|share| split(share).leads(place).is_some());
            assert!(gets_new.is_sorted(), "{place:?}: {gets_new:?}");
            assert!(!gets_new[0] && gets_new[3]);
        }
        let gets_new = (0..PLACES).map(Place::of).filter(|place| split(25).leads(*place).is_some());
        assert_eq!(gets_new.count(), 25);
    }

    #[test]
    fn a_new_version_without_a_target_gets_nobody() {
        let stats = Arc::new(BackendStats::for_service("new", 1));
        let nobody = Arc::new(Backend::new(Box::default(), stats));
        assert!(Split::new("op_1", nobody, 100).leads(Place(0)).is_none());
    }
}
