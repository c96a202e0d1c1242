//! What the file is as a whole: documented, refused with its places, and read again.

use super::*;

#[test]
fn the_documented_file_says_exactly_the_defaults() {
    let documented = parse_plain(include_str!("../../../config/lockgate.yaml")).unwrap();
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
    let config = parse_plain(include_str!("../../../config/demo.yaml")).unwrap();
    assert_eq!(config.http, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(config.access_log, AccessLog::Off);
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
fn a_file_without_an_end_is_refused() {
    let told = parse_plain("apex: ${file:/dev/zero}").unwrap_err().to_string();
    assert!(told.contains("not a regular file"), "{told}");
    let told = load(Path::new("/dev/zero"), &no_env).unwrap_err().to_string();
    assert!(told.contains("not a regular file"), "{told}");
}

proptest::proptest! {
    /// Whatever stands in the file, it is refused or read, and nothing else.
    #[test]
    fn no_text_brings_it_down(cut in 0_usize..4000, put in "[ -~\n]{0,12}", at in 0_usize..4000) {
        let text = include_str!("../../../config/lockgate.yaml");
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
