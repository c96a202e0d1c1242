//! One order: a name is proved, and a certificate for it comes back. What a proof needs is there before the authority is
//! told to look, and gone when the order has ended, however it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use super::dns::{DnsError, PREFIX, Record};
use super::leftover::Leftovers;
use super::settings::{Challenge, DnsSettings};
use super::vault::{Vault, VaultError};
use crate::certs::{Answer, Certificate, Challenges, PemError, TlsError};
use crate::clock::Clock;
use crate::routing::{HostName, HostPattern};

/// The authority looks, and makes up its mind.
const PROVED_WITHIN: Duration = Duration::from_secs(120);
const SIGNED_WITHIN: Duration = Duration::from_secs(120);

/// What came of an order.
pub(super) struct Issued {
    pub(super) certificate: Arc<Certificate>,
    pub(super) chain_pem: String,
    pub(super) key_pem: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Protocol(#[from] instant_acme::Error),
    #[error("the authority offers no {0} for it")]
    NotOffered(&'static str),
    #[error("{0} cannot prove a name of this kind")]
    NotPossible(&'static str),
    #[error("the name was not proved by {challenge}: {told}")]
    NotProved { challenge: &'static str, told: String },
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error("a record cannot be written down")]
    Vault(#[from] VaultError),
    #[error("the answer to the challenge cannot be made")]
    Answer(#[from] TlsError),
    #[error("no key or request can be made")]
    Request(#[from] rcgen::Error),
    #[error("what was issued cannot be used: {0}")]
    Unusable(#[from] PemError),
    #[error("what was issued is not good for the name")]
    WrongName,
}

impl OrderError {
    /// How long the authority wanted to be left alone, where that was longer than an order may take.
    pub(super) fn retry_after(&self, now: Instant) -> Option<Duration> {
        match self {
            Self::Protocol(instant_acme::Error::Timeout(Some(at))) => Some(at.saturating_duration_since(now)),
            // Of the many others none says when to come back.
            _ => None,
        }
    }

    /// It may be the account's fault, or that of what is known of the authority.
    pub(super) fn is_of_account(&self) -> bool {
        matches!(self, Self::Protocol(_))
    }

    /// The authority has no such account (RFC 8555 section 6.7).
    pub(super) fn is_unknown_account(&self) -> bool {
        let Self::Protocol(instant_acme::Error::Api(problem)) = self else { return false };
        problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
    }
}

/// What an order is carried out with.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub(super) challenge: Challenge,
    pub(super) challenges: &'a Arc<Challenges>,
    pub(super) dns: Option<&'a DnsSettings>,
    pub(super) vault: &'a Vault,
    pub(super) clock: &'a dyn Clock,
}

/// What holds a proof in its place.
enum Proof {
    Answer(#[expect(dead_code, reason = "it is there as long as this is")] Answer),
    Record(Record),
}

/// Gets a certificate for `name`, in place of the one that `replaces` names.
pub(super) async fn carry_out(
    account: &Account,
    name: &HostPattern,
    replaces: Option<CertificateIdentifier<'_>>,
    means: &Means<'_>,
    left: &mut Leftovers,
) -> Result<Issued, OrderError> {
    let identifiers = [Identifier::Dns(name.to_string())];
    let mut wish = NewOrder::new(&identifiers);
    if let Some(replaces) = replaces {
        wish = wish.replaces(replaces);
    }
    let mut order = account.new_order(&wish).await?;
    let mut proofs = Vec::new();
    let proved = prove(&mut order, name, means, &mut proofs).await;
    take_back(proofs, means, left).await;
    proved?;
    sign(&mut order, name).await
}

async fn prove(
    order: &mut Order,
    name: &HostPattern,
    means: &Means<'_>,
    proofs: &mut Vec<Proof>,
) -> Result<(), OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => {}
            AuthorizationStatus::Pending
            | AuthorizationStatus::Invalid
            | AuthorizationStatus::Revoked
            | AuthorizationStatus::Expired
            | AuthorizationStatus::Deactivated => offer(&mut authorization, name, means, proofs).await?,
        }
    }
    let policy = RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(PROVED_WITHIN);
    let status = order.poll_ready(&policy).await;
    match status {
        Ok(OrderStatus::Ready | OrderStatus::Valid | OrderStatus::Processing) => Ok(()),
        Ok(OrderStatus::Invalid | OrderStatus::Pending) => {
            let told = told_by(order).await;
            Err(OrderError::NotProved { challenge: means.challenge.as_str(), told })
        }
        // What the order says of itself is what the authority found.
        Err(instant_acme::Error::Api(problem)) => {
            Err(OrderError::NotProved { challenge: means.challenge.as_str(), told: problem.to_string() })
        }
        Err(error) => Err(error.into()),
    }
}

async fn offer<'a>(
    authorization: &'a mut AuthorizationHandle<'a>,
    name: &HostPattern,
    means: &Means<'_>,
    proofs: &mut Vec<Proof>,
) -> Result<(), OrderError> {
    let kind = match means.challenge {
        Challenge::Http01 => ChallengeType::Http01,
        Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        Challenge::Dns01 => ChallengeType::Dns01,
    };
    let word = means.challenge.as_str();
    let mut challenge = authorization.challenge(kind).ok_or(OrderError::NotOffered(word))?;
    let key = challenge.key_authorization();
    match (means.challenge, name) {
        (Challenge::Http01, HostPattern::Exact(_)) => {
            proofs.push(Proof::Answer(means.challenges.answer_http(&challenge.token, key.as_str())));
        }
        (Challenge::TlsAlpn01, HostPattern::Exact(name)) => {
            proofs.push(Proof::Answer(answer_tls(means.challenges, name, key.digest().as_ref())?));
        }
        (Challenge::Dns01, HostPattern::Exact(domain) | HostPattern::Wildcard(domain)) => {
            let dns = means.dns.ok_or(OrderError::NotPossible(word))?;
            let record = Record { name: format!("{PREFIX}{domain}"), value: key.dns_value() };
            let noted = record.clone();
            means.vault.run(move |vault| vault.note_record(&noted)).await?;
            proofs.push(Proof::Record(record.clone()));
            dns.present(&record, means.clock).await?;
        }
        (Challenge::Http01 | Challenge::TlsAlpn01 | Challenge::Dns01, _) => {
            return Err(OrderError::NotPossible(word));
        }
    }
    challenge.set_ready().await?;
    Ok(())
}

/// The certificate that answers a challenge by TLS (RFC 8737 section 3).
fn answer_tls(challenges: &Arc<Challenges>, name: &HostName, digest: &[u8]) -> Result<Answer, OrderError> {
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(challenges.answer_tls(name, certificate.der().clone(), &PrivateKeyDer::from(key))?)
}

/// Nothing of a proof outlasts its order but a record that cannot be taken back.
async fn take_back(proofs: Vec<Proof>, means: &Means<'_>, left: &mut Leftovers) {
    for proof in proofs {
        if let (Proof::Record(record), Some(dns)) = (proof, means.dns) {
            left.take_back(record, dns, means.vault, means.clock).await;
        }
    }
}

/// What the authority found, which it tells with the challenges.
async fn told_by(order: &mut Order) -> String {
    let mut told = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if authorization.refresh().await.is_ok() {
            let errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            told.extend(errors.map(ToString::to_string));
        }
    }
    if told.is_empty() { "the authority does not say why".to_owned() } else { told.join("; ") }
}

/// A key that nobody had before, and the certificate for it.
async fn sign(order: &mut Order, name: &HostPattern) -> Result<Issued, OrderError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let policy = RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(SIGNED_WITHIN);
    let chain_pem = order.poll_certificate(&policy).await?;
    let key_pem = key.serialize_pem();
    let certificate = Certificate::of_pem(&chain_pem, &key_pem)?;
    if !certificate.names().contains(name) {
        return Err(OrderError::WrongName);
    }
    Ok(Issued { certificate: Arc::new(certificate), chain_pem, key_pem })
}
