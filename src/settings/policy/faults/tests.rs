use super::*;

fn faults(yaml: &str) -> Vec<(String, String)> {
    let policies: Vec<PolicySettings> = serde_yaml::from_str(yaml).unwrap();
    let mut faults = Vec::new();
    policy_faults("policies", &policies, &mut faults);
    faults.into_iter().map(|fault| (fault.field, fault.detail)).collect()
}

#[test]
fn good_policies_have_no_faults() {
    let good = r#"
- redirect: { hosts: [www.example.com], to: https://example.com }
- { paths: [/old], redirect: { to: /new, status: 302 } }
- { paths: [/admin], ip: { allow: [10.0.0.0/8, "::1/128"], deny: [10.1.0.0/16] } }
- { except: [/up], basic_auth: { realm: Staff, users: [{ user: ann, password: x }], user_header: X-User } }
- signed_link: { key: 01234567890123456789012345678901x, also: [01234567890123456789012345678901y] }
- forward_auth: { url: "http://127.0.0.1:9000/verify?a=b", headers: [Remote-User] }
- { methods: [POST], rate_limit: { requests: 10, per: 1m, burst: 20 } }
- rate_limit: { requests: 10, by: header, header: X-Api-Key }
- cors: { origins: ["https://app.example.com", "http://localhost:3000"], credentials: true }
- headers: { request: { set: { Host: app.internal, X-A: b } }, response: { remove: [Server], add: { X-B: c } } }
- body: { max_bytes: 1000, buffer_bytes: 1000 }
- timeouts: { response_head: 5m }
- compress: {}
- error_pages: { "503": "<p>soon</p>", 4xx: "<p>no</p>" }
"#;
    assert_eq!(faults(good), []);
}

#[test]
fn each_bad_policy_is_told_with_its_place() {
    for (yaml, field, detail) in [
        ("- {}", "policies[0]", "says nothing of what it is"),
        ("- { ip: { deny: [10.0.0.0/8] }, compress: {} }", "policies[0]", "more than one kind"),
        ("- { paths: [admin], compress: {} }", "policies[0].paths[0]", "not a path prefix"),
        ("- { paths: [/a/../b], compress: {} }", "policies[0].paths[0]", "not a path prefix"),
        ("- { except: ['/%61'], compress: {} }", "policies[0].except[0]", "not a path prefix"),
        ("- { methods: [get], compress: {} }", "policies[0].methods[0]", "not a method"),
        ("- redirect: { to: //evil.test }", "policies[0].redirect.to", "no place"),
        ("- redirect: { to: 'javascript:x' }", "policies[0].redirect.to", "no place"),
        ("- redirect: { to: /x, status: 200 }", "policies[0].redirect.status", "not the status"),
        ("- redirect: { to: /x, hosts: ['a:80'] }", "policies[0].redirect.hosts[0]", "not a host"),
        ("- ip: {}", "policies[0].ip", "names no network"),
        ("- basic_auth: {}", "policies[0].basic_auth.users", "nobody could come"),
        (
            "- basic_auth: { users: [{ user: 'a:b', password: x }] }",
            "policies[0].basic_auth.users[0].user",
            "colon",
        ),
        ("- basic_auth: { users: [{ user: a }] }", "policies[0].basic_auth.users[0].password", "not given"),
        (
            "- basic_auth: { users: [{ user: a, password: x }, { user: a, password: y }] }",
            "policies[0].basic_auth.users[1].user",
            "twice",
        ),
        (
            "- basic_auth: { users: [{ user: a, password: x }], user_header: Host }",
            "policies[0].basic_auth.user_header",
            "no header",
        ),
        ("- signed_link: {}", "policies[0].signed_link.key", "not given"),
        ("- signed_link: { key: 0123456789012345678901234567890 }", "policies[0].signed_link.key", "shorter"),
        (
            "- signed_link: { key: 01234567890123456789012345678901x, also: [''] }",
            "policies[0].signed_link.also[0]",
            "not given",
        ),
        (
            "- signed_link: { key: 01234567890123456789012345678901x, also: [k, 01234567890123456789012345678901y] }",
            "policies[0].signed_link.also[0]",
            "shorter",
        ),
        ("- forward_auth: { url: 'http://auth/verify' }", "policies[0].forward_auth.url", "no place"),
        (
            "- forward_auth: { url: 'http://10.0.0.1:80/', timeout: 2h }",
            "policies[0].forward_auth.timeout",
            "not between",
        ),
        ("- rate_limit: { requests: 0 }", "policies[0].rate_limit.requests", "is 0"),
        ("- rate_limit: { requests: 1, per: 0s }", "policies[0].rate_limit.per", "no time"),
        ("- rate_limit: { requests: 1, by: header }", "policies[0].rate_limit.header", "not given"),
        ("- rate_limit: { requests: 1, header: X-A }", "policies[0].rate_limit.header", "by: header"),
        ("- cors: { origins: [app.example.com] }", "policies[0].cors.origins[0]", "not an origin"),
        (
            "- cors: { origins: ['*'], credentials: true }",
            "policies[0].cors.credentials",
            "act as its visitor",
        ),
        ("- headers: {}", "policies[0].headers", "changes nothing"),
        (
            "- headers: { request: { remove: [Transfer-Encoding] } }",
            "policies[0].headers.request.remove[0]",
            "no header that may be changed",
        ),
        (
            "- headers: { response: { set: { Host: a } } }",
            "policies[0].headers.response.set",
            "no header that may be changed",
        ),
        (
            "- headers: { response: { set: { X-A: \"a\\nb\" } } }",
            "policies[0].headers.response.set.X-A",
            "no such header's value",
        ),
        ("- body: {}", "policies[0].body", "says nothing"),
        ("- body: { buffer_bytes: 99999999 }", "policies[0].body.buffer_bytes", "not between"),
        ("- timeouts: {}", "policies[0].timeouts", "says nothing"),
        ("- timeouts: { response_head: 0s }", "policies[0].timeouts.response_head", "no time"),
        ("- compress: { types: [json] }", "policies[0].compress.types[0]", "not a media type"),
        ("- error_pages: { '200': x }", "policies[0].error_pages", "not the status"),
    ] {
        let found = faults(yaml);
        assert!(found.len() == 1 && found[0].0 == field && found[0].1.contains(detail), "{yaml}: {found:?}");
    }
}

#[test]
fn two_keys_of_signed_links_for_one_path_are_refused() {
    let one = "signed_link: { key: 01234567890123456789012345678901x }";
    let two = "signed_link: { key: 01234567890123456789012345678901y }";
    for (first, second, are_apart) in [
        (one.to_owned(), two.to_owned(), false),
        (one.to_owned(), one.to_owned(), true),
        (format!("paths: [/a], {one}"), format!("paths: [/b, /ab], {two}"), true),
        (format!("paths: [/a], {one}"), format!("paths: [/b, /a/b], {two}"), false),
        (format!("paths: [/a/b/], {one}"), format!("paths: [/a], {two}"), false),
        (format!("paths: [/A], {one}"), format!("paths: [/a], {two}"), false),
        (format!("paths: [/a], {one}"), two.to_owned(), false),
        (format!("paths: [/a], {one}"), format!("except: [/a], {two}"), true),
        (format!("paths: [/a], {one}"), format!("except: [/a/b], {two}"), false),
        (format!("except: [/a], {one}"), format!("paths: [/a/b], {two}"), true),
        (format!("methods: [GET], {one}"), format!("methods: [POST], {two}"), true),
        (format!("methods: [GET], {one}"), format!("methods: [PUT, GET], {two}"), false),
    ] {
        let found = faults(&format!("- {{ {first} }}\n- compress: {{}}\n- {{ {second} }}"));
        let is_told = matches!(&*found, [(field, _)] if field == "policies[2].signed_link.key");
        assert!(if are_apart { found.is_empty() } else { is_told }, "{first} {second}: {found:?}");
    }
}

#[test]
fn a_policy_that_nobody_knows_is_refused() {
    let error = serde_yaml::from_str::<Vec<PolicySettings>>("- { rate_limits: {} }").unwrap_err();
    assert!(error.to_string().contains("unknown field `rate_limits`"), "{error}");
}
