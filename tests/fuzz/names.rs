//! Hosts, paths and prefixes as strangers write them: what is in normal form stays so, and what one takes its text gives again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockgate::routing::path::{PathPrefix, normalise};
use lockgate::routing::policy::Policies;
use lockgate::routing::policy::rate_limit::Limiters;
use lockgate::routing::{HostName, HostPattern};
use lockgate::settings::PolicySettings;

fuzz_target!(|text: &str| {
    if let Ok(host) = HostName::from_authority(text) {
        assert_eq!(HostName::from_authority(host.as_str()).as_ref(), Ok(&host), "{text:?}");
    }
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(pattern.to_string().parse::<HostPattern>().as_ref(), Ok(&pattern), "{text:?}");
    }
    let normal = normalise(text).into_owned();
    assert_eq!(normalise(&normal), normal, "{text:?}");
    if let Ok(prefix) = text.parse::<PathPrefix>() {
        assert!(prefix.covers(prefix.as_str()), "{text:?}");
        assert_eq!(prefix.as_str().parse::<PathPrefix>().as_ref(), Ok(&prefix), "{text:?}");
    }
    // A path that a route's prefix covers, a policy for that prefix covers as well.
    let (path, prefix) = text.split_once('\n').unwrap_or((text, "/"));
    if let Ok(route) = prefix.parse::<PathPrefix>() {
        let settings = PolicySettings { paths: vec![prefix.to_owned()], ..PolicySettings::default() };
        let is_under = Policies::new(&[settings], &Limiters::default(), "", 1)
            .is_some_and(|policies| !policies.names_for(path).is_empty());
        assert!(is_under || !route.covers(&normalise(path)), "{path:?} under {prefix:?}");
    }
});
