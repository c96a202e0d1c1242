//! How requests are spread, and how many are served at once.

use super::*;
use crate::settings::{BalanceSettings, Delay, FieldName, HashKey, QueueSettings};

#[track_caller]
fn at_path<'a>(refused: &'a Diagnostics, path: &str) -> &'a Diagnostic {
    refused.0.iter().find(|one| one.path == path).unwrap_or_else(|| panic!("{path}: {refused}"))
}

#[test]
fn how_requests_are_spread_is_read_for_apps_and_services_and_refused_with_its_place() {
    let text = |balance: &str| {
        let service = "hosts: [s.test]\n    upstreams: ['http://10.0.0.5:1']";
        format!(
            "apps:\n  web:\n    balance: {balance}\nservices:\n  s:\n    {service}\n    balance: {balance}\n"
        )
    };
    let header = HashKey::Header(FieldName("x-user".parse().unwrap()));
    for (written, expected) in [
        ("two-choices", BalanceSettings::TwoChoices),
        ("round-robin", BalanceSettings::RoundRobin),
        ("sticky", BalanceSettings::Sticky),
        ("{ hash: client }", BalanceSettings::Hash(HashKey::Client)),
        ("\n      hash: path", BalanceSettings::Hash(HashKey::Path)),
        ("{ hash: { header: X-User } }", BalanceSettings::Hash(header)),
    ] {
        let config = parse_plain(&text(written)).unwrap();
        assert_eq!(config.apps[&"web".parse::<AppName>().unwrap()].settings.balance, expected);
        assert_eq!(config.services[&"s".parse::<ServiceName>().unwrap()].balance, expected);
    }
    for (written, below, told, remedy) in [
        ("round_robin", "", "unknown variant", "did you mean `round-robin`?"),
        ("hash", "", "does not say by what: write for example { hash: client }", ""),
        ("{ hsah: client }", ".hsah", "unknown key `hsah`", "did you mean `hash`?"),
        ("{ hash: { header: 'a b' } }", ".hash.header", "\"a b\" is not the name of a header field", ""),
        ("{ hash: { query: a } }", ".hash.query", "unknown key `query`", "known here: header, cookie"),
        ("{ hash: user }", ".hash", "unknown variant", "write one of these"),
        ("7", "", "expected two-choices, round-robin, sticky, or { hash: client }", ""),
    ] {
        let refused = parse_plain(&text(written)).unwrap_err();
        for section in ["apps.web", "services.s"] {
            let at = format!("{section}.balance{below}");
            let found = at_path(&refused, &at);
            assert!(found.message.contains(told) && found.remedy.contains(remedy), "{written}: {refused}");
            assert!(found.line.is_some(), "{refused}");
        }
    }
}

#[test]
fn an_upstream_may_have_a_weight() {
    let text = |upstream: &str| {
        format!(
            "services:\n  s:\n    hosts: [s.test]\n    upstreams:\n      - http://10.0.0.5:1\n      - {upstream}\n"
        )
    };
    for (written, weight) in [
        ("http://10.0.0.6:1", 1),
        ("{ url: 'http://10.0.0.6:1' }", 1),
        ("url: http://10.0.0.6:1\n        weight: 3", 3),
        ("{ weight: 1000, url: 'http://10.0.0.6:1' }", 1000),
    ] {
        let config = parse_plain(&text(written)).unwrap();
        let upstreams = &config.services[&"s".parse::<ServiceName>().unwrap()].upstreams;
        let expected =
            [("10.0.0.5:1", 1), ("10.0.0.6:1", weight)].map(|(at, weight)| (at.to_owned(), weight));
        let read: Vec<_> = upstreams.iter().map(|one| (one.address.to_string(), one.weight)).collect();
        assert_eq!(read, expected, "{written}");
    }
    for (written, at, line, told) in [
        ("url: http://10.0.0.6:1\n        weight: 0", "[1].weight", 7, "out of range"),
        ("{ url: 'http://10.0.0.6:1', weight: 1001 }", "[1].weight", 6, "out of range"),
        ("{ url: 'http://10.0.0.6:1', weight: 0.5 }", "[1].weight", 6, "0.5"),
        ("{ url: 'http://10.0.0.6:1', wieght: 2 }", "[1].wieght", 6, "unknown key"),
        ("{ weight: 2 }", "[1]", 6, "url"),
        ("url: http://s.internal:1\n        weight: 2", "[1].url", 6, "is not an upstream"),
        ("7", "[1]", 6, "expected http://ADDRESS:PORT, or { url: http://ADDRESS:PORT, weight: 3 }"),
    ] {
        let refused = parse_plain(&text(written)).unwrap_err();
        let path = format!("services.s.upstreams{at}");
        let found = at_path(&refused, &path);
        assert!(found.message.contains(told) && found.line == Some(line), "{written}: {refused}");
    }
}

#[test]
fn a_limit_and_its_queue_are_read_for_apps_and_services_and_refused_with_their_place() {
    let text = |more: &str| {
        let service = "hosts: [s.test]\n    upstreams: ['http://10.0.0.5:1']";
        format!("apps:\n  web:\n    {more}\nservices:\n  s:\n    {service}\n    {more}\n")
    };
    let queue = |size, seconds| QueueSettings { size, timeout: Delay::seconds(seconds) };
    for (written, expected) in [
        ("balance: two-choices", None),
        ("max_concurrent_requests: null", None),
        ("max_concurrent_requests: 50", Some((50, queue(1000, 10)))),
        ("max_concurrent_requests: 50\n    queue: { size: 0 }", Some((50, queue(0, 10)))),
        ("max_concurrent_requests: 1\n    queue: { size: 9, timeout: 3s }", Some((1, queue(9, 3)))),
    ] {
        let config = parse_plain(&text(written)).unwrap();
        let settings = &config.apps[&"web".parse::<AppName>().unwrap()].settings;
        let limit = settings.max_concurrent_requests.map(|limit| (limit, settings.queue.unwrap_or_default()));
        assert_eq!(limit, expected, "{written}");
        assert_eq!(config.services[&"s".parse::<ServiceName>().unwrap()].limit, expected, "{written}");
    }
    for (written, at, told) in [
        ("max_concurrent_requests: 0", "max_concurrent_requests", "is 0"),
        ("max_concurrent_requests: -1", "max_concurrent_requests", "-1"),
        ("queue: { size: 5 }", "queue", "without max_concurrent_requests nobody waits"),
        ("max_concurrent_requests: 1\n    queue: { timeout: 0s }", "queue.timeout", "is not positive"),
        ("max_concurrent_requests: 1\n    queue: { timeout: 5 }", "queue.timeout", "expected a duration"),
        ("max_concurrent_requests: 1\n    queue: { length: 5 }", "queue.length", "unknown key `length`"),
        ("max_concurrent_requests: 1\n    queue: 5", "queue", "expected"),
    ] {
        let refused = parse_plain(&text(written)).unwrap_err();
        for section in ["apps.web", "services.s"] {
            let at = format!("{section}.{at}");
            let found = at_path(&refused, &at);
            assert!(found.message.contains(told) && found.line.is_some(), "{written}: {refused}");
        }
    }
}
