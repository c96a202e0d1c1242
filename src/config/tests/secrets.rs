//! What is told of secrets: that there is one.

use super::*;

#[test]
fn no_value_of_an_env_var_is_told() {
    let told = parse_plain("apps:\n  web:\n    env:\n      TOKEN: [canary]\n").unwrap_err().to_string();
    assert!(!told.contains("canary"), "{told}");
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
