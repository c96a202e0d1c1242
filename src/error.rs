//! How an error is told: each level once.

use std::error::Error;

/// The error and its causes as `a: b: c`; each error's own text names its own level only.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
