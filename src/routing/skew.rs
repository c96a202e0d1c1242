//! Skew protection: a page goes on with the version that it came from, while that one still runs and another is live.
//!
//! The cookie, or the field of a request, names the deployment that a page came from. It is looked up among those that
//! the route lists and nowhere else: whatever another one names, forged or gone, means nothing.

use std::sync::Arc;

use super::backend::Backend;
use crate::ids::DeploymentId;

const COOKIE: &str = "__lockgate_deployment";

/// The versions that the requests of a page can go to.
#[derive(Debug)]
pub struct Skew {
    /// The route's own.
    live: DeploymentId,
    /// Those that run beside it, each behind what its pages are to reach.
    warm: Box<[(DeploymentId, Arc<Backend>)]>,
    /// How long a page stays with its version, in seconds.
    max_age: u64,
}

/// Where the requests of a page go.
#[derive(Clone, Copy, Debug)]
pub enum Pin<'a> {
    /// To what the route leads to, whoever else gets a share.
    Live,
    To(&'a Arc<Backend>),
}

impl Skew {
    /// Pages of `live` and of `warm` stay with their version for `max_age` seconds after they were loaded.
    #[must_use]
    pub fn new(live: DeploymentId, warm: Box<[(DeploymentId, Arc<Backend>)]>, max_age: u64) -> Self {
        Self { live, warm, max_age }
    }

    /// Where a page of the named deployment has its requests go; `None` for one that does not run, or that there is not.
    #[must_use]
    pub fn pin(&self, name: &[u8]) -> Option<Pin<'_>> {
        let id: DeploymentId = std::str::from_utf8(name).ok()?.parse().ok()?;
        if id == self.live {
            return Some(Pin::Live);
        }
        let (_, backend) = self.warm.iter().find(|(warm, _)| *warm == id)?;
        (!backend.targets.is_empty()).then_some(Pin::To(backend))
    }

    /// The same for the value of a `Cookie` field: the first that names one counts.
    #[must_use]
    pub fn pin_in(&self, cookies: &[u8]) -> Option<Pin<'_>> {
        cookies.split(|byte| *byte == b';').find_map(|cookie| {
            let value = cookie.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")?;
            self.pin(value)
        })
    }

    /// The value of the `Set-Cookie` field of a page that `backend` serves, for paths under `path`.
    #[must_use]
    pub fn cookie(&self, backend: &Arc<Backend>, path: &str, is_secure: bool) -> String {
        let other = self.warm.iter().find(|(_, warm)| Arc::ptr_eq(warm, backend));
        let id = other.map_or(self.live, |(id, _)| *id);
        let secure = if is_secure { "; Secure" } else { "" };
        let max_age = self.max_age;
        format!("{COOKIE}={id}; Path={path}; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InstanceId;
    use crate::routing::Target;
    use crate::routing::table::tests::backend;
    use crate::telemetry::BackendStats;

    fn warm() -> Arc<Backend> {
        let target = Arc::new(Target::new(InstanceId::generate(), ([127, 0, 0, 1], 1).into(), 1));
        Arc::new(Backend::new([target].into(), Arc::new(BackendStats::for_service("warm", 1))))
    }

    #[test]
    fn only_what_the_route_lists_and_what_has_a_target_is_found() {
        let [live, old, empty, other] = std::array::from_fn(|_| DeploymentId::generate());
        let kept = warm();
        let nobody = Backend::new(Box::default(), Arc::clone(&kept.stats));
        let skew = Skew::new(live, [(old, Arc::clone(&kept)), (empty, Arc::new(nobody))].into(), 60);
        let found = |cookies: &str| match skew.pin_in(cookies.as_bytes()) {
            None => "none",
            Some(Pin::Live) => "live",
            Some(Pin::To(backend)) if Arc::ptr_eq(backend, &kept) => "old",
            Some(Pin::To(_)) => "another",
        };
        for (cookies, expected) in [
            (format!("__lockgate_deployment={old}"), "old"),
            (format!("a=b;__lockgate_deployment={live}; c"), "live"),
            (format!("__lockgate_deployment={other}; __lockgate_deployment={old}"), "old"),
            (format!("__lockgate_deployment={empty}"), "none"),
            (format!("__lockgate_deployment={other}"), "none"),
            (format!("x__lockgate_deployment={old}"), "none"),
            (format!("__lockgate_deployment={old}x"), "none"),
            (format!("__lockgate_deployment ={old}"), "none"),
            ("__lockgate_deployment=".to_owned(), "none"),
            ("__lockgate_deployment".to_owned(), "none"),
            (String::new(), "none"),
        ] {
            assert_eq!(found(&cookies), expected, "{cookies:?}");
        }
        assert!(skew.pin(b"\xff").is_none());
    }

    #[test]
    fn a_page_is_marked_with_the_version_that_served_it() {
        let [live, new] = std::array::from_fn(|_| DeploymentId::generate());
        let (route, share) = (backend("live"), warm());
        let skew = Skew::new(live, [(new, Arc::clone(&share))].into(), 60);
        let expected =
            format!("__lockgate_deployment={live}; Path=/shop; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(skew.cookie(&route, "/shop", true), expected);
        let expected = format!("__lockgate_deployment={new}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
        assert_eq!(skew.cookie(&share, "/", false), expected);
    }
}
