//! `${NAME}`, `${NAME:-default}` and `${file:/path}` in scalars, after the text was parsed: what is filled in stays one
//! scalar, whatever it looks like. `$$` is a dollar sign; a dollar sign before anything else is itself.

use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::diagnose::Findings;

/// Of a file that is filled in.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why a scalar cannot be filled in.
struct Unfilled {
    message: String,
    remedy: &'static str,
}

/// Fills in every scalar of the tree and takes out what YAML has and the configuration does not. Values never appear
/// in what is told: [`Findings`] knows from here on which paths were filled in.
pub(super) fn fill(tree: &mut Value, env: &dyn Fn(&str) -> Option<String>, findings: &mut Findings<'_>) {
    walk(tree, "", env, findings);
}

/// The files that `fill` reads.
pub(super) fn files(tree: &Value) -> Vec<PathBuf> {
    match tree {
        // What stands in a `$${file:…}` is read as well: it may be looked at in vain.
        Value::String(text) => {
            let named = text.split("${file:").skip(1).filter_map(|rest| rest.split_once('}'));
            named.map(|(path, _)| PathBuf::from(path)).collect()
        }
        Value::Sequence(items) => items.iter().flat_map(files).collect(),
        Value::Mapping(entries) => entries.values().flat_map(files).collect(),
        Value::Tagged(_) | Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

/// What a filled-in text means where no text is wanted: `port: ${PORT}` is to be a number.
pub(super) fn as_plain_scalar(text: &str) -> Option<Value> {
    match text {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        digits => digits.parse::<u64>().ok().map(|number| Value::Number(number.into())),
    }
}

/// Reads a regular file of at most `max` bytes; anything else (a pipe, a device) may have no end.
pub(super) fn read_file(path: &Path, max: u64) -> Result<String, String> {
    use std::io::Read;
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    // Before it is opened: opening a pipe waits for its writer.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // The size may change while it is read: the bound is on what was read.
    let read = file.take(max + 1).read_to_string(&mut text).map_err(unreadable)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > max {
        return Err(format!("is larger than {} KiB", max / 1024));
    }
    Ok(text)
}

fn walk(value: &mut Value, path: &str, env: &dyn Fn(&str) -> Option<String>, findings: &mut Findings<'_>) {
    match value {
        Value::String(text) if text.contains('$') => match filled(text, env) {
            Ok(new) => {
                if *text != new {
                    findings.note_filled(path, text);
                }
                *text = new;
            }
            Err(Unfilled { message, remedy }) => findings.add(path, message, remedy),
        },
        Value::Sequence(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                walk(item, &format!("{path}[{at}]"), env, findings);
            }
        }
        Value::Mapping(entries) => {
            if entries.shift_remove("<<").is_some() {
                let remedy = "write the keys out, or put common ones under deploy:";
                findings.add(&below(path, "<<"), "merge keys are not supported", remedy);
            }
            for (key, item) in entries {
                walk(item, &below(path, key.as_str().unwrap_or("?")), env, findings);
            }
        }
        Value::Tagged(tagged) => {
            findings.add(path, format!("the tag {} is not supported", tagged.tag), "leave it out");
            *value = Value::Null;
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The path of a key below another.
pub(super) fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn filled(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unfilled> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            filled.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let end = after.find('}').ok_or_else(|| Unfilled {
                message: "a ${ has no }".to_owned(),
                remedy: "close it, or write $$ for a dollar sign",
            })?;
            filled.push_str(&value_of(&after[..end], env)?);
            rest = &after[end + 1..];
        } else {
            filled.push('$');
            rest = &rest[1..];
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value_of(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unfilled> {
    if let Some(path) = name.strip_prefix("file:") {
        let text = read_file(Path::new(path), FILE_BYTES_MAX).map_err(|problem| Unfilled {
            message: format!("file {path} {problem}"),
            remedy: "check the path and who may read it",
        })?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        return Ok(line.strip_suffix('\r').unwrap_or(line).to_owned());
    }
    let (name, default) = match name.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (name, None),
    };
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.starts_with(|first: char| !first.is_ascii_digit());
    if !is_name {
        return Err(Unfilled {
            message: format!("${{{name}}} does not name a variable"),
            remedy: "write ${NAME}, ${NAME:-default} or ${file:/path}; $$ is a dollar sign",
        });
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(Unfilled {
            message: format!("the default of {name} contains ${{ itself"),
            remedy: "write the default out",
        });
    }
    let value = match default {
        // As in a shell: `:-` also stands in for a variable that is empty.
        Some(default) => {
            Some(env(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned()))
        }
        None => env(name),
    };
    value.ok_or_else(|| Unfilled {
        message: format!("variable {name} is not set"),
        remedy: "set it, or give a default: ${NAME:-default}",
    })
}
