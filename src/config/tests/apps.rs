//! Keys of apps alone.

use super::*;
use crate::settings::Delay;

#[test]
fn an_app_takes_the_common_deploy_keys_it_does_not_set() {
    let text = "deploy: { watch: 1s, drain_timeout: 7s }\napps:\n  web:\n    hosts: [a.test, b.test/api]\n    command: [./web, $PORT]\n    deploy: { watch: 2s }\n";
    let config = parse_plain(text).unwrap();
    let web = &config.apps[&"web".parse::<AppName>().unwrap()];
    assert_eq!(web.settings.deploy.watch, Delay::seconds(2));
    assert_eq!(web.settings.deploy.drain_timeout, Delay::seconds(7));
    assert_eq!(web.settings.command, ["./web", "$PORT"]);
    assert_eq!(web.hosts[1].prefix.as_str(), "/api");
}

#[test]
fn a_bad_time_of_the_office_hours_is_told_with_its_line_and_a_remedy() {
    let text = "apps:\n  web:\n    schedule:\n      - { cron: 0 20 * *, state: standby }\n      - cron: 0 7 * * MON-FRI\n        timezone: Europe/Berlni\n        state: running\n";
    let told = parse_plain(text).unwrap_err().to_string();
    for part in [
        "lockgate.yaml:4:",
        "apps.web.schedule[0].cron",
        "is not a cron pattern",
        "lockgate.yaml:6:",
        "apps.web.schedule[1].timezone",
        "is no time zone",
        "Europe/Berlin",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let told = parse_plain("apps: { web: { schedule: [{ cron: 0 20 * * *, state: asleep }] } }").unwrap_err();
    assert!(told.to_string().contains("standby"), "{told}");
}
