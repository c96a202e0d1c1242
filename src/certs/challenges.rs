//! What is answered to who validates a challenge of ACME: by plain HTTP under a token (RFC 8555 section 8.3), and in a TLS
//! handshake for a name (RFC 8737). Looked up by the data plane, put there by whoever carries out an order.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ClientHello;

use super::server::{ACME_TLS, TlsError, of_challenge};
use crate::routing::HostName;

/// The answers that are due now; nearly always none.
#[derive(Default)]
pub struct Challenges {
    pending: ArcSwap<Pending>,
    /// Held by who changes them.
    changing: Mutex<()>,
}

#[derive(Clone, Default)]
struct Pending {
    http: HashMap<Box<str>, Arc<str>>,
    tls: HashMap<HostName, Arc<ServerConfig>>,
}

/// An answer that is given for as long as this lives.
#[must_use]
pub struct Answer {
    challenges: Arc<Challenges>,
    to: To,
}

enum To {
    Token(Box<str>),
    Name(HostName),
}

impl Challenges {
    /// Answers requests for `token` by `text`.
    pub fn answer_http(self: &Arc<Self>, token: &str, text: &str) -> Answer {
        self.change(|pending| drop(pending.http.insert(token.into(), text.into())));
        Answer { challenges: Arc::clone(self), to: To::Token(token.into()) }
    }

    /// Answers handshakes of the challenge's protocol for `name` by `certificate`.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn answer_tls(
        self: &Arc<Self>,
        name: &HostName,
        certificate: CertificateDer<'static>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Answer, TlsError> {
        let config = of_challenge(certificate, key)?;
        self.change(|pending| drop(pending.tls.insert(name.clone(), config)));
        Ok(Answer { challenges: Arc::clone(self), to: To::Name(name.clone()) })
    }

    /// What `token` is answered with.
    #[must_use]
    pub fn http(&self, token: &str) -> Option<Arc<str>> {
        self.pending.load().http.get(token).cloned()
    }

    /// How a handshake is carried out that asks for the answer to a challenge; `None` for all others.
    #[must_use]
    pub fn tls(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let asks = hello.alpn()?.any(|protocol| protocol == ACME_TLS);
        if !asks {
            return None;
        }
        let name: HostName = hello.server_name()?.parse().ok()?;
        self.pending.load().tls.get(&name).cloned()
    }

    fn change(&self, edit: impl FnOnce(&mut Pending)) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Pending::clone(&self.pending.load());
        edit(&mut pending);
        self.pending.store(Arc::new(pending));
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.challenges.change(|pending| match &self.to {
            To::Token(token) => drop(pending.http.remove(token)),
            To::Name(name) => drop(pending.tls.remove(name)),
        });
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending = self.pending.load();
        write!(f, "Challenges({} by HTTP, {} by TLS)", pending.http.len(), pending.tls.len())
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_with_its_order() {
        let challenges = Arc::new(Challenges::default());
        let answer = challenges.answer_http("token", "token.thumb");
        assert_eq!(challenges.http("token").as_deref(), Some("token.thumb"));
        assert_eq!(challenges.http("toke"), None);
        drop(answer);
        assert_eq!(challenges.http("token"), None);
    }
}
