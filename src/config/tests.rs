use super::*;
use crate::routing::tls::{Believed, ClientTls};
use crate::settings::{Delay, ProxyProtocol};

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse_plain(text: &str) -> Result<Config, Diagnostics> {
    parse(text, "lockgate.yaml", &no_env)
}

#[test]
fn the_documented_file_says_exactly_the_defaults() {
    let documented = parse_plain(include_str!("../../config/lockgate.yaml")).unwrap();
    let mut empty = parse_plain("").unwrap();
    // The limits' defaults belong to the data plane; that they are these is tested where both are known.
    empty.limits = documented.limits.clone();
    empty.document = documented.document.clone();
    assert_eq!(documented, empty);
    let document = documented.document.as_mapping().unwrap();
    let defaults = serde_yaml::to_value(Document::default()).unwrap();
    let missing: Vec<_> =
        keys(&defaults, "").into_iter().filter(|key| find(&documented.document, key).is_none()).collect();
    assert_eq!(missing, Vec::<String>::new(), "not documented: {document:?}");
}

fn keys(value: &Value, path: &str) -> Vec<String> {
    let Value::Mapping(entries) = value else { return vec![path.to_owned()] };
    let below = |(key, value): (&Value, &Value)| {
        let key = key.as_str().unwrap();
        keys(value, &if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") })
    };
    entries.iter().flat_map(below).collect()
}

fn find<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |value, key| value.as_mapping()?.get(key))
}

#[test]
fn the_demo_file_is_valid() {
    let config = parse_plain(include_str!("../../config/demo.yaml")).unwrap();
    assert_eq!(config.http, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.access_log, AccessLog::Off);
}

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
fn what_is_filled_in_stays_one_scalar() {
    let env = |name: &str| (name == "EVIL").then(|| "a: b\nc: [".to_owned());
    let config = parse("apps: { web: { env: { X: '${EVIL}', Y: '$$5 ${NONE:-d}' } } }", "x", &env).unwrap();
    let settings = &config.apps[&"web".parse::<AppName>().unwrap()].settings;
    assert_eq!(settings.env["X"].expose(), "a: b\nc: [");
    assert_eq!(settings.env["Y"].expose(), "$5 d");
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_a_remedy() {
    let bad = [
        "apps:\n  web:\n    hosts: [a.test]\n    prot: 80\n",
        "listeners:\n  http: { address: nonsense }\n",
        "listeners:\n  http: 127.0.0.1:8080\n",
        "deploy: { health_timeout: 5 }\n",
        "deploy:\n  watch: 5\n  drain_timeout: soon\n",
        "apps:\n  web: { hosts: [a.test], image: x, port: 99999 }\n",
        "apps:\n  web: { hosts: [a.test], image: x, port: '80 or so' }\n",
        "listeners:\n  https: { adress: 0.0.0.0:443 }\n",
        "listeners:\n  http:\n    redirect: 0\n  https:\n    also: ['127.0.0.1:1']\n",
        "tls:\n  certificates:\n    - cert: /nonexistent/a.pem\n      key: /dev/null\n      hosts: ['*', 'a b']\n  clients:\n    - hosts: []\n      ca: /nonexistent/ca.pem\n",
        "runtime: kubernetes\n",
        "apps:\n  web:\n    hosts: [a.test]\n  web:\n    hosts: [b.test]\n",
        "apps:\n  one:\n    hosts: [a.test]\n  two:\n    hosts:\n      - b.test\n      - A.test.\n",
        "apps:\n  web:\n    health: { path: up }\n    resources:\n      memory_mib: 1\n    replicas: 0\n",
        "deploy:\n  watch: soon\n",
        "apps:\n  web:\n    env:\n      TOKEN: ${MISSING}\n",
        "apps:\n  Web: {}\n",
        "services:\n  old:\n    hosts: [o.test]\n    upstreams: [https://a.test]\n",
        "listeners:\n  http: { address: '0.0.0.0:8080' }\nadmin: { address: '127.0.0.1:9900' }\nservices:\n  old:\n    hosts: [o.test]\n    upstreams: ['http://127.0.0.1:8080', 'http://127.0.0.1:9900', 'http://10.0.0.5:8080']\n",
        "admin: { address: 0.0.0.0:9900 }\n",
        "a: [1\n",
        "apps:\n  web:\n    <<: { port: 1 }\n",
        "- not\n- a mapping\n",
        "app: {}\n",
        "access_log: !file /var/log/x\n",
        "web:\n  web: 1\nlimits:\n  limits: 1\n  head: 0s\n  bodyfloor: 1\n",
        "deploy:\n  watch: soon\n  health_timeout: 0s\napps:\n  one: {}\n  two:\n    hosts:\n      - { host: a.test, path: 5 }\n      - { hots: a.test }\n    env: { A: 5 }\n",
    ];
    let told: Vec<String> =
        bad.iter().map(|text| format!("{text}----\n{}\n", parse_plain(text).expect_err(text))).collect();
    insta::assert_snapshot!(told.join("\n========\n"));
}

#[test]
fn no_value_of_an_env_var_is_told() {
    let told = parse_plain("apps:\n  web:\n    env:\n      TOKEN: [canary]\n").unwrap_err().to_string();
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn a_reload_tells_what_changed_and_what_waits() {
    let old = parse_plain("workers: 1\napps: { web: { port: 1, env: { A: x } } }").unwrap();
    let new = parse_plain("workers: 2\napps: { web: { port: 2, env: { A: y } } }").unwrap();
    let reloaded = diff(&old, &new);
    assert_eq!(
        reloaded.changes,
        ["~ apps.web.env.A: [secret] -> [secret]", "~ apps.web.port: 1 -> 2", "~ workers: 1 -> 2"]
    );
    assert_eq!(reloaded.needs_restart, ["workers"]);
    let more = parse_plain("workers: 2\napps: { web: { port: 2, env: { A: y } }, env: {} }").unwrap();
    assert_eq!(diff(&new, &more).changes, ["+ apps.env: {}"]);
}

proptest::proptest! {
    /// Whatever stands in the file, it is refused or read, and nothing else.
    #[test]
    fn no_text_brings_it_down(cut in 0_usize..4000, put in "[ -~\n]{0,12}", at in 0_usize..4000) {
        let text = include_str!("../../config/lockgate.yaml");
        let from = (cut.min(at)).min(text.len());
        let to = (cut.max(at)).min(text.len()).min(from + 20);
        if text.is_char_boundary(from) && text.is_char_boundary(to) {
            let mutated = format!("{}{put}{}", &text[..from], &text[to..]);
            if let Err(diagnostics) = parse_plain(&mutated) {
                proptest::prop_assert!(!diagnostics.0.is_empty());
            }
        }
    }
}

#[test]
fn a_value_that_is_filled_in_fits_where_text_or_a_number_is_wanted() {
    let env = |name: &str| (name == "N").then(|| "007".to_owned());
    let text = "workers: ${N}\naccess_log: { file: '/log/${N}' }\napps:\n  web:\n    port: ${N}\n    env: { A: '${N}' }\n    command: [web, '${N}']\n    hosts: [{ host: a.test, path: /x, strip: '${S:-true}' }]\n";
    let config = parse(text, "x", &env).unwrap();
    let web = &config.apps[&"web".parse::<AppName>().unwrap()];
    assert_eq!((config.workers, web.settings.port), (7, Some(7)));
    assert_eq!((web.settings.env["A"].expose(), web.settings.command[1].as_str()), ("007", "007"));
    assert!(web.hosts[0].strip);
    assert_eq!(config.access_log, AccessLog::File("/log/007".into()));
}

#[test]
fn nothing_that_is_filled_in_is_told() {
    let env = |name: &str| (name == "S").then(|| "canary".to_owned());
    for bad in [
        "runtime: ${S}",
        "workers: ${S}",
        "apex: '${S}..'",
        "deploy: { watch: '${S}' }",
        "deploy: { watch: '1s, expected ${S}' }",
        "data_dir: /x\nlisteners: { http: { address: '${S}' } }",
        "trusted_proxies: ['${S}']",
        "access_log: ${S}",
        "apps: { web: { hosts: ['${S}..'] } }",
        "apps: { web: { health: { path: '${S}' } } }",
        "apps: { web: { health: '${S}' } }",
        "apps: { web: { env: '${S}' } }",
        "apps: { web: { env: canary } }",
        "apps: { web: { env: { A: [canary] } } }",
        "apps: { web: { env: { A: canary }, prot: 1 } }",
        "apps:\n  web:\n    env:\n      A: \"canary\n",
        "apps:\n  web:\n    env:\n      A: canary\n      A: canary\n",
        "apps: { a: { hosts: ['${S}.test'] }, b: { hosts: ['${S}.test'] } }",
        "services: { s: { hosts: [], upstreams: ['${S}'] } }",
        "ephemeral: { reserved_labels: ['${S}.'] }",
    ] {
        let told = parse(bad, "x", &env).expect_err(bad).to_string();
        assert!(!told.contains("canary"), "{bad}\n{told}");
    }
    let old = parse("apps: { web: { command: [web, '${S}'] } }", "x", &env).unwrap();
    let new = parse_plain("apps: { web: { command: [web, '${S:-other}'] } }").unwrap();
    assert_eq!(diff(&old, &new).changes, ["~ apps.web.command[1]: [secret] -> [secret]"]);
}

#[test]
fn the_schema_requires_nothing_that_has_a_default() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    assert_eq!(schema.get("required"), None);
    let app = schema.pointer("/$defs/AppDocument").unwrap();
    assert_eq!(app.get("required"), None);
    for key in ["listeners", "limits", "deploy", "docker", "apps", "services"] {
        assert!(schema.pointer(&format!("/properties/{key}")).is_some(), "{key}");
    }
    assert!(app.pointer("/properties/image").is_some() && app.pointer("/properties/hosts").is_some());
}

#[test]
fn a_file_without_an_end_is_refused() {
    let told = parse_plain("apex: ${file:/dev/zero}").unwrap_err().to_string();
    assert!(told.contains("not a regular file"), "{told}");
    let told = load(Path::new("/dev/zero"), &no_env).unwrap_err().to_string();
    assert!(told.contains("not a regular file"), "{told}");
}

/// A certificate of that name, good until the beginning of `year`, and its key.
fn pem(name: &str, year: i32) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn certificates_are_read_with_the_configuration_and_what_is_wrong_with_them_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let (good, old) = (pem("a.test", 4000), pem("b.test", 2000));
    for (name, text) in [("a.pem", &good.0), ("a.key", &good.1), ("b.pem", &old.0), ("b.key", &old.1)] {
        file(name, text);
    }
    file("no.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let parse = |cert: &str, key: &str, hosts: &str| {
        let at = folder.path().display();
        let text = format!(
            "listeners: {{ https: {{ address: '127.0.0.1:0' }} }}\ntls:\n  certificates:\n    - cert: {at}/{cert}\n      key: {at}/{key}\n      hosts: [{hosts}]\n"
        );
        parse_plain(&text)
    };
    let config = parse("a.pem", "a.key", "").unwrap();
    assert_eq!((config.tls.certificates.len(), config.tls.files.len(), config.warnings.len()), (1, 2, 0));
    for (cert, key, at, told) in [
        ("none.pem", "a.key", "cert", "cannot be read"),
        ("no.pem", "a.key", "cert", "cannot be read"),
        ("a.key", "a.key", "cert", "holds no certificate"),
        ("a.pem", "a.pem", "key", "holds no private key"),
        ("a.pem", "b.key", "key", "is not the key of the certificate"),
    ] {
        let error = parse(cert, key, "").unwrap_err();
        let [only] = &error.0[..] else { panic!("{error}") };
        assert_eq!(only.path, format!("tls.certificates[0].{at}"), "{error}");
        assert!(only.line.is_some() && only.message.contains(told), "{error}");
        let secret = good.1.lines().nth(1).unwrap();
        assert!(!error.to_string().contains(secret), "a key is told: {error}");
    }
    for (cert, key, hosts, at, told) in [
        ("b.pem", "b.key", "", "tls.certificates[0].cert", "has expired"),
        ("a.pem", "a.key", "a.test, c.test", "tls.certificates[0].hosts[1]", "is not among the names"),
    ] {
        let config = parse(cert, key, hosts).unwrap();
        let [only] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
        assert!(only.path == at && only.message.contains(told), "{only}");
    }
    let none = parse_plain("listeners: { https: { address: '127.0.0.1:0' } }").unwrap();
    assert!(none.warnings[0].message.contains("no certificate"), "{:?}", none.warnings);
}

#[test]
fn what_the_files_of_certificates_are_is_known_from_the_text_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockgate.yaml");
    let text = "tls: { certificates: [{ cert: /a/b.pem, key: /a/b.key }], clients: [{ hosts: [x.test], ca: /a/ca.pem }] }";
    std::fs::write(&path, text).unwrap();
    let expected = [path.clone(), "/a/b.pem".into(), "/a/b.key".into(), "/a/ca.pem".into()];
    assert_eq!(sources(&path), expected);
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

const HTTPS: &str = "listeners: { https: { address: '127.0.0.1:443' } }\n";

#[test]
fn acme_asks_for_nothing_without_a_directory_and_for_what_is_written_with_one() {
    assert_eq!(parse_plain("tls: { acme: { challenges: [dns-01] } }").unwrap().tls.acme, None);
    let text = format!(
        "{HTTPS}data_dir: /data\ntls:\n  acme:\n    directory: https://acme.test/dir\n    terms_agreed: true\n    \
         challenges: [http-01, dns-01]\n    dns_hook: [/bin/hook, --zone, a b]\n    preview_zone: apps.test\n    \
         eab: {{ key_id: me, hmac_key: c2VjcmV0 }}\n"
    );
    let acme = parse_plain(&text).unwrap().tls.acme.unwrap();
    assert_eq!(acme.storage, Path::new("/data/acme"));
    assert_eq!(acme.dns.unwrap().command, ["/bin/hook", "--zone", "a b"]);
    let eab = acme.eab.unwrap();
    assert_eq!(eab.hmac_key, b"secret");
    assert!(!format!("{eab:?}").contains("115"), "the key is shown: {eab:?}");
    assert_eq!((acme.orders_per_hour, acme.retry_after.as_secs()), (60, 60));
}

#[test]
fn what_acme_cannot_do_is_told_with_what_to_write() {
    let valid = "directory: https://acme.test/dir, terms_agreed: true";
    for (acme, path, told) in [
        ("directory: http://acme.test/dir, terms_agreed: true", "tls.acme.directory", "is not an https URL"),
        ("directory: acme.test, terms_agreed: true", "tls.acme.directory", "is not an https URL"),
        ("directory: https://acme.test/dir", "tls.acme.terms_agreed", "is not true"),
        (&format!("{valid}, challenges: []"), "tls.acme.challenges", "is empty"),
        (&format!("{valid}, challenges: [dns-01]"), "tls.acme.challenges", "there is no dns_hook"),
        (&format!("{valid}, challenges: [http-1]"), "tls.acme.challenges[0]", "unknown variant"),
        (&format!("{valid}, preview_zone: a.test"), "tls.acme.preview_zone", "needs the challenge dns-01"),
        (&format!("{valid}, preview_zone: '*.a.test'"), "tls.acme.preview_zone", "is not a host name"),
        (&format!("{valid}, dns_hook: [hook]"), "tls.acme.dns_hook[0]", "is not an absolute path"),
        (&format!("{valid}, email: mailto:a@b.test"), "tls.acme.email", "is not one address"),
        (&format!("{valid}, ca: /nowhere/ca.pem"), "tls.acme.ca", "cannot be read"),
        (&format!("{valid}, orders_per_hour: 0"), "tls.acme.orders_per_hour", "is 0"),
        (&format!("{valid}, retry_after: 0s"), "tls.acme.retry_after", "is not positive"),
        (
            &format!("{valid}, eab: {{ key_id: a, hmac_key: '!' }}"),
            "tls.acme.eab.hmac_key",
            "is not base64url",
        ),
    ] {
        let refused = parse_plain(&format!("{HTTPS}tls: {{ acme: {{ {acme} }} }}")).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{acme}: {refused}");
    }
    let refused = parse_plain(&format!("tls: {{ acme: {{ {valid} }} }}")).unwrap_err();
    assert!(refused.to_string().contains("no listener offers"), "{refused}");
}

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
        let refused = parse_plain(text).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{text}: {refused}");
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
        let refused = parse_plain(text).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains("many clients"));
        assert!(is_told, "{text}: {refused}");
    }
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
    ] {
        let refused = parse_plain(&service(upstream, more)).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{upstream} {more}: {refused}");
    }
}
