//! What a reload changes: key by key, with secrets left out.

use std::collections::BTreeMap;

use serde_yaml::Value;

use super::Config;
use super::diagnose;
use super::interpolate::below;
use crate::api::Reloaded;

/// Sections whose changes apply at once; all others wait for a restart.
const LIVE: &[&str] = &["apps", "services", "deploy", "tls", "traces"];

/// From what runs to what the file says now.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Reloaded {
    let (before, after) = (flat(&old.document), flat(&new.document));
    let is_filled = |key: &str| old.filled.contains_key(key) || new.filled.contains_key(key);
    let is_secret = |key: &str| diagnose::is_secret(key) || is_filled(key);
    let shown =
        |key: &str, value: &str| if is_secret(key) { "[secret]".to_owned() } else { value.to_owned() };
    let mut reloaded = Reloaded::default();
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for key in keys {
        let (before, after) = (before.get(key), after.get(key));
        if before == after {
            continue;
        }
        reloaded.changes.push(match (before, after) {
            (None, Some(after)) => format!("+ {key}: {}", shown(key, after)),
            (Some(before), None) => format!("- {key}: {}", shown(key, before)),
            (Some(before), Some(after)) => {
                format!("~ {key}: {} -> {}", shown(key, before), shown(key, after))
            }
            (None, None) => continue,
        });
        let section = key.split(['.', '[']).next().unwrap_or_default();
        if !LIVE.contains(&section) && !reloaded.needs_restart.iter().any(|known| known == section) {
            reloaded.needs_restart.push(section.to_owned());
        }
    }
    reloaded
}

fn flat(tree: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(tree, String::new(), &mut found);
    found
}

fn walk(value: &Value, path: String, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Mapping(entries) if !entries.is_empty() => {
            for (key, item) in entries {
                walk(item, below(&path, key.as_str().unwrap_or("?")), found);
            }
        }
        Value::Sequence(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                walk(item, format!("{path}[{at}]"), found);
            }
        }
        scalar => {
            found.insert(path, serde_yaml::to_string(scalar).unwrap_or_default().trim_end().to_owned());
        }
    }
}
