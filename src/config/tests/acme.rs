//! Certificates by ACME, and the DNS that proves names.

use super::*;
use crate::acme::{DnsHook, DnsMeans, DnsSettings};

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
        refused(&format!("{HTTPS}tls: {{ acme: {{ {acme} }} }}"), path, told);
    }
    let refused = parse_plain(&format!("tls: {{ acme: {{ {valid} }} }}")).unwrap_err();
    assert!(refused.to_string().contains("no listener offers"), "{refused}");
}
