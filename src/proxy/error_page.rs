//! Lockgate's own answers: JSON for programs, a page for people, and nothing of the inside for either.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, REFRESH, RETRY_AFTER, SERVER,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::clock::Timestamp;

use super::error::Verdict;
use super::grpc;

/// Tells an own answer from an application's.
pub(crate) const REASON: HeaderName = HeaderName::from_static("lockgate-reason");

/// Marks an answer as Lockgate's own, which nobody may keep, and says why it was given.
pub(crate) fn mark_own(headers: &mut HeaderMap, code: &'static str) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REASON, HeaderValue::from_static(code));
}

/// The usual methods; an application may know more.
pub(crate) const ALLOWED: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// What the answer is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Html,
    /// Trailers alone.
    Grpc,
}

impl Form {
    /// HTML where `Accept` names it and does not name JSON before it.
    pub(crate) fn of(accept: Option<&HeaderValue>) -> Self {
        let Some(accept) = accept.and_then(|value| value.to_str().ok()) else { return Self::Json };
        match (accept.find("text/html"), accept.find("json")) {
            (Some(html), Some(json)) if json < html => Self::Json,
            (Some(_), _) => Self::Html,
            (None, _) => Self::Json,
        }
    }
}

/// The answer for `verdict`, with its body.
pub(crate) fn render(verdict: Verdict, form: Form, request_id: &HeaderValue) -> Response<Bytes> {
    if form == Form::Grpc {
        return grpc::render(verdict);
    }
    let id = request_id.to_str().unwrap_or_default();
    let title = match verdict.refresh {
        Some(_) => "One moment",
        None => verdict.status.canonical_reason().unwrap_or("Error"),
    };
    let (content_type, text) = match form {
        Form::Json | Form::Grpc => ("application/problem+json", json(verdict, title, id)),
        Form::Html => ("text/html; charset=utf-8", html(verdict, title, id)),
    };
    let body = Bytes::from(text);
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = verdict.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(SERVER, HeaderValue::from_static("lockgate"));
    mark_own(headers, verdict.code);
    if let Some(seconds) = verdict.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(seconds) = verdict.refresh {
        headers.insert(REFRESH, HeaderValue::from(seconds));
    }
    if verdict.status == http::StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, ALLOWED);
    }
    if verdict.status == http::StatusCode::UNAUTHORIZED {
        headers
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"preview\", charset=\"UTF-8\""));
    }
    if verdict.closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// `response` as it goes over the wire, for where hyper does not write it.
pub(crate) fn to_bytes(mut response: Response<Bytes>, now: Timestamp) -> Vec<u8> {
    if let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(now.into())) {
        response.headers_mut().insert(DATE, date);
    }
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    bytes
}

/// The parts are ours, or checked to hold nothing that JSON or HTML would have to escape (`ids::is_request_id`).
fn json(verdict: Verdict, title: &str, id: &str) -> String {
    let Verdict { status, code, detail, .. } = verdict;
    let status = status.as_u16();
    // With its quotes: an operator may have written it.
    let detail = serde_json::Value::from(detail);
    format!(
        "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{status},\"code\":\"{code}\",\
         \"detail\":{detail},\"request_id\":\"{id}\"}}\n"
    )
}

fn html(verdict: Verdict, title: &str, id: &str) -> String {
    let Verdict { status, code, detail, .. } = verdict;
    let status = status.as_u16();
    let detail = detail.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{status} {title}</title><style>body{{font:16px/1.5 \
         system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 \
         1em}}small{{color:#666}}</style><h1>{title}</h1><p>{detail}</p><p><small>{code} · {id}</small></p></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_wrote_is_text_in_either_form() {
        let detail = r#""Back" at <b>noon</b> & not before \"#;
        let verdict = Verdict { detail, ..crate::proxy::error::ForwardError::NoBackend.verdict() };
        let json: serde_json::Value = serde_json::from_str(&json(verdict, "t", "id")).unwrap();
        assert_eq!(json["detail"], detail);
        let html = html(verdict, "t", "id");
        assert!(html.contains(r#""Back" at &lt;b&gt;noon&lt;/b&gt; &amp; not before"#), "{html}");
    }

    #[test]
    fn accept_chooses_the_form() {
        for (accept, form) in [
            (None, Form::Json),
            (Some("*/*"), Form::Json),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Html),
            (Some("application/json, text/html"), Form::Json),
            (Some("text/html, application/json"), Form::Html),
        ] {
            assert_eq!(Form::of(accept.map(HeaderValue::from_static).as_ref()), form, "{accept:?}");
        }
    }
}
