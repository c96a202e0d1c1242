//! Static services: routes to upstreams that Lockgate does not deploy.

use std::sync::Arc;

use crate::routing::path::PathPrefix;
use crate::routing::{Backend, HostPattern};
use crate::settings::PolicySettings;

/// A static route to upstreams that Lockgate does not deploy.
#[derive(Clone, Debug)]
pub struct ServiceRoute {
    pub host: HostPattern,
    pub prefix: PathPrefix,
    pub strip: bool,
    pub backend: Arc<Backend>,
    pub policies: Arc<[PolicySettings]>,
}

impl ServiceRoute {
    pub(super) fn name(&self) -> &str {
        self.backend.stats.name()
    }

    /// Whether the other backend has the same targets, spreads requests in the same way, and has as many wait.
    pub(super) fn leads_where(&self, other: &Backend) -> bool {
        let (own, others) = (&self.backend.targets, &other.targets);
        own.len() == others.len()
            && self.backend.balance == other.balance
            && self.has_queue_of(other)
            && own.iter().zip(others).all(|(own, other)| own.is_like(other))
    }

    fn has_queue_of(&self, other: &Backend) -> bool {
        match (&self.backend.queue, &other.queue) {
            (Some(own), Some(other)) => own.is_like(other),
            (own, other) => own.is_none() && other.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Publisher;
    use super::*;
    use crate::clock::SystemClock;
    use crate::ids::InstanceId;
    use crate::routing::balance::Balance;
    use crate::routing::queue::{Places, Queue};
    use crate::routing::{Routing, Target};
    use crate::telemetry::BackendStats;

    /// A service whose targets have these ports and weights.
    fn service(targets: &[(u16, u16)], balance: Balance) -> ServiceRoute {
        let target = |&(port, weight): &(u16, u16)| {
            Arc::new(Target::new(InstanceId::generate(), ([127, 0, 0, 1], port).into(), 1).weighing(weight))
        };
        let stats = Arc::new(BackendStats::for_service("s", 1));
        let backend = Backend::new(targets.iter().map(target).collect(), stats).balanced(balance);
        let (host, prefix) = ("s.test".parse().unwrap(), PathPrefix::root());
        ServiceRoute { host, prefix, strip: false, backend: Arc::new(backend), policies: [].into() }
    }

    #[test]
    fn what_is_read_again_is_the_same_unless_something_of_it_was_changed() {
        let old = service(&[(1, 1), (2, 1)], Balance::TwoChoices);
        for (targets, balance, is_same) in [
            (&[(1, 1), (2, 1)][..], Balance::TwoChoices, true),
            (&[(1, 1), (2, 2)], Balance::TwoChoices, false),
            (&[(1, 1), (3, 1)], Balance::TwoChoices, false),
            (&[(1, 1)], Balance::TwoChoices, false),
            (&[(1, 1), (2, 1)], Balance::RoundRobin, false),
        ] {
            let new = service(targets, balance.clone());
            assert_eq!(new.leads_where(&old.backend), is_same, "{targets:?} {balance:?}");
        }
    }

    #[test]
    fn another_limit_or_queue_is_a_change() {
        let limited = |limit: Option<u32>, size| {
            let target = Target::new(InstanceId::generate(), ([127, 0, 0, 1], 1).into(), 1);
            let target = target.limited_to(limit.map(|limit| Arc::new(Places::new(limit))));
            let stats = Arc::new(BackendStats::for_service("s", 1));
            let queue = limit.map(|_| Arc::new(Queue::new(size, Duration::from_secs(1))));
            let backend = Arc::new(Backend::new([Arc::new(target)].into(), stats).queueing(queue));
            ServiceRoute { backend, ..service(&[], Balance::TwoChoices) }
        };
        let old = limited(Some(2), 5);
        for (limit, size, is_same) in
            [(Some(2), 5, true), (Some(3), 5, false), (Some(2), 6, false), (None, 5, false)]
        {
            assert_eq!(limited(limit, size).leads_where(&old.backend), is_same, "{limit:?} {size}");
        }
    }

    #[test]
    fn its_policies_leave_the_rest_as_it_is() {
        let routing = Arc::new(Routing::new(1));
        let publisher = Publisher::new(Arc::clone(&routing), Arc::new(SystemClock), [0; 32]);
        let policy = serde_json::from_str(r#"{"ip":{"allow":["10.0.0.0/8"]}}"#).unwrap();
        let service = service(&[(1, 2), (2, 1)], Balance::RoundRobin);
        publisher.set_services(vec![ServiceRoute { policies: [policy].into(), ..service }]);
        let (_, found) = routing.resolve(&"s.test".parse().unwrap()).unwrap();
        let backend = found.routes().paths()[0].backend();
        assert!(backend.policies.is_some() && backend.balance == Balance::RoundRobin);
        assert_eq!(backend.targets[0].weight, 2);
    }
}
