//! Headers that a route changes.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::settings::policy::{HeaderRules, HeadersSettings};

/// Of requests and of responses.
#[derive(Debug)]
pub struct Headers {
    pub request: Changes,
    pub response: Changes,
}

/// What is changed: first removed, then set, then added.
#[derive(Debug)]
pub struct Changes {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl Headers {
    pub(super) fn new(settings: &HeadersSettings) -> Option<Self> {
        Some(Self { request: Changes::new(&settings.request)?, response: Changes::new(&settings.response)? })
    }
}

impl Changes {
    fn new(rules: &HeaderRules) -> Option<Self> {
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        let pair = |(key, value): (&String, &String)| Some((name(key)?, HeaderValue::from_str(value).ok()?));
        Some(Self {
            remove: rules.remove.iter().map(name).collect::<Option<_>>()?,
            set: rules.set.iter().map(pair).collect::<Option<_>>()?,
            add: rules.add.iter().map(pair).collect::<Option<_>>()?,
        })
    }

    /// Changes them.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}
