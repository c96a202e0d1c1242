//! How apps and services are spoken to: protocol, TLS, PROXY header.

use super::*;
use crate::routing::tls::{Believed, ClientTls};
use crate::settings::{Protocol, ProxyProtocol};

#[test]
fn upstreams_by_http2_and_tls_are_read() {
    let text = "services: { s: { hosts: [], upstreams: ['h2://10.0.0.5:1', 'https://10.0.0.5:2', 'h2c://10.0.0.5:3'], tls: { insecure: true } } }";
    let config = parse_plain(text).unwrap();
    let upstreams = &config.services[&"s".parse::<ServiceName>().unwrap()].upstreams;
    let spoken: Vec<_> = upstreams.iter().map(|one| (one.protocol, one.tls.is_some())).collect();
    assert_eq!(spoken, [(Protocol::H2, true), (Protocol::Https, true), (Protocol::H2c, false)]);
}

#[test]
fn a_service_by_tls_is_held_to_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, config) = (folder.path().join("ca.pem"), folder.path().join("lockgate.yaml"));
    let pem = pem("an authority", 4000).0;
    std::fs::write(&ca, &pem).unwrap();
    std::fs::write(folder.path().join("none.pem"), "nothing").unwrap();
    let service = |upstream: &str, more: &str| {
        let more = more.replace("FOLDER", &folder.path().display().to_string());
        format!("services:\n  s:\n    hosts: [s.test]\n    upstreams: ['{upstream}']\n    {more}\n")
    };
    let believed = Believed::Authorities(crate::certs::certificates(&pem).unwrap());
    let expected = |believed: &Believed, name: &str| {
        Some(ClientTls::new(believed.clone()).unwrap().to(name.to_owned().try_into().unwrap()))
    };
    for (more, tls) in [
        ("tls: { ca: FOLDER/ca.pem, server_name: s.internal }", expected(&believed, "s.internal")),
        ("tls: { ca: FOLDER/ca.pem }", expected(&believed, "10.0.0.5")),
        ("tls: { insecure: true }", expected(&Believed::Anybody, "10.0.0.5")),
    ] {
        let text = service("https://10.0.0.5:8443", more);
        std::fs::write(&config, &text).unwrap();
        let read = load(&config, &no_env).unwrap();
        let [upstream] = &read.services[&"s".parse::<ServiceName>().unwrap()].upstreams[..] else { panic!() };
        assert_eq!(upstream.tls, tls, "{more}");
        assert_ne!(upstream.tls, expected(&believed, "another.internal"));
        let names_ca = more.contains("ca.pem");
        assert_eq!((sources(&config).contains(&ca), read.tls.files.contains(&ca)), (names_ca, names_ca));
        let warned: Vec<_> = read.warnings.iter().map(|warning| warning.path.as_str()).collect();
        assert_eq!(warned.contains(&"services.s.tls.insecure"), more.contains("insecure"), "{warned:?}");
    }
    for (upstream, more, path, told) in [
        ("http://10.0.0.5:1", "tls: { insecure: true }", "services.s.tls", "there is none"),
        ("https://10.0.0.5:1", "tls: { server_name: a b }", "services.s.tls.server_name", "is not a name"),
        ("https://10.0.0.5:1", "tls: { ca: FOLDER/nowhere.pem }", "services.s.tls.ca", "cannot be read"),
        ("https://10.0.0.5:1", "tls: { ca: FOLDER/none.pem }", "services.s.tls.ca", "holds no certificate"),
        (
            "https://10.0.0.5:1",
            "tls: { ca: FOLDER/ca.pem, insecure: true }",
            "services.s.tls.insecure",
            "stands beside ca",
        ),
        ("https://s.internal:1", "", "services.s.upstreams[0]", "is not an upstream"),
        ("h2c://10.0.0.5:1", "tls: { insecure: true }", "services.s.tls", "there is none"),
        ("h2://10.0.0.5:1", "proxy_protocol: v2", "services.s.proxy_protocol", "many clients"),
    ] {
        refused(&service(upstream, more), path, told);
    }
}

#[test]
fn an_app_by_tls_keeps_the_text_of_its_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, config) = (folder.path().join("ca.pem"), folder.path().join("lockgate.yaml"));
    let pem = pem("an authority", 4000).0;
    std::fs::write(&ca, &pem).unwrap();
    std::fs::write(folder.path().join("none.pem"), "nothing").unwrap();
    let app = |more: &str| {
        let more = more.replace("FOLDER", &folder.path().display().to_string());
        format!("apps:\n  web:\n    {more}\n")
    };
    let written =
        "protocol: https\n    proxy_protocol: v1\n    tls: { ca: FOLDER/ca.pem, server_name: web.internal }";
    std::fs::write(&config, app(written)).unwrap();
    let read = load(&config, &no_env).unwrap();
    let settings = &read.apps[&"web".parse::<AppName>().unwrap()].settings;
    let tls = settings.tls.clone().unwrap();
    assert_eq!((settings.protocol, tls.ca.as_deref()), (Protocol::Https, Some(pem.as_str())));
    assert_eq!(tls.authorities(), Some(crate::certs::certificates(&pem).unwrap()));
    assert!(sources(&config).contains(&ca) && read.tls.files.contains(&ca), "a new one would not be seen");
    let read = parse_plain(&app("protocol: h2\n    tls: { insecure: true }")).unwrap();
    let warned: Vec<_> = read.warnings.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(warned, ["apps.web.tls.insecure"]);
    for (more, path, told) in [
        ("protocol: https", "apps.web.tls.server_name", "is not given"),
        ("tls: { insecure: true }", "apps.web.tls", "speak TLS themselves"),
        (
            "protocol: https\n    tls: { server_name: a, ca: FOLDER/nowhere.pem }",
            "apps.web.tls.ca",
            "cannot be read",
        ),
        (
            "protocol: https\n    tls: { server_name: a, ca: FOLDER/none.pem }",
            "apps.web.tls.ca",
            "holds no certificates",
        ),
        ("protocol: https\n    tls: { server_name: a, cert: x }", "apps.web.tls.cert", "unknown key"),
        ("protocol: tls", "apps.web.protocol", "unknown variant"),
        (
            "protocol: h2\n    proxy_protocol: v1\n    tls: { insecure: true }",
            "apps.web.proxy_protocol",
            "many clients",
        ),
    ] {
        refused(&app(more), path, told);
    }
}

#[test]
fn a_proxy_header_is_told_to_what_speaks_http_1_alone() {
    let text = "apps: { web: { proxy_protocol: v2 } }\nservices: { s: { hosts: [], upstreams: ['http://10.0.0.5:1'], proxy_protocol: v1 } }";
    let config = parse_plain(text).unwrap();
    assert_eq!(
        config.apps[&"web".parse::<AppName>().unwrap()].settings.proxy_protocol,
        Some(ProxyProtocol::V2)
    );
    let service = &config.services[&"s".parse::<ServiceName>().unwrap()];
    assert_eq!(service.proxy_protocol, Some(ProxyProtocol::V1));
    for (text, path) in [
        ("apps: { web: { proxy_protocol: v2, protocol: h2c } }", "apps.web.proxy_protocol"),
        (
            "services: { s: { hosts: [], upstreams: ['h2c://10.0.0.5:1'], proxy_protocol: v2 } }",
            "services.s.proxy_protocol",
        ),
    ] {
        refused(text, path, "many clients");
    }
}
