//! For which names certificates are asked for: those of the route table that no configured certificate is for.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::settings::{AcmeSettings, Challenge};
use crate::certs::Certs;
use crate::routing::{HostName, HostPattern, RouteTable};

/// The names, each of which gets a certificate of its own. What a client asks for is never among what decides it.
pub(super) fn wanted(table: &RouteTable, certs: &Certs, settings: &AcmeSettings) -> BTreeSet<HostPattern> {
    let has_dns = settings.dns.is_some() && settings.challenges.contains(&Challenge::Dns01);
    let mut wildcards: BTreeSet<HostName> = settings.preview_zone.iter().cloned().collect();
    let mut names = BTreeSet::new();
    for routes in table.iter() {
        match routes.pattern() {
            // A name that comes and goes with a version would use up the authority's limits: the zone's is for those.
            HostPattern::Exact(name) if routes.paths().iter().any(|path| !path.is_passing()) => {
                names.insert(name.clone());
            }
            HostPattern::Wildcard(suffix) => {
                wildcards.insert(suffix.clone());
            }
            HostPattern::Exact(_) | HostPattern::Any => {}
        }
    }
    wildcards.retain(|suffix| has_dns && may_be_certified(suffix));
    let is_below = |name: &HostName| {
        name.split_first_label()
            .is_some_and(|(_, rest)| wildcards.iter().any(|suffix| suffix.as_str() == rest))
    };
    names.retain(|name| may_be_certified(name) && !is_below(name));
    let names = names.into_iter().map(HostPattern::Exact);
    let wildcards = wildcards.iter().cloned().map(HostPattern::Wildcard);
    names.chain(wildcards).filter(|name| !certs.is_configured(name)).collect()
}

/// Whether an authority may sign for it: a name in the public DNS, as far as that can be seen.
fn may_be_certified(name: &HostName) -> bool {
    let text = name.as_str();
    let is_address = text.starts_with('[') || text.parse::<Ipv4Addr>().is_ok();
    !is_address && text.contains('.') && !text.contains('_')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::acme::{DnsHook, DnsMeans, DnsSettings};
    use crate::certs::HTTP_11;
    use crate::routing::path::PathPrefix;
    use crate::routing::table::PathRoute;
    use crate::routing::{Backend, Routing};
    use crate::telemetry::BackendStats;

    fn settings() -> AcmeSettings {
        AcmeSettings {
            directory: "https://acme.test/".to_owned(),
            email: None,
            eab: None,
            challenges: vec![Challenge::Http01],
            roots: None,
            storage: "/nowhere".into(),
            preview_zone: None,
            dns: None,
            orders_per_hour: 10,
            retry_after: Duration::from_secs(60),
        }
    }

    fn with_dns() -> AcmeSettings {
        let hook = DnsHook { command: vec!["/bin/true".to_owned()], timeout: Duration::from_secs(1) };
        let dns = DnsSettings { means: DnsMeans::Hook(hook), propagation: Duration::ZERO };
        AcmeSettings { challenges: vec![Challenge::Http01, Challenge::Dns01], dns: Some(dns), ..settings() }
    }

    fn table(hosts: &[&str], passing: &[&str]) -> Routing {
        let routing = Routing::new(1);
        let backend = Arc::new(Backend::new(Box::default(), Arc::new(BackendStats::for_service("some", 1))));
        routing.publish(|edit| {
            for host in hosts {
                let route = PathRoute::new(PathPrefix::root(), Arc::clone(&backend));
                edit.set(&host.parse().unwrap(), vec![route]);
            }
            for host in passing {
                let route = PathRoute::new(PathPrefix::root(), Arc::clone(&backend)).passing();
                edit.set(&host.parse().unwrap(), vec![route]);
            }
        });
        routing
    }

    fn texts(routing: &Routing, settings: &AcmeSettings) -> Vec<String> {
        let certs = Certs::new(&[HTTP_11]).unwrap();
        wanted(&routing.table(), &certs, settings).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_lasting_public_names_of_the_table_are_asked_for() {
        let hosts =
            ["www.a.test", "a.test", "*", "*.b.test", "10.0.0.1", "[::1]", "localhost", "under_score.test"];
        let routing = table(&hosts, &["web-1a2b.a.test"]);
        assert_eq!(texts(&routing, &settings()), ["a.test", "www.a.test"]);
    }

    #[test]
    fn patterns_and_the_preview_zone_need_dns_and_stand_for_what_is_below_them() {
        let routing = table(&["*.b.test", "x.b.test", "y.x.b.test", "b.test"], &["one.previews.test"]);
        let zone = |settings: AcmeSettings| AcmeSettings {
            preview_zone: Some("previews.test".parse().unwrap()),
            ..settings
        };
        assert_eq!(texts(&routing, &zone(settings())), ["b.test", "x.b.test", "y.x.b.test"]);
        assert_eq!(
            texts(&routing, &zone(with_dns())),
            ["b.test", "y.x.b.test", "*.b.test", "*.previews.test"]
        );
    }
}
