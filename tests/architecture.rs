//! Which module may use which. The table below is the architecture; ARCHITECTURE.md explains it.
//!
//! Reads the source text: the first segment after `crate::` is an arrow, also inside `use crate::{…}`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module may use these: they know nothing but the standard library and each other.
const BASE: &[&str] =
    &["clock", "error", "fault", "ids", "outbound", "retry_after", "settings", "sync", "unverified"];

/// Module → what it may use beside [`BASE`].
const ARROWS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("error", &[]),
    ("fault", &[]),
    ("ids", &[]),
    ("outbound", &[]),
    ("retry_after", &[]),
    ("settings", &[]),
    ("sync", &[]),
    ("unverified", &[]),
    ("gate", &[]),
    // The handles of a backend's counters are resolved when the table is built, not per request.
    ("telemetry", &["gate"]),
    ("routing", &["gate", "telemetry"]),
    ("upstream", &["gate", "routing", "telemetry"]),
    // Host names and nothing else.
    ("certs", &["routing"]),
    ("acme", &["certs", "routing", "telemetry"]),
    // Of routing: TLS to a server elsewhere.
    ("traces", &["routing", "telemetry"]),
    // Of certs: look-ups.
    ("proxy", &["certs", "gate", "proxy_header", "routing", "telemetry", "traces", "upstream"]),
    ("proxy_header", &[]),
    // Of connections that begin with one, and of those by TLS.
    ("probe", &["proxy_header", "routing"]),
    ("runtime", &[]),
    ("store", &[]),
    ("deploy", &["gate", "probe", "routing", "runtime", "store", "telemetry"]),
    ("config", &["acme", "api", "certs", "routing", "traces"]),
    ("api", &["deploy", "store", "config"]),
    ("admin", &["acme", "api", "certs", "config", "deploy", "routing", "store", "telemetry"]),
    ("cli", &["api", "config", "demo", "sample", "serve", "verify"]),
    ("sample", &[]),
    ("verify", &[]),
    ("demo", &["api", "cli", "config", "sample", "serve", "verify"]),
    (
        "serve",
        &[
            "acme",
            "admin",
            "api",
            "certs",
            "config",
            "deploy",
            "proxy",
            "routing",
            "runtime",
            "store",
            "telemetry",
            "traces",
        ],
    ),
];

#[test]
fn every_module_uses_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let module = module_of(&src, &file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{}: module {module} is not in the table", file.display()));
            continue;
        };
        let text = fs::read_to_string(&file).expect("source files are readable");
        for used in arrows(&production_part(&text)) {
            if used != module && !BASE.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} must not use {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "forbidden arrows:\n{}", wrong.join("\n"));
}

#[test]
fn the_test_sees_both_forms_of_an_arrow() {
    let text = "use crate::store::Store;\nuse crate::{gate::Gate, routing::{Backend, host::HostName}};\nlet x = crate::proxy::f();";
    let expected: BTreeSet<String> = ["gate", "proxy", "routing", "store"].map(str::to_owned).into();
    assert_eq!(arrows(text), expected);
}

/// Tests may reach further than the code that they test.
fn production_part(text: &str) -> String {
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

fn arrows(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_segments(group)),
            None => found.extend(identifier(rest)),
        }
    }
    found
}

/// The first segment of each item of a `{…}` group, whose opening brace is behind us.
fn first_segments(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut at_item = true;
    let mut found = Vec::new();
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_item = true,
            _ if character.is_whitespace() => {}
            _ if at_item && depth == 0 => {
                found.extend(identifier(&group[at..]));
                at_item = false;
            }
            _ => {}
        }
    }
    found
}

fn identifier(text: &str) -> Option<String> {
    let name: String =
        text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect();
    // Types and constants at the root of the crate are not modules.
    name.starts_with(|first: char| first.is_lowercase()).then_some(name)
}

fn module_of(src: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(src).expect("found under src");
    let first = relative.components().next().expect("not empty").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("src is readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_tables_of_promises_name_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, least) in [("docs/acceptance.md", 50), ("docs/conformance.md", 20)] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        let words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
        let mut named = 0;
        for pair in words.windows(2) {
            let [file, test] = pair else { continue };
            if !file.ends_with(".rs") {
                continue;
            }
            // Tests next to the code are named by their place under `src/`, the others by theirs under `tests/`.
            let folder = if file.starts_with("src/") { root.to_owned() } else { root.join("tests") };
            let source = fs::read_to_string(folder.join(file)).unwrap_or_default();
            let has_test = source.contains(&format!("fn {test}() "));
            assert!(has_test, "{page}: there is no test {test} in {}", folder.join(file).display());
            named += 1;
        }
        assert!(named >= least, "{page}: {named} tests found");
    }
}
