use super::*;
use crate::acme::{DnsHook, DnsMeans, DnsSettings};
use crate::routing::tls::{Believed, ClientTls};
use crate::settings::{
    BalanceSettings, Delay, FieldName, HashKey, HttpsMode, Protocol, ProxyProtocol, QueueSettings,
};

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
        "apps: { web: { balance: '${S}' } }",
        "apps: { web: { balance: { hash: { header: '${S} x' } } } }",
        "apps: { web: { balance: { hash: '${S}' } } }",
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
    assert_eq!(hook_of(acme.dns).command, ["/bin/hook", "--zone", "a b"]);
    let eab = acme.eab.unwrap();
    assert_eq!(eab.hmac_key, b"secret");
    assert!(!format!("{eab:?}").contains("115"), "the key is shown: {eab:?}");
    assert_eq!((acme.orders_per_hour, acme.retry_after.as_secs()), (60, 60));
}

fn hook_of(dns: Option<DnsSettings>) -> DnsHook {
    match dns.unwrap().means {
        DnsMeans::Hook(hook) => hook,
        DnsMeans::Update(update) => panic!("no hook: {update:?}"),
    }
}

#[test]
fn dynamic_updates_are_as_they_are_written() {
    let valid =
        "directory: https://acme.test/dir, terms_agreed: true, challenges: [dns-01], dns_propagation: 3s";
    let update = |written: &str| {
        let text = format!("{HTTPS}tls: {{ acme: {{ {valid}, dns_update: {{ {written} }} }} }}");
        let dns = parse_plain(&text).unwrap().tls.acme.unwrap().dns.unwrap();
        assert_eq!(dns.propagation.as_secs(), 3);
        match dns.means {
            DnsMeans::Update(update) => update,
            DnsMeans::Hook(hook) => panic!("no update: {hook:?}"),
        }
    };
    let short = update("server: NS.test, key_name: Key., key_secret: c2VjcmV0");
    assert_eq!((short.server.to_string().as_str(), short.zone), ("ns.test:53", None));
    assert_eq!((short.key.name.to_string().as_str(), short.key.algorithm.as_str()), ("key", "hmac-sha256"));
    assert_eq!((short.key.secret.as_slice(), short.ttl, short.timeout.as_secs()), (&b"secret"[..], 60, 10));
    let long = update(
        "server: '[::1]:5353', zone: A.test., key_name: k, key_secret: c2VjcmV0, algorithm: hmac-sha512, ttl: 2m, timeout: 1s",
    );
    assert_eq!((long.server.to_string().as_str(), long.ttl), ("[::1]:5353", 120));
    assert_eq!(
        (long.zone.unwrap().to_string().as_str(), long.key.algorithm.as_str()),
        ("a.test", "hmac-sha512")
    );
    for (written, expected) in
        [("192.0.2.1", "192.0.2.1:53"), ("'::1'", "[::1]:53"), ("a.test:1", "a.test:1")]
    {
        let server = update(&format!("server: {written}, key_name: k, key_secret: c2VjcmV0")).server;
        assert_eq!(server.to_string(), expected);
    }
}

#[test]
fn keys_are_shown_neither_where_they_are_wrong_nor_where_they_change() {
    for line in [
        "eab: { key_id: a, hmac_key: 'canary!' }",
        "dns_update: { server: a.test, key_name: k, key_secret: 'canary!' }",
        "dns_update: { server: a.test, key_name: k, key_secret: canary, ttl: soon }",
        "dns_update: { server: a.test, key_name: k, key_secret: [canary] }",
        "eab: { key_id: a, hmac_key: [canary] }",
    ] {
        let text = format!(
            "{HTTPS}tls:\n  acme:\n    directory: https://a.test\n    terms_agreed: true\n    {line}\n"
        );
        let told = parse_plain(&text).unwrap_err();
        assert!(!format!("{told} {told:?}").contains("canary"), "{line}: {told:?}");
    }
    let with = |key: &str| {
        let update = format!("{{ server: a.test, key_name: k, key_secret: {key} }}");
        let eab = format!("{{ key_id: a, hmac_key: {key} }}");
        parse_plain(&format!("{HTTPS}tls: {{ acme: {{ dns_update: {update}, eab: {eab} }} }}")).unwrap()
    };
    let changes = diff(&with("canary01"), &with("canary02")).changes;
    let shown = [
        "~ tls.acme.dns_update.key_secret: [secret] -> [secret]",
        "~ tls.acme.eab.hmac_key: [secret] -> [secret]",
    ];
    assert_eq!(changes, shown);
    let acme = "directory: https://a.test, terms_agreed: true, dns_update: { server: a.test, key_name: k, key_secret: c2VjcmV0 }";
    let config = parse_plain(&format!("{HTTPS}tls: {{ acme: {{ {acme} }} }}")).unwrap();
    let dns = format!("{:?}", config.tls.acme.unwrap().dns);
    assert!(
        dns.contains("TsigKey") && !dns.contains("secret") && !dns.contains("115"),
        "the key is shown: {dns}"
    );
}

#[test]
fn what_policies_keep_secret_is_shown_neither_where_it_is_wrong_nor_where_it_changes() {
    let with = |policy: &str| {
        format!(
            "services: {{ a: {{ hosts: [a.test], upstreams: ['http://127.0.0.1:1'], policies: [\n{policy}\n] }} }}\n"
        )
    };
    for policy in [
        "{ signed_link: { key: canary } }",
        "{ signed_link: { key: [canary] } }",
        "{ signed_link: canary }",
        "{ signed_link: { key: canary, other: 1 } }",
        "{ signed_link:\n { key: canary } }",
        "{ signed_link: { also: [canary] } }",
        "{ signed_link: { also: canary } }",
        "{ signed_link: { also: [{ key: canary }] } }",
        "{ signed_link: { key: k,\nother: 1, also: [canary] } }",
        "{ basic_auth: { users: { a: canary } } }",
        "{ basic_auth: { users: [{ user: '', password: canary }] } }",
    ] {
        let told = parse_plain(&with(policy)).unwrap_err();
        assert!(!format!("{told} {told:?}").contains("canary"), "{policy}: {told:?}");
    }
    let key = |end: u8| {
        parse_plain(&with(&format!("{{ signed_link: {{ key: '{}{end}' }} }}", "k".repeat(32)))).unwrap()
    };
    let changes = diff(&key(1), &key(2)).changes;
    assert_eq!(changes, ["~ services.a.policies[0].signed_link.key: [secret] -> [secret]"]);
    let also = |also: &str| {
        let key = "k".repeat(32);
        parse_plain(&with(&format!("{{ signed_link: {{ key: {key}x, also: [{also}] }} }}"))).unwrap()
    };
    let (none, some) = (also(""), also(&"canary".repeat(6)));
    for (old, new) in [(&none, &some), (&some, &none), (&some, &also(&"kanary".repeat(6)))] {
        let changes = diff(old, new).changes;
        let is_hidden = |change: &String| change.contains("signed_link.also") && !change.contains("anary");
        assert!(!changes.is_empty() && changes.iter().all(is_hidden), "{changes:?}");
    }
}

#[test]
fn what_acme_cannot_do_is_told_with_what_to_write() {
    let valid = "directory: https://acme.test/dir, terms_agreed: true";
    let updated = |beside: &str, key: &str| {
        let keys = [("server", "a.test"), ("key_name", "k"), ("key_secret", "aaaa")];
        let others = keys.iter().filter(|(name, _)| !key.starts_with(&format!("{name}:")));
        let written: String = others.map(|(name, value)| format!("{name}: {value}, ")).collect();
        format!("{valid}, dns_update: {{ {written}{key} }}, {beside}")
    };
    for (acme, path, told) in [
        ("directory: http://acme.test/dir, terms_agreed: true", "tls.acme.directory", "is not an https URL"),
        ("directory: acme.test, terms_agreed: true", "tls.acme.directory", "is not an https URL"),
        ("directory: https://acme.test/dir", "tls.acme.terms_agreed", "is not true"),
        (&format!("{valid}, challenges: []"), "tls.acme.challenges", "is empty"),
        (&format!("{valid}, challenges: [dns-01]"), "tls.acme.challenges", "neither dns_update nor dns_hook"),
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
        (
            &format!("{valid}, dns_update: {{ key_name: k, key_secret: aaaa }}"),
            "tls.acme.dns_update",
            "server",
        ),
        (&updated("dns_hook: [/bin/hook]", ""), "tls.acme.dns_update", "is there beside dns_hook"),
        (
            &updated("challenges: [dns-01], preview_zone: b.test", "zone: a.test"),
            "tls.acme.preview_zone",
            "a.test",
        ),
        (&updated("", "server: 'a b'"), "tls.acme.dns_update.server", "is not a host name"),
        (&updated("", "server: 'a.test:99999'"), "tls.acme.dns_update.server", "port"),
        (&updated("", "zone: a..test"), "tls.acme.dns_update.zone", "a label is empty"),
        (&updated("", "key_name: ''"), "tls.acme.dns_update.key_name", "is not a name of the DNS"),
        (&updated("", "key_secret: '!'"), "tls.acme.dns_update.key_secret", "is not base64"),
        (&updated("", "key_secret: ''"), "tls.acme.dns_update.key_secret", "is not base64"),
        (&updated("", "algorithm: hmac-md5"), "tls.acme.dns_update.algorithm", "unknown variant"),
        (&updated("", "ttl: 25h"), "tls.acme.dns_update.ttl", "longer than a day"),
        (&updated("", "timeout: 0s"), "tls.acme.dns_update.timeout", "is not positive"),
    ] {
        let refused = parse_plain(&format!("{HTTPS}tls: {{ acme: {{ {acme} }} }}")).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{acme}: {refused}");
    }
    let refused = parse_plain(&format!("tls: {{ acme: {{ {valid} }} }}")).unwrap_err();
    assert!(refused.to_string().contains("no listener offers"), "{refused}");
}

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
        let refused = parse_plain(&format!("traces: {{ {traces} }}")).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{traces}: {refused}");
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
        let refused = parse_plain(&service(upstream, more)).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{upstream} {more}: {refused}");
    }
}

#[test]
fn upstreams_by_http2_and_tls_are_read() {
    let text = "services: { s: { hosts: [], upstreams: ['h2://10.0.0.5:1', 'https://10.0.0.5:2', 'h2c://10.0.0.5:3'], tls: { insecure: true } } }";
    let config = parse_plain(text).unwrap();
    let upstreams = &config.services[&"s".parse::<ServiceName>().unwrap()].upstreams;
    let spoken: Vec<_> = upstreams.iter().map(|one| (one.protocol, one.tls.is_some())).collect();
    assert_eq!(spoken, [(Protocol::H2, true), (Protocol::Https, true), (Protocol::H2c, false)]);
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
        let refused = parse_plain(&app(more)).unwrap_err();
        let is_told = refused.0.iter().any(|one| one.path == path && one.message.contains(told));
        assert!(is_told, "{more}: {refused}");
    }
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
            let found =
                refused.0.iter().find(|one| one.path == at).unwrap_or_else(|| panic!("{at}: {refused}"));
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
        let found =
            refused.0.iter().find(|one| one.path == path).unwrap_or_else(|| panic!("{path}: {refused}"));
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
            let found =
                refused.0.iter().find(|one| one.path == at).unwrap_or_else(|| panic!("{at}: {refused}"));
            assert!(found.message.contains(told) && found.line.is_some(), "{written}: {refused}");
        }
    }
}
