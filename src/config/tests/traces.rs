//! Where traces go.

use super::*;

#[test]
fn traces_go_where_they_are_to_go() {
    assert_eq!(parse_plain("traces: { sample_ratio: 0.5 }").unwrap().traces, None);
    let text = "traces:\n  endpoint: http://collector:4318/v1/traces\n  sample_ratio: 0.25\n  service: edge\n  \
                headers: { X-Team: a b, Authorization: '${KEY}' }\n";
    let env = |name: &str| (name == "KEY").then(|| "Bearer canary\n".to_owned());
    let config = parse(text, "lockgate.yaml", &env).unwrap();
    let traces = config.traces.clone().unwrap();
    assert_eq!(
        (traces.endpoint.to_string().as_str(), traces.sample_ratio),
        ("http://collector:4318/v1/traces", 0.25)
    );
    assert_eq!(
        (traces.headers["authorization"].to_str().unwrap(), traces.service.as_str()),
        ("Bearer canary", "edge")
    );
    assert_eq!((traces.timeout.as_secs(), traces.interval.as_secs(), traces.queue), (10, 5, 10_000));
    assert!(!format!("{traces:?}").contains("canary"), "{traces:?}");
    // And what a reload says of it.
    let changed = diff(&parse_plain(&text.replace("'${KEY}'", "Bearer one")).unwrap(), &config);
    assert_eq!(changed.changes, ["~ traces.headers.Authorization: [secret] -> [secret]"]);
    assert_eq!(changed.needs_restart, Vec::<String>::new());
}

#[test]
fn what_traces_cannot_be_is_told_with_what_to_write_and_without_a_secret() {
    let valid = "endpoint: http://c.test/v1/traces";
    for (traces, path, told) in [
        ("endpoint: collector:4318", "traces.endpoint", "is not an http or https URL"),
        ("endpoint: grpc://c.test:4317", "traces.endpoint", "is not an http or https URL"),
        ("endpoint: http://me:you@c.test/v1/traces", "traces.endpoint", "is not an http or https URL"),
        ("endpoint: /v1/traces", "traces.endpoint", "is not an http or https URL"),
        (&format!("{valid}, sample_ratio: 1.5"), "traces.sample_ratio", "is out of range"),
        (&format!("{valid}, sample_ratio: .nan"), "traces.sample_ratio", "is out of range"),
        (&format!("{valid}, sample_ratio: 10%"), "traces.sample_ratio", "invalid type"),
        (&format!("{valid}, timeout: 0s"), "traces.timeout", "is not positive"),
        (&format!("{valid}, interval: 0s"), "traces.interval", "is not positive"),
        (&format!("{valid}, queue: 99"), "traces.queue", "is less than 100"),
        (&format!("{valid}, service: ''"), "traces.service", "is empty"),
        (&format!("{valid}, ca: /ca.pem"), "traces.ca", "is for an https endpoint"),
        ("endpoint: https://c.test/v1/traces, ca: /nowhere/ca.pem", "traces.ca", "cannot be read"),
        (
            &format!("{valid}, headers: {{ 'a b': canary }}"),
            "traces.headers.a b",
            "is not the name of a header",
        ),
        (
            &format!("{valid}, headers: {{ X-Key: \"canary\\n2\" }}"),
            "traces.headers.X-Key",
            "no header can have",
        ),
        (
            &format!("{valid}, headers: {{ Host: canary }}"),
            "traces.headers.Host",
            "is set by Lockgate itself",
        ),
        (&format!("{valid}, protocol: grpc"), "traces.protocol", "unknown key"),
    ] {
        let refused = refused(&format!("traces: {{ {traces} }}"), path, told);
        assert!(!refused.to_string().contains("canary"), "{refused}");
    }
    for (traces, told) in [
        ("headers: { X-Key: '1' }", "no traces are exported"),
        ("endpoint: http://c.test:4318", "has no path"),
    ] {
        let config = parse_plain(&format!("traces: {{ {traces} }}")).unwrap();
        assert!(
            config.warnings.iter().any(|warning| warning.message.contains(told)),
            "{:?}",
            config.warnings
        );
    }
}
