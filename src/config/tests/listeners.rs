//! Where clients come in: PROXY headers, https and HTTP/3.

use super::*;
use crate::settings::{Delay, HttpsMode};

#[test]
fn connections_with_a_proxy_header_come_from_where_it_is_written() {
    let text = "listeners:\n  http: { proxy_protocol: { from: [10.0.0.0/8, 'fd00::/8'] } }\n  https: { address: '127.0.0.1:1', proxy_protocol: { from: [127.0.0.1/32] } }\n";
    let config = parse_plain(text).unwrap();
    let networks = |texts: &[&str]| Some(texts.iter().map(|text| text.parse().unwrap()).collect());
    assert_eq!(config.proxy_protocol, networks(&["10.0.0.0/8", "fd00::/8"]));
    assert_eq!(config.tls.proxy_protocol, networks(&["127.0.0.1/32"]));
    for (text, path, told) in [
        (
            "listeners: { http: { proxy_protocol: { from: [] } } }",
            "listeners.http.proxy_protocol.from",
            "no network",
        ),
        (
            "listeners: { https: { address: '127.0.0.1:1', proxy_protocol: { from: [] } } }",
            "listeners.https.proxy_protocol.from",
            "no network",
        ),
        ("listeners: { http: { proxy_protocol: true } }", "listeners.http.proxy_protocol", "invalid type"),
        (
            "listeners: { http: { proxy_protocol: {} } }",
            "listeners.http.proxy_protocol",
            "missing field `from`",
        ),
        ("limits: { proxy_header: 0s }", "limits.proxy_header", "is not positive"),
    ] {
        refused(text, path, told);
    }
}

#[test]
fn how_many_connections_a_listener_may_have_is_read_or_refused_with_its_place() {
    let text =
        "listeners:\n  http: { connections: 100 }\n  https: { address: '127.0.0.1:1', connections: 50 }\n";
    let config = parse_plain(text).unwrap();
    assert_eq!((config.connections, config.tls.connections), (Some(100), Some(50)));
    for (text, path, told) in [
        ("listeners: { http: { connections: 0 } }", "listeners.http.connections", "0"),
        (
            "listeners: { https: { address: '127.0.0.1:1', connections: 0 } }",
            "listeners.https.connections",
            "0",
        ),
        ("listeners: { http: { connections: all } }", "listeners.http.connections", "invalid type"),
    ] {
        refused(text, path, told);
    }
}

#[test]
fn what_an_app_and_a_service_say_of_https_is_read_or_refused_with_its_place() {
    let text = |app: &str, service: &str| {
        format!(
            "apps:\n  web:\n    {app}\nservices:\n  s:\n    hosts: []\n    upstreams: ['http://10.0.0.5:1']\n    {service}\n"
        )
    };
    let written = format!("{HTTPS}{}", text("https: redirect\n    hsts: 180d", "https: allow\n    hsts: 0s"));
    let config = parse_plain(&written).unwrap();
    let app = &config.apps[&"web".parse::<AppName>().unwrap()].settings;
    let days = Delay::seconds(180 * 24 * 60 * 60);
    assert_eq!((app.https, app.hsts), (Some(HttpsMode::Redirect), Some(days)));
    let service = &config.services[&"s".parse::<ServiceName>().unwrap()];
    assert_eq!((service.https, service.hsts), (Some(HttpsMode::Allow), Some(Delay::seconds(0))));
    let silent = parse_plain(&text("port: 1", "queue: null")).unwrap();
    let app = &silent.apps[&"web".parse::<AppName>().unwrap()].settings;
    assert_eq!((app.https, app.hsts), (None, None));

    for (before, app, service, path, told) in [
        ("", "https: redirect", "https: allow", "apps.web.https", "leads to no listener"),
        ("", "https: allow", "https: redirect", "services.s.https", "leads to no listener"),
        ("", "hsts: 60s", "hsts: 0s", "apps.web.hsts", "for which there is no listener"),
        ("", "hsts: 0s", "hsts: 60s", "services.s.hsts", "for which there is no listener"),
        (
            "listeners: { https: { hsts: 60s } }\n",
            "port: 1",
            "queue: null",
            "listeners.https.hsts",
            "for which there is no listener",
        ),
        (HTTPS, "https: never", "queue: null", "apps.web.https", "unknown variant `never`"),
        (HTTPS, "port: 1", "https: true", "services.s.https", "invalid type"),
        (HTTPS, "hsts: 999ms", "queue: null", "apps.web.hsts", "is below a second"),
        (HTTPS, "port: 1", "hsts: 1ms", "services.s.hsts", "is below a second"),
        (HTTPS, "hsts: long", "queue: null", "apps.web.hsts", "is not a duration"),
        (
            "listeners: { https: { address: '127.0.0.1:443', hsts: 1ms } }\n",
            "port: 1",
            "queue: null",
            "listeners.https.hsts",
            "is below a second",
        ),
    ] {
        let refused = parse_plain(&format!("{before}{}", text(app, service))).unwrap_err();
        let is_told = refused
            .0
            .iter()
            .any(|one| one.path == path && format!("{} {}", one.message, one.remedy).contains(told));
        assert!(is_told, "{path}: {refused}");
    }
}

#[test]
#[cfg(not(feature = "http3"))]
fn a_build_without_http3_refuses_its_key_and_says_what_is_missing() {
    let text = format!("{}\n", HTTPS.trim_end().replace(" } }", ", http3: true } }"));
    let told = parse_plain(&text).unwrap_err().to_string();
    for part in ["listeners.https.http3", "needs the feature http3", "--features http3"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    parse_plain(&text.replace("true", "false")).unwrap();
    let told = parse_plain(&text.replace("http3: true", "alt_svc: { max_age: 0s }")).unwrap_err().to_string();
    assert!(told.contains("listeners.https.alt_svc") && told.contains("needs the feature http3"), "{told}");
}

#[test]
#[cfg(feature = "http3")]
fn http3_is_asked_for_where_there_is_https_and_no_proxy_header() {
    let with =
        |more: &str| parse_plain(&HTTPS.trim_end().replace(" } }", &format!(", http3: true{more} }} }}")));
    assert!(with("").unwrap().tls.http3);
    assert!(!parse_plain(HTTPS).unwrap().tls.http3);
    let told = with(", proxy_protocol: { from: [10.0.0.0/8] }").unwrap_err().to_string();
    assert!(told.contains("listeners.https.http3") && told.contains("QUIC has no such header"), "{told}");
    let told = parse_plain("listeners: { https: { http3: true } }").unwrap_err().to_string();
    assert!(told.contains("stands without an address"), "{told}");
}

#[test]
#[cfg(feature = "http3")]
fn what_is_told_of_http3_can_be_true() {
    let with = |more: &str| parse_plain(&HTTPS.trim_end().replace(" } }", &format!(", {more} }} }}")));
    let told = |more| with(more).unwrap().tls.alt_svc.map(|told| (told.port, told.max_age.0.as_secs()));
    assert_eq!(told("hsts: 0s"), None);
    assert_eq!(told("http3: true"), Some((None, 86_400)));
    assert_eq!(told("http3: true, alt_svc: { port: 443, max_age: 1h }"), Some((Some(443), 3600)));
    assert_eq!(told("http3: true, alt_svc: { max_age: 0s }"), Some((None, 0)));
    assert_eq!(told("alt_svc: { max_age: 0s }"), Some((None, 0)));
    for (more, path, message) in [
        ("alt_svc: { max_age: 1h }", "listeners.https.alt_svc", "not served"),
        ("alt_svc: {}", "listeners.https.alt_svc", "not served"),
        ("http3: true, alt_svc: { port: 0 }", "listeners.https.alt_svc.port", "is no port"),
        ("http3: true, alt_svc: { max_age: 10ms }", "listeners.https.alt_svc.max_age", "whole seconds"),
        ("http3: true, alt_svc: { age: 1h }", "listeners.https.alt_svc", "age"),
    ] {
        let refused = with(more).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path.starts_with(path) && one.message.contains(message));
        assert!(is_told, "{more}: {refused}");
    }
}
