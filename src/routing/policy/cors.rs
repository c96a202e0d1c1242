//! What pages of other origins may do: the CORS protocol of the Fetch standard. What the app says of it is replaced.

use http::Method;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};

use crate::settings::policy::CorsSettings;

/// Which pages may do what.
#[derive(Debug)]
pub struct Cors {
    /// `None` is any.
    origins: Option<Box<[HeaderValue]>>,
    methods: HeaderValue,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

const ANY: HeaderValue = HeaderValue::from_static("*");

impl Cors {
    pub(super) fn new(settings: &CorsSettings) -> Option<Self> {
        let list = |all: &[String]| HeaderValue::from_str(&all.join(", ")).ok();
        let some = |all: &[String]| if all.is_empty() { Some(None) } else { list(all).map(Some) };
        let is_any = settings.origins.iter().any(|origin| origin == "*");
        let origins = settings.origins.iter().map(|origin| HeaderValue::from_str(origin).ok());
        Some(Self {
            origins: if is_any { None } else { Some(origins.collect::<Option<_>>()?) },
            methods: list(&settings.methods)?,
            headers: some(&settings.headers)?,
            expose: some(&settings.expose)?,
            // With any origin, every page could act as its visitor.
            credentials: settings.credentials && !is_any,
            max_age: HeaderValue::from(settings.max_age.0.as_secs()),
        })
    }

    /// Whether a browser asks what a page may do, and not the app for something.
    #[must_use]
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        *method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// What it is answered, for a page of that origin.
    pub fn answer_preflight(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        if self.let_in(origin, answer) {
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            if let Some(headers) = &self.headers {
                answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
            }
            answer.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        for asked in [ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_REQUEST_HEADERS] {
            answer.append(VARY, HeaderValue::from_name(asked));
        }
    }

    /// Says on a response what a page of that origin may read.
    pub fn mark(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) {
        response.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        if self.let_in(origin, response)
            && let Some(expose) = &self.expose
        {
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn let_in(&self, origin: Option<&HeaderValue>, response: &mut HeaderMap) -> bool {
        response.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
        response.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
        let allowed = match &self.origins {
            None => Some(ANY),
            Some(origins) => {
                // Also where there is none: a cache has to tell them apart.
                response.append(VARY, HeaderValue::from_name(ORIGIN));
                origin.filter(|origin| origins.contains(origin)).cloned()
            }
        };
        let Some(allowed) = allowed.filter(|_| origin.is_some()) else { return false };
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}
