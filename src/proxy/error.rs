//! What can go wrong with a request, and how the client is told: status and stable code, in one match.

use http::{HeaderValue, StatusCode};

use crate::routing::{Miss, Refusal};
use crate::upstream::{Abort, BodyFault, UpstreamError};

/// A request that is answered by Lockgate itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the request target is too long")]
    TargetTooLong,
    #[error("the header fields are too large")]
    HeadTooLarge,
    #[error("the method is not served")]
    MethodNotAllowed,
    #[error("the transfer coding is not known")]
    CodingUnknown,
    #[error("the expectation cannot be met")]
    ExpectationFailed,
    #[error("the request came back to the proxy too many times")]
    Loop,
    #[error("the connection was not made for this host")]
    Misdirected,
    #[error("nothing is served under this name")]
    NoRoute,
    #[error("no such preview")]
    EphemeralUnknown,
    #[error("the preview has expired")]
    EphemeralExpired,
    #[error("the preview wants a name and a password")]
    PreviewPassword,
    #[error("the preview wants a signed link")]
    PreviewLink,
    #[error("its policy lets no client of that address by")]
    AddressRefused,
    #[error("its policy wants a name and a password")]
    Unauthorized(HeaderValue),
    #[error("its policy wants a signed link")]
    SignedLink,
    #[error("there were too many requests; one may come in {0} s")]
    RateLimited(u16),
    #[error("the service did not answer that says who may come")]
    AuthUnavailable,
    #[error("its policy cannot be read")]
    PolicyUnreadable,
    #[error("nothing serves this route yet")]
    NoBackend,
    #[error("what serves this route ended again and again; it is started in {0} s")]
    CoolDown(u16),
    #[error("as many requests wait for the application as may, or this one did for as long as it may")]
    QueueFull(u16),
    #[error("there are too many connections from this address")]
    TooManyConnections,
    #[error("the version that serves this route is being replaced")]
    Draining,
    #[error("it is held: {}", .0.code)]
    Held(Refusal),
    #[error("the application asked for an upgrade that the client did not ask for")]
    UpgradeUnasked,
    #[error("the application did not take up the upgrade that was connected for")]
    UpgradeRefused,
    #[error("the application's answer cannot be passed on")]
    ResponseInvalid,
    #[error("the application did not answer")]
    Upstream(#[source] UpstreamError),
    #[error("the request body failed")]
    RequestBody(#[source] BodyFault),
    #[error("the request was ended")]
    Aborted(Abort),
}

/// How an error is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) status: StatusCode,
    /// Stable, for programs.
    pub(crate) code: &'static str,
    /// For people; says nothing of the inside.
    pub(crate) detail: &'static str,
    /// Seconds after which it is worth trying again.
    pub(crate) retry_after: Option<u16>,
    /// Seconds after which a page asks again by itself.
    pub(crate) refresh: Option<u16>,
    /// The connection is closed after the answer: what follows on it cannot be trusted to be a request.
    pub(crate) closes: bool,
}

impl ForwardError {
    pub(crate) fn verdict(&self) -> Verdict {
        use StatusCode as S;
        match self {
            Self::BadRequest(detail) => closing(S::BAD_REQUEST, "bad_request", detail),
            Self::TargetTooLong => {
                closing(S::URI_TOO_LONG, "target_too_long", "The request target is too long.")
            }
            Self::HeadTooLarge => closing(
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                "The header fields are too large.",
            ),
            Self::MethodNotAllowed => {
                closing(S::METHOD_NOT_ALLOWED, "method_not_allowed", "This method is not served.")
            }
            Self::CodingUnknown => {
                closing(S::NOT_IMPLEMENTED, "transfer_coding_unknown", "Only chunked transfer is known.")
            }
            Self::ExpectationFailed => {
                closing(S::EXPECTATION_FAILED, "expectation_failed", "Only 100-continue may be expected.")
            }
            Self::Loop => closing(S::LOOP_DETECTED, "loop_detected", "The request went in a circle."),
            Self::Misdirected => closing(
                S::MISDIRECTED_REQUEST,
                "misdirected_request",
                "Requests for this host do not come over this connection: make one for it, by https.",
            ),
            Self::NoRoute => plain(S::NOT_FOUND, "no_route", "Nothing is served under this name."),
            Self::EphemeralUnknown => {
                plain(S::NOT_FOUND, "ephemeral_unknown", "There is no preview of this name.")
            }
            Self::EphemeralExpired => plain(S::NOT_FOUND, "ephemeral_expired", "This preview has expired."),
            Self::PreviewPassword => plain(
                S::UNAUTHORIZED,
                "preview_password_required",
                "This preview wants a name and a password.",
            ),
            Self::PreviewLink => {
                plain(S::FORBIDDEN, "preview_link_required", "This preview is opened by a signed link.")
            }
            Self::AddressRefused => plain(S::FORBIDDEN, "address_refused", "Your address may not come here."),
            Self::Unauthorized(_) => {
                plain(S::UNAUTHORIZED, "unauthorized", "A name and a password are wanted here.")
            }
            Self::SignedLink => plain(
                S::FORBIDDEN,
                "signed_link_required",
                "This page is opened by a signed link, for as long as the link is good.",
            ),
            Self::RateLimited(seconds) => Verdict {
                status: S::TOO_MANY_REQUESTS,
                ..later(*seconds, "rate_limited", "There were too many requests. Come back in a while.")
            },
            Self::AuthUnavailable => {
                later(5, "auth_unavailable", "Nobody can say at the moment whether you may come here.")
            }
            Self::PolicyUnreadable => plain(
                S::SERVICE_UNAVAILABLE,
                "policy_unreadable",
                "This application is not served at the moment.",
            ),
            Self::CoolDown(seconds) => later(
                *seconds,
                "cooldown",
                "This application ended again and again. It is started again in a while.",
            ),
            Self::QueueFull(seconds) => later(
                *seconds,
                "queue_full",
                "This application serves as many requests as it can. Try again in a while.",
            ),
            Self::TooManyConnections => Verdict {
                closes: true,
                ..later(1, "too_many_connections", "There are too many connections from this address.")
            },
            Self::NoBackend => later(5, "no_backend", "Nothing serves this route at the moment."),
            Self::Draining => later(1, "draining", "This application is being replaced."),
            Self::Held(refusal) => Verdict {
                refresh: refusal.refresh,
                ..later(refusal.retry_after, refusal.code, refusal.detail)
            },
            Self::UpgradeRefused => {
                plain(S::BAD_GATEWAY, "upgrade_refused", "The application takes no WebSockets there.")
            }
            Self::UpgradeUnasked | Self::ResponseInvalid => {
                plain(S::BAD_GATEWAY, "upstream_malformed", "The application's answer was malformed.")
            }
            Self::Upstream(error) => of_upstream(error),
            Self::RequestBody(fault) => of_body(*fault),
            Self::Aborted(abort) => of_abort(*abort),
        }
    }
}

impl From<Miss> for ForwardError {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::NoRoute => Self::NoRoute,
            Miss::EphemeralUnknown => Self::EphemeralUnknown,
            Miss::EphemeralExpired => Self::EphemeralExpired,
        }
    }
}

/// What a client would be told if the request were not sent once more.
pub(crate) fn code_of(error: &UpstreamError) -> &'static str {
    of_upstream(error).code
}

fn of_upstream(error: &UpstreamError) -> Verdict {
    let (status, code, detail) = match error {
        UpstreamError::Connect(_) => {
            (StatusCode::BAD_GATEWAY, "connect_failed", "The application cannot be reached.")
        }
        UpstreamError::ConnectTimeout => {
            (StatusCode::GATEWAY_TIMEOUT, "connect_timeout", "The application cannot be reached.")
        }
        UpstreamError::Tls(_) => {
            (StatusCode::BAD_GATEWAY, "upstream_tls_failed", "The application cannot be reached.")
        }
        UpstreamError::Retired => return later(1, "draining", "This application is being replaced."),
        UpstreamError::Closed(_) => {
            (StatusCode::BAD_GATEWAY, "upstream_reset", "The application did not answer.")
        }
        UpstreamError::NoUpgrades => (
            StatusCode::NOT_IMPLEMENTED,
            "upgrade_unsupported",
            "The application speaks HTTP/2, and takes no upgraded connections.",
        ),
        UpstreamError::Malformed(_) | UpstreamError::NotHttp2 => {
            (StatusCode::BAD_GATEWAY, "upstream_malformed", "The application's answer was malformed.")
        }
        UpstreamError::Body(fault) => return of_body(*fault),
    };
    plain(status, code, detail)
}

fn of_body(fault: BodyFault) -> Verdict {
    match fault {
        BodyFault::Malformed => {
            closing(StatusCode::BAD_REQUEST, "bad_request", "The request's chunks are malformed.")
        }
        BodyFault::Truncated => {
            closing(StatusCode::BAD_REQUEST, "client_abort", "The request was cut short.")
        }
        BodyFault::TooLarge => {
            closing(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The request's body is too large.")
        }
    }
}

fn of_abort(abort: Abort) -> Verdict {
    match abort {
        Abort::BodyTimeout | Abort::HeadTimeout => {
            closing(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request did not come in time.")
        }
        Abort::ResponseTimeout | Abort::ResponseIdle => closing(
            StatusCode::GATEWAY_TIMEOUT,
            "upstream_timeout",
            "The application did not answer in time.",
        ),
        Abort::Cut => {
            closing(StatusCode::BAD_GATEWAY, "drain_cut", "The version that served this request has ended.")
        }
        Abort::ClientGone | Abort::ReaderTooSlow | Abort::Idle => {
            closing(StatusCode::REQUEST_TIMEOUT, "client_abort", "The client went away.")
        }
        Abort::Shutdown => Verdict { closes: true, ..later(1, "shutdown", "The server is restarting.") },
    }
}

fn plain(status: StatusCode, code: &'static str, detail: &'static str) -> Verdict {
    Verdict { status, code, detail, retry_after: None, refresh: None, closes: false }
}

fn closing(status: StatusCode, code: &'static str, detail: &'static str) -> Verdict {
    Verdict { closes: true, ..plain(status, code, detail) }
}

fn later(seconds: u16, code: &'static str, detail: &'static str) -> Verdict {
    Verdict { retry_after: Some(seconds), ..plain(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
}
