//! Pages in place of Lockgate's own for errors that it answers itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;

/// HTML by status, or by class.
#[derive(Debug)]
pub struct ErrorPages(BTreeMap<String, Bytes>);

impl ErrorPages {
    pub(super) fn new(pages: &BTreeMap<String, String>) -> Self {
        Self(pages.iter().map(|(status, page)| (status.clone(), Bytes::from(page.clone()))).collect())
    }

    /// The page of that status, or else of its class.
    #[must_use]
    pub fn page(&self, status: StatusCode) -> Option<&Bytes> {
        let class = if status.is_server_error() { "5xx" } else { "4xx" };
        self.0.get(status.as_str()).or_else(|| self.0.get(class))
    }
}
