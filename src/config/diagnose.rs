//! What is wrong with a configuration, so that a person can put it right.

use std::collections::BTreeMap;
use std::fmt;

use super::places::{Place, Places};
use super::traces::HEADERS;
use crate::settings::SettingsFault;

/// Everything that was found wrong; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub origin: String,
    /// Line and column, from 1; `None` where they are not known.
    pub line: Option<usize>,
    pub column: Option<usize>,
    /// Key path: `apps.web.port`; empty for the whole document.
    pub path: String,
    pub message: String,
    pub remedy: String,
    /// The line of text, unless it may hold a secret.
    pub snippet: Option<String>,
}

/// Keys whose values are secrets, whatever they stand below.
const SECRETS: &[&str] = &["password", "hmac_key", "key_secret"];
/// Words of a line that may have secrets: these keys, and what may stand on one line with a secret in it.
const NEAR_SECRETS: &[&str] = &["password", "hmac_key", "key_secret", "signed_link", "basic_auth"];
/// What stands here or below is keys, or may have been written in place of one. No app has such a name.
const LINK_KEYS: &str = ".signed_link";

/// A longer line is not shown.
const SNIPPET_CHARS_MAX: usize = 160;

/// Key path of each scalar that was filled in → the text as it stands in the file.
pub(super) type Filled = BTreeMap<String, String>;

/// What is wrong so far.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    origin: &'a str,
    text: &'a str,
    places: Places,
    filled: Filled,
    found: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(origin: &'a str, text: &'a str) -> Self {
        Self {
            origin,
            text,
            places: Places::of(text),
            filled: Filled::new(),
            found: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_diagnostics(self) -> Diagnostics {
        Diagnostics(self.found)
    }

    pub(super) fn note_filled(&mut self, path: &str, template: &str) {
        self.filled.insert(path.to_owned(), template.to_owned());
    }

    pub(super) fn filled(&self) -> &Filled {
        &self.filled
    }

    /// `value`, which stands at `path`, as it may be told: the text of the file where it was filled in.
    pub(super) fn shown(&self, path: &str, value: &str) -> String {
        self.filled.get(path).map_or_else(|| format!("{value:?}"), |template| format!("{template:?}"))
    }

    /// Tells an error whose text may contain the value at `path`.
    pub(super) fn refuse(&mut self, path: &str, error: &dyn fmt::Display, remedy: &str) {
        let message = match self.filled.get(path) {
            Some(template) => format!("the value of {template:?} is not valid here"),
            None => error.to_string(),
        };
        self.add(path, message, remedy);
    }

    pub(super) fn add(&mut self, path: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let place = self.places.find(path);
        self.push(path, place, message.into(), remedy.into());
    }

    /// Tells what is wrong with settings.
    pub(super) fn fault(&mut self, path: &str, fault: SettingsFault) {
        let message = match &fault.value {
            Some(value) => format!("{} {}", self.shown(path, value), fault.detail),
            None => fault.detail,
        };
        self.add(path, message, fault.remedy);
    }

    /// Tells something that should be looked at, and keeps nothing from running.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>, remedy: impl Into<String>) {
        let place = self.places.find(path);
        let warning = self.diagnostic(path, place, message.into(), remedy.into());
        self.warnings.push(warning);
    }

    pub(super) fn take_warnings(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.warnings)
    }

    /// What the typed pass says of `path`: with a remedy where it is a misspelt key.
    pub(super) fn type_error(&mut self, path: &str, message: &str) {
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        if let (true, [field, known @ ..]) = (message.starts_with("unknown field"), quoted.as_slice()) {
            let mut known = known.to_vec();
            if path == *field {
                // At the root, where these two are read apart from the others.
                known.extend(["apps", "services"]);
            }
            let remedy = match nearest(field, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None if known.is_empty() => "leave it out".to_owned(),
                None => format!("known here: {}", known.join(", ")),
            };
            return self.add(path, format!("unknown key `{field}`"), remedy);
        }
        let message = if self.may_hold_secret(path) { without_value(message) } else { message };
        if let Some((found, _rust_type)) = message.split_once("expected struct ") {
            let remedy = "write its keys below it, each on a line of its own, as in config/lockgate.yaml";
            return self.add(path, format!("{found}expected keys and their values"), remedy);
        }
        if let Some((found, number)) = message.rsplit_once("expected ")
            && let Some(number) = whole_number(number)
        {
            let remedy = "write it in digits, without a unit and without quotes";
            return self.add(path, format!("{found}expected {number}"), remedy);
        }
        let remedy = match quoted.as_slice() {
            [word, known @ ..] if message.starts_with("unknown variant") => nearest(word, known)
                .map_or_else(|| "write one of these".to_owned(), |near| format!("did you mean `{near}`?")),
            _ if message.contains("socket address") => {
                "write ADDRESS:PORT, for example 127.0.0.1:8080 or [::1]:8080".to_owned()
            }
            _ if message.contains("expected a duration") || message.contains("is not a duration") => {
                "write it with its unit, for example 5s".to_owned()
            }
            _ if is_secret(path) => "write text; numbers and words such as true in quotes".to_owned(),
            _ => "see config/lockgate.yaml, or `lockgate config schema`".to_owned(),
        };
        self.add(path, message, remedy);
    }

    /// Whether a message about `path` may repeat a value of the environment.
    fn may_hold_secret(&self, path: &str) -> bool {
        let is_at_or_below = |key: &str| {
            key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        path.is_empty() || is_secret(path) || self.filled.keys().any(|key| is_at_or_below(key))
    }

    /// The text is not YAML, or has a key twice.
    pub(super) fn syntax(mut self, error: &serde_yaml::Error) -> Diagnostics {
        let place = error.location().map(|at| Place { line: at.line(), column: at.column() });
        let message = error.to_string();
        let remedy = if message.contains("duplicate entry") {
            "keep one of the two keys"
        } else {
            "check indentation and quotes around this place"
        };
        self.push("", place, message, remedy.to_owned());
        self.into_diagnostics()
    }

    fn push(&mut self, path: &str, place: Option<Place>, message: String, remedy: String) {
        let found = self.diagnostic(path, place, message, remedy);
        self.found.push(found);
    }

    fn diagnostic(&self, path: &str, place: Option<Place>, message: String, remedy: String) -> Diagnostic {
        let line = place.map(|place| place.line.saturating_sub(1));
        let snippet = line.and_then(|line| {
            self.text.lines().nth(line).filter(|_| !is_secret(path) && !self.holds_secret(line))
        });
        let snippet = snippet.filter(|line| line.chars().count() <= SNIPPET_CHARS_MAX);
        Diagnostic {
            origin: self.origin.to_owned(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            path: path.to_owned(),
            message,
            remedy,
            snippet: snippet.map(|line| line.replace(char::is_control, " ")),
        }
    }

    /// Whether the line has a secret, or stands in an `env` mapping or one of headers, whose values are secrets even where they
    /// are written out.
    fn holds_secret(&self, line: usize) -> bool {
        if self.text.lines().nth(line).is_some_and(|line| NEAR_SECRETS.iter().any(|key| line.contains(key))) {
            return true;
        }
        let indent = |line: &str| line.len() - line.trim_start().len();
        let mut inner = usize::MAX;
        let lines: Vec<&str> = self.text.lines().take(line + 1).collect();
        for line in lines.into_iter().rev().filter(|line| !line.trim().is_empty()) {
            if indent(line) < inner {
                inner = indent(line);
                if line.contains("env") || line.contains("headers:") {
                    return true;
                }
            }
        }
        false
    }
}

impl Diagnostics {
    pub(super) fn of_file(origin: &str, message: String, remedy: &str) -> Self {
        Self(vec![Diagnostic {
            origin: origin.to_owned(),
            line: None,
            column: None,
            path: String::new(),
            message,
            remedy: remedy.to_owned(),
            snippet: None,
        }])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, diagnostic) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)?;
        if let (Some(snippet), Some(line), Some(column)) = (&self.snippet, self.line, self.column) {
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            write!(f, "\n  {number} | {snippet}\n  {margin} | {}^", " ".repeat(column.saturating_sub(1)))?;
        }
        write!(f, "\n  try: {}", self.remedy)
    }
}

impl std::error::Error for Diagnostics {}

/// Whether `path` is the `env` of an app or stands in it, or is a password, a key or another place of secrets.
pub(super) fn is_secret(path: &str) -> bool {
    let is_key = path.rsplit_once('.').is_some_and(|(_, key)| SECRETS.contains(&key));
    if is_key || path.contains(LINK_KEYS) || path.starts_with(HEADERS) {
        return true;
    }
    // The name of an app has no dot.
    let mut keys = path.split(['.', '[']);
    keys.next() == Some("apps") && keys.nth(1) == Some("env")
}

/// A type of Rust's as people know it.
fn whole_number(rust_type: &str) -> Option<&'static str> {
    Some(match rust_type {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        _ => return None,
    })
}

/// The message of the typed pass without the value that it repeats.
fn without_value(message: &str) -> &str {
    // Messages of serde itself end in what it expected; all others are about the value throughout.
    let is_serdes = ["invalid type", "invalid value", "invalid length", "unknown variant"]
        .iter()
        .any(|start| message.starts_with(start));
    let is_about_keys = ["missing field", "duplicate field"].iter().any(|start| message.starts_with(start));
    match message.rfind("expected ") {
        _ if is_about_keys => message,
        Some(at) if is_serdes => &message[at..],
        _ => "the value is not valid here",
    }
}

/// The known key that a misspelt one is nearest to, if one is near.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (distance(word, known), *known)).min()?;
    (near.0 <= word.len() / 3 + 1).then_some(near.1)
}

/// Levenshtein's: insertions, deletions and replacements from one word to the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
