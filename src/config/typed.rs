//! From a part of the tree to its type, with all that is wrong in it instead of the first thing only.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};
use serde_yaml::Value;

use super::diagnose::Findings;
use super::interpolate::{as_plain_scalar, below};

/// So many are told of one part.
const ERRORS_MAX: usize = 20;

/// Deserializes `value`, which stands at `path`. What is wrong in it is told and taken out, so that the rest is looked
/// at too; `None` where even the rest has no meaning.
pub(super) fn typed<T: DeserializeOwned>(
    path: &str,
    value: &mut Value,
    findings: &mut Findings<'_>,
) -> Option<T> {
    // Filled-in scalars that were taken for a number or a word, and what was said of them as text.
    let mut retyped: HashMap<String, String> = HashMap::new();
    let mut told = 0;
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        let message = error.inner().to_string();
        let (full, steps) = place_of(path, error.path(), &message);
        if findings.filled().contains_key(&full) && !retyped.contains_key(&full) {
            let scalar = node(value, &steps);
            let plain = scalar.as_deref().and_then(Value::as_str).and_then(as_plain_scalar);
            if let (Some(scalar), Some(plain)) = (scalar, plain) {
                *scalar = plain;
                retyped.insert(full, message);
                continue;
            }
        }
        findings.type_error(&full, retyped.get(&full).unwrap_or(&message));
        told += 1;
        if told == ERRORS_MAX || !remove(value, &steps) {
            return None;
        }
    }
}

/// One step down the tree.
enum Step {
    Key(String),
    Item(usize),
}

/// The full key path of an error, and the steps to it from `base`.
fn place_of(base: &str, path: &Path, message: &str) -> (String, Vec<Step>) {
    let step = |segment: &Segment| match segment {
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    let mut steps: Vec<Step> = path.iter().map_while(step).collect();
    // The path of an unknown key ends in the key, or in what it stands in.
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    if let Some(key) = unknown.filter(|key| !matches!(steps.last(), Some(Step::Key(last)) if last == key)) {
        steps.push(Step::Key(key.to_owned()));
    }
    let full = steps.iter().fold(base.to_owned(), |path, step| match step {
        Step::Key(key) => below(&path, key),
        Step::Item(at) => format!("{path}[{at}]"),
    });
    (full, steps)
}

fn node<'a>(value: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.as_mapping_mut()?.get_mut(key.as_str()),
        Step::Item(at) => value.as_sequence_mut()?.get_mut(*at),
    })
}

/// Takes out what the steps lead to; `false` where there is nothing to take out.
fn remove(value: &mut Value, steps: &[Step]) -> bool {
    let Some((last, above)) = steps.split_last() else { return false };
    let Some(parent) = node(value, above) else { return false };
    match (last, parent) {
        (Step::Key(key), Value::Mapping(entries)) => entries.shift_remove(key.as_str()).is_some(),
        // Taking an item out would give all that follow another place: the whole list goes.
        (Step::Item(_), Value::Sequence(_)) => remove(value, above),
        _ => false,
    }
}
