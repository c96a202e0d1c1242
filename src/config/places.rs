//! Where each key path stands in the text: the parser forgets it, and an error without a place is half an error.
//!
//! A scan of block style by indentation. What is written in flow style is found by its nearest key in block style.

use std::collections::HashMap;

/// Line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// Key path (`apps.web.hosts[1]`) → place.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<String, Place>);

/// A key or list item whose children may follow.
struct Open {
    indent: usize,
    path: String,
    /// Of a list: how many items were seen.
    items: usize,
}

impl Places {
    pub(super) fn of(text: &str) -> Self {
        let mut places = HashMap::new();
        let mut open: Vec<Open> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let mut rest = line.trim_start();
            let mut indent = line.len() - rest.len();
            if rest.is_empty() || rest.starts_with('#') || rest.starts_with("---") {
                continue;
            }
            let place = |indent: usize| Place { line: number + 1, column: indent + 1 };
            while let Some(item) = rest.strip_prefix("- ").or_else(|| (rest == "-").then_some("")) {
                // A list may stand at its key's own indentation.
                while open.last().is_some_and(|last| last.indent > indent) {
                    open.pop();
                }
                let Some(parent) = open.last_mut() else { break };
                if parent.indent == indent && parent.path.ends_with(']') {
                    open.pop();
                }
                let Some(parent) = open.last_mut() else { break };
                let path = format!("{}[{}]", parent.path, parent.items);
                parent.items += 1;
                places.entry(path.clone()).or_insert_with(|| place(indent));
                open.push(Open { indent, path, items: 0 });
                let trimmed = item.trim_start();
                indent += rest.len() - trimmed.len();
                rest = trimmed;
            }
            let Some(key) = key_of(rest) else { continue };
            let is_after = |last: &Open| last.indent >= indent;
            while open.last().is_some_and(is_after) {
                open.pop();
            }
            let path = open.last().map_or_else(|| key.to_owned(), |parent| format!("{}.{key}", parent.path));
            places.entry(path.clone()).or_insert_with(|| place(indent));
            open.push(Open { indent, path, items: 0 });
        }
        Self(places)
    }

    /// The place of `path`, or of the nearest key above it that has one.
    pub(super) fn find(&self, path: &str) -> Option<Place> {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return Some(*place);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// The key that a line begins with.
fn key_of(line: &str) -> Option<&str> {
    if let Some(quote) = line.chars().next().filter(|first| matches!(first, '"' | '\'')) {
        let end = line[1..].find(quote)? + 1;
        return line[end + 1..].trim_start().starts_with(':').then(|| &line[1..end]);
    }
    let end = line.find(':')?;
    let is_end = line[end + 1..].is_empty() || line[end + 1..].starts_with(' ');
    let key = line[..end].trim_end();
    (is_end && !key.contains(['{', '[', '"'])).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_items_are_found_in_block_style_and_flow_style_by_its_key() {
        let text = "a:\n  b: 1\n  c:\n    - x: 2\n      y: 3\n    - x: 4\nd:\n- e\n- f\n\"g h\": { i: 1 }\n";
        let places = Places::of(text);
        for (path, line, column) in [
            ("a.b", 2, 3),
            ("a.c[0]", 4, 5),
            ("a.c[0].y", 5, 7),
            ("a.c[1].x", 6, 7),
            ("d[1]", 9, 1),
            ("g h.i", 10, 1),
            ("a.zzz", 1, 1),
        ] {
            assert_eq!(places.find(path), Some(Place { line, column }), "{path}");
        }
        assert_eq!(places.find("zzz"), None);
    }
}
