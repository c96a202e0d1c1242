//! Certificates that are files.

use super::*;

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
