//! Values of env vars are not told, whatever an instance writes of them: their names stand in their place.

use super::engine::Stop;
use crate::store::{Env, Failure};

/// What is shorter is no secret, and is found in any text.
const SHORTEST: usize = 6;

/// The text with the names of what it gives away.
pub(super) fn concealed(text: &str, env: &Env) -> String {
    let mut hidden: Vec<(String, &str)> = env
        .iter()
        // A value of several lines, as of a key, is written line by line.
        .flat_map(|(name, value)| value.expose().lines().map(move |line| (line.trim(), name.as_str())))
        .filter(|(line, _)| line.len() >= SHORTEST)
        // What a probe saw is told escaped.
        .flat_map(|(line, name)| [(line.to_owned(), name), (line.escape_debug().to_string(), name)])
        .collect();
    // The longest first: of a value that is a part of another one the other one is meant.
    hidden.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if let Some((value, name)) = hidden.iter().find(|(value, _)| rest.starts_with(value)) {
            told.push_str(&format!("[{name}]"));
            rest = &rest[value.len()..];
        } else {
            told.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    told
}

/// The same of all that a failure says.
pub(super) fn conceal(failure: Failure, env: &Env) -> Failure {
    Failure {
        code: failure.code,
        cause: concealed(&failure.cause, env),
        evidence: failure.evidence.iter().map(|line| concealed(line, env)).collect(),
        remedy: failure.remedy.map(|remedy| concealed(&remedy, env)),
    }
}

/// The same of why a run stopped.
pub(super) fn conceal_stop(stop: Stop, env: &Env) -> Stop {
    match stop {
        Stop::Failed(failure) => Stop::Failed(conceal(failure, env)),
        Stop::DidNotHold(failure) => Stop::DidNotHold(conceal(failure, env)),
        Stop::Superseded(failure) => Stop::Superseded(conceal(failure, env)),
        stop @ (Stop::Cancelled | Stop::Noop(_) | Stop::Store(_)) => stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    #[test]
    fn a_value_gives_way_to_its_name_wherever_it_stands_and_short_ones_stay() {
        let env: Env = [
            ("PASSWORD", "hunter2"),
            ("URL", "db://me:hunter2@db"),
            ("PORT", "3000"),
            ("KEY", "-----BEGIN-----\nabcdefgh\n"),
            ("QUOTED", "say \"hi\""),
        ]
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .into();
        for (text, told) in [
            ("with hunter2, with hunter2", "with [PASSWORD], with [PASSWORD]"),
            ("no way to db://me:hunter2@db", "no way to [URL]"),
            ("port 3000 is taken", "port 3000 is taken"),
            ("abcdefgh", "[KEY]"),
            (r#"it answered "say \"hi\"" and ü"#, r#"it answered "[QUOTED]" and ü"#),
            ("", ""),
        ] {
            assert_eq!(concealed(text, &env), told);
        }
    }
}
