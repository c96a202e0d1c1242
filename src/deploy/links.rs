//! Links to what a policy opens to those alone who have one.

use super::preview::refuse_no_time;
use super::{Denied, LinkRequest, Orchestrator, SignRequest};
use crate::clock::Timestamp;
use crate::routing::HostName;
use crate::routing::path::PathPrefix;

impl Orchestrator {
    /// A link that opens the place, and what is below it, until then: by the key of the policy that is asked for it now.
    ///
    /// # Errors
    /// If it is no place, no policy there wants a signed link, or the time is zero.
    pub fn signed_link(&self, request: &SignRequest) -> Result<(String, Timestamp), Denied> {
        refuse_no_time(LinkRequest { good_for: request.good_for })?;
        let host: HostName = request.host.parse().map_err(|error: crate::routing::host::HostError| {
            invalid("host", error.to_string(), "write www.example.com")
        })?;
        // Others open what is below them to nobody.
        if let Err(error) = request.path.parse::<PathPrefix>() {
            return Err(invalid("path", error.to_string(), "write /downloads/report.pdf"));
        }
        if !is_asked_for_as_written(&request.path) {
            let detail = format!("{:?} has characters that are percent-encoded in requests", request.path);
            return Err(invalid("path", detail, "write it as browsers ask for it: /caf%C3%A9"));
        }
        let engine = &self.engine;
        let place = format!("{host}{}", request.path);
        let found = engine.publisher.routing().resolve(&host);
        let route = found.as_ref().and_then(|(_, found)| found.route(&request.path, engine.clock.now()).ok());
        let policies = route.and_then(|route| route.backend.policies.as_deref());
        let Some(link) = policies.and_then(|policies| policies.signed_link_for(&request.path)) else {
            return Err(Denied::SignedLinksOff { place });
        };
        let until = engine.clock.wall() + request.good_for.0;
        let token = link.sign(&host, &request.path, until.as_second());
        Ok((format!("{}?{}={token}", engine.options.urls.of(&place), crate::routing::link::SIGNED), until))
    }
}

/// Whether it is what may stand in a URL (RFC 3986 section 3.3): anything else is signed, and then asked for in another way or not at all.
fn is_asked_for_as_written(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte))
}

fn invalid(field: &str, detail: String, remedy: &str) -> Denied {
    Denied::Invalid { field: field.to_owned(), detail, remedy: Some(remedy.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_request_has_as_it_is_written_is_not_signed() {
        for path in ["/", "/a-b_c.d~/e", "/caf%C3%A9", "/a;b=c,d", "/x:y@z!$&'()*+"] {
            assert!(is_asked_for_as_written(path), "{path}");
        }
        for path in [
            "/caf\u{e9}",
            "/a\tb",
            "/a\nb",
            "/a\0",
            "/a\u{7f}",
            "/a b",
            "/a\"b",
            "/<a>",
            "/{a}",
            "/a^",
            "/a`",
        ] {
            assert!(!is_asked_for_as_written(path), "{path}");
        }
    }
}
