//! Where certificates are asked for, one after the other: which is due, its order, and what becomes of it. One task has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, AccountCredentials, CertificateIdentifier, ExternalAccountKey, NewAccount};
use jiff::SignedDuration;
use tracing::{debug, info, warn};

use super::dns::{PREFIX, Record};
use super::governor::{Applicant, Governor};
use super::http::{Http, Refusal};
use super::leftover::Leftovers;
use super::order::{self, Issued, Means, OrderError};
use super::settings::{AcmeSettings, Challenge, Eab};
use super::vault::{Vault, VaultError};
use super::{Concern, Parts, Trouble, renewal, wanted};
use crate::certs::{Certificate, Served};
use crate::clock::Timestamp;
use crate::error::chain;
use crate::routing::HostPattern;

/// Between two looks at the route table and the clock.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions for when to renew a certificate, whatever the authority suggests.
const ASK_EVERY: (SignedDuration, SignedDuration) =
    (SignedDuration::from_mins(10), SignedDuration::from_hours(24));

/// After a question that failed, where the authority does not say when to ask again (RFC 9773 section 4.3.3).
const ASK_AGAIN: SignedDuration = SignedDuration::from_hours(6);

/// Of the types of errors (RFC 8555 section 6.7).
const ERRORS: &str = "urn:ietf:params:acme:error:";

/// All that is known and done.
pub(super) struct Desk {
    settings: AcmeSettings,
    parts: Parts,
    vault: Vault,
    governor: Governor,
    left: Leftovers,
    certificates: BTreeMap<HostPattern, Kept>,
    wanted: BTreeSet<HostPattern>,
    /// Of the route table, as it was when that was read from it.
    generation: Option<u64>,
    /// At the authority; made when it is first needed.
    account: Option<Account>,
    /// What it was last asked by.
    http: Option<Http>,
    /// For what an order is in the middle.
    begun: Option<HostPattern>,
}

/// A certificate that is there.
#[derive(Clone, Debug)]
struct Kept {
    certificate: Arc<Certificate>,
    renew_at: Timestamp,
    /// When to ask the authority for that; `None` where it does not tell.
    ask_at: Option<Timestamp>,
    /// The authority has told: it may be told what a new one replaces.
    is_told: bool,
}

/// Why no account could be used.
#[derive(Debug, thiserror::Error)]
enum AccountError {
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    #[error("the account cannot be kept")]
    Vault(#[from] VaultError),
    #[error("the account cannot be written")]
    Format(#[from] serde_json::Error),
    #[error("the authority {0} gives no account")]
    Authority(String, #[source] instant_acme::Error),
    #[error(
        "the authority {0} gives accounts only to those that it knows already, and tls.acme.eab is missing"
    )]
    NoExternalAccount(String, #[source] instant_acme::Error),
    #[error("the authority {0} gives no account for tls.acme.eab")]
    ExternalAccount(String, #[source] instant_acme::Error),
}

impl AccountError {
    /// Of an authority that was asked for an account.
    fn refused(directory: String, has_external: bool, error: instant_acme::Error) -> Self {
        let kind = match &error {
            instant_acme::Error::Api(problem) => {
                problem.r#type.as_deref().and_then(|kind| kind.strip_prefix(ERRORS))
            }
            _ => None,
        };
        match kind {
            Some("externalAccountRequired") if !has_external => Self::NoExternalAccount(directory, error),
            Some("badNonce" | "rateLimited" | "serverInternal") | None => Self::Authority(directory, error),
            Some(_) if has_external => Self::ExternalAccount(directory, error),
            Some(_) => Self::Authority(directory, error),
        }
    }

    fn concern(&self) -> Concern {
        match self {
            Self::Tls(_) | Self::Vault(_) | Self::Format(_) | Self::Authority(..) => Concern::Authority,
            Self::NoExternalAccount(..) | Self::ExternalAccount(..) => Concern::ExternalAccount,
        }
    }
}

impl Desk {
    /// With what was kept.
    pub(super) async fn open(settings: AcmeSettings, parts: Parts) -> Result<Self, VaultError> {
        let folder = settings.storage.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let vault = Vault::open(&folder)?;
            Ok((vault.stored()?, vault.ledger()?, vault.left_records(), vault))
        });
        let opened: Result<_, VaultError> = match opened.await {
            Ok(opened) => opened,
            Err(error) => Err(VaultError::of(&settings.storage, std::io::Error::other(error))),
        };
        let (stored, ledger, noted, vault) = opened?;
        let noted = noted.unwrap_or_else(|error| {
            warn!(error = chain(&error), "DNS records that were left are not known");
            Vec::new()
        });
        // Where there are no means nobody can take them back.
        let noted = if settings.dns.is_some() { noted } else { Vec::new() };
        let left = Leftovers::new(noted, settings.retry_after);
        let mut governor = Governor::new(ledger, settings.orders_per_hour, settings.retry_after);
        governor.ask_as(Applicant {
            directory: settings.directory.clone(),
            external_account: settings.eab.as_ref().map(Eab::hash).unwrap_or_default(),
        });
        let now = parts.clock.wall();
        let certificates =
            stored.into_iter().map(|(name, certificate)| (name, Kept::new(certificate, now))).collect();
        let (wanted, generation, account, http, begun) = (BTreeSet::new(), None, None, None, None);
        Ok(Self {
            settings,
            parts,
            vault,
            governor,
            left,
            certificates,
            wanted,
            generation,
            account,
            http,
            begun,
        })
    }

    /// Reads the route table, if it is another one than at the last look, and offers what is there for its names.
    pub(super) async fn look(&mut self) {
        let generation = self.parts.routing.generation();
        if self.generation == Some(generation) {
            return;
        }
        self.generation = Some(generation);
        self.wanted = wanted::wanted(&self.parts.routing.table(), &self.parts.certs, &self.settings);
        let now = self.parts.clock.wall();
        let wanted = &self.wanted;
        self.governor.sweep(|name| wanted.iter().any(|known| known.to_string() == name), now);
        let is_over =
            |name: &HostPattern, kept: &Kept| !wanted.contains(name) && kept.certificate.not_after <= now;
        let over: Vec<_> = self
            .certificates
            .iter()
            .filter(|(name, kept)| is_over(name, kept))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.certificates.remove(&name);
            if let Err(error) = self.vault.run(move |vault| vault.forget_certificate(&name)).await {
                warn!(error = chain(&error), "a certificate that has expired is not removed");
            }
        }
        self.offer();
        self.tell();
    }

    /// Works for as long as it is polled.
    pub(super) async fn work(&mut self) {
        loop {
            self.look().await;
            let now = self.parts.clock.wall();
            if let Some(name) = self.due(now) {
                self.attempt(&name).await;
            } else if let Some(name) = self.to_ask(now) {
                self.ask_when(&name).await;
            } else if let Some(record) = self.left.due(now, None) {
                self.take_back(record).await;
            } else {
                self.parts.clock.sleep(LOOK_EVERY).await;
            }
        }
    }

    /// What is left in the DNS by a crash, or by a server that was away when it was to be taken back.
    async fn take_back(&mut self, record: Record) {
        let Some(dns) = &self.settings.dns else { return };
        self.left.take_back(record, dns, &self.vault, &*self.parts.clock).await;
        self.tell();
    }

    /// The name whose order is to be begun now: one without a certificate first, then the one that expires first.
    fn due(&self, now: Timestamp) -> Option<HostPattern> {
        let is_due = |name: &&HostPattern| {
            let kept = self.certificates.get(name);
            kept.is_none_or(|kept| {
                kept.renew_at <= now || self.governor.is_foreign(name, &self.settings.directory)
            }) && self.governor.begins_at(name, now) <= now
        };
        let due = self.wanted.iter().filter(is_due);
        due.min_by_key(|name| self.certificates.get(name).map(|kept| kept.certificate.not_after)).cloned()
    }

    /// The name whose authority is to be asked when to renew.
    fn to_ask(&self, now: Timestamp) -> Option<HostPattern> {
        let is_due = |name: &&HostPattern| {
            self.certificates.get(name).and_then(|kept| kept.ask_at).is_some_and(|at| at <= now)
        };
        let may_ask = self.governor.asks_at(now) <= now;
        self.wanted.iter().filter(is_due).find(|_| may_ask).cloned()
    }

    async fn attempt(&mut self, name: &HostPattern) {
        let now = self.parts.clock.wall();
        let challenge = self.challenge_for(name);
        self.governor.begin(name, now);
        self.begun = Some(name.clone());
        self.carry_out(name, challenge, now).await;
        self.begun = None;
    }

    /// The settings are others: what is in the middle is begun anew by those, and waits for nothing.
    pub(super) async fn leave(&mut self) {
        if let Some(name) = self.begun.take() {
            self.governor.dropped(&name);
            self.keep_ledger().await;
        }
    }

    async fn carry_out(&mut self, name: &HostPattern, challenge: Challenge, now: Timestamp) {
        // Before anything is asked: a back-off that a crash forgets is none.
        if !self.keep_ledger().await {
            self.governor.failed(name, now, "the ledger cannot be written: see the log", None);
            return self.tell();
        }
        let is_renewal = self.certificates.contains_key(name);
        let account = match self.account().await {
            Ok(account) => account,
            Err(failed) => {
                let (now, error) = (self.parts.clock.wall(), chain(&failed));
                let retry_after = self.take_refusal().and_then(|refusal| refusal.retry_after);
                warn!(error, directory = self.settings.directory, "there is no ACME account");
                self.governor.authority_failed(name, now, &error, failed.concern(), retry_after);
                self.keep_ledger().await;
                return self.tell();
            }
        };
        debug!(%name, challenge = challenge.as_str(), "order begun");
        // What was refused before was told then.
        let _earlier = self.take_refusal();
        if let (Challenge::Dns01, HostPattern::Exact(domain) | HostPattern::Wildcard(domain)) =
            (challenge, name)
        {
            // Another one of that name is about to be set.
            let at = format!("{PREFIX}{domain}");
            while let Some(record) = self.left.due(self.parts.clock.wall(), Some(&at)) {
                self.take_back(record).await;
            }
        }
        let means = Means {
            challenge,
            challenges: self.parts.certs.challenges(),
            dns: self.settings.dns.as_ref(),
            vault: &self.vault,
            clock: &*self.parts.clock,
        };
        // Once: to an authority that says that it was replaced already it must not be said for ever.
        let is_first = self.governor.failures(name).is_none_or(|failures| failures.count <= 1);
        let kept = self.certificates.get(name).filter(|kept| kept.is_told && is_first);
        let leaf = kept.and_then(|kept| kept.certificate.leaf()).cloned();
        let replaces = leaf.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
        let ordered = Box::pin(order::carry_out(&account, name, replaces, &means, &mut self.left)).await;
        let result = match ordered {
            Ok(issued) => self.keep(name, issued).await.map_err(OrderError::Vault),
            Err(error) => Err(error),
        };
        match result {
            Ok(until) => {
                self.parts.stats.ordered(if is_renewal { "renewed" } else { "issued" });
                info!(%name, %until, challenge = challenge.as_str(), "certificate issued");
            }
            Err(error) => self.failed(name, &error).await,
        }
        self.keep_ledger().await;
        self.tell();
    }

    async fn failed(&mut self, name: &HostPattern, failed: &OrderError) {
        self.parts.stats.ordered("failed");
        let (now, error) = (self.parts.clock.wall(), chain(failed));
        let refusal = self.take_refusal();
        let told = refusal.and_then(|refusal| refusal.retry_after);
        let retry_after = told.or_else(|| failed.retry_after(self.parts.clock.now()));
        if failed.is_unknown_account() || refusal.is_some_and(Refusal::is_busy) {
            // It is so whatever is asked for: no failure of the name, and no reason to prove it by something else.
            self.governor.authority_failed(name, now, &error, Concern::Authority, retry_after);
        } else {
            self.governor.failed(name, now, &error, retry_after);
        }
        if failed.is_of_account() {
            // Asked for anew the next time: perhaps the authority has moved.
            self.account = None;
        }
        if failed.is_unknown_account() {
            warn!(
                error,
                "the ACME authority does not know the account; it is set aside, and another one made"
            );
            self.set_aside_account().await;
        }
        let next = self.governor.begins_at(name, now);
        let is_covered = self.certificates.contains_key(name);
        warn!(%name, error, %next, is_covered, "no certificate issued; what is there goes on being offered");
    }

    async fn set_aside_account(&mut self) {
        self.account = None;
        let directory = self.settings.directory.clone();
        if let Err(error) = self.vault.run(move |vault| vault.set_aside_account(&directory)).await {
            warn!(error = chain(&error), "the ACME account is not set aside");
        }
    }

    /// Keeps what was issued, then offers it: what is offered is there after a restart.
    async fn keep(&mut self, name: &HostPattern, issued: Issued) -> Result<Timestamp, VaultError> {
        let Issued { certificate, chain_pem, key_pem } = issued;
        let of = name.clone();
        self.vault.run(move |vault| vault.keep_certificate(&of, &chain_pem, &key_pem)).await?;
        self.governor.succeeded(name, &self.settings.directory);
        let until = certificate.not_after;
        self.certificates.insert(name.clone(), Kept::new(certificate, self.parts.clock.wall()));
        self.offer();
        Ok(until)
    }

    /// The next one in the list after each failure.
    fn challenge_for(&self, name: &HostPattern) -> Challenge {
        let is_wildcard = matches!(name, HostPattern::Wildcard(_));
        let possible: Vec<_> = self
            .settings
            .challenges
            .iter()
            .copied()
            .filter(|challenge| match challenge {
                Challenge::Dns01 => self.settings.dns.is_some(),
                Challenge::Http01 | Challenge::TlsAlpn01 => !is_wildcard,
            })
            .collect();
        let failed = self.governor.failures(name).map_or(0, |failures| failures.count);
        let at = usize::try_from(failed).unwrap_or_default() % possible.len().max(1);
        possible.get(at).copied().unwrap_or(Challenge::Http01)
    }

    /// What the authority refused since the last time that somebody asked.
    fn take_refusal(&self) -> Option<Refusal> {
        self.http.as_ref().and_then(Http::take_refusal)
    }

    async fn account(&mut self) -> Result<Account, AccountError> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let http = Http::new(self.settings.roots.as_deref(), Arc::clone(&self.parts.clock))?;
        self.http = Some(http.clone());
        let builder = || Account::builder_with_http(Box::new(http.clone()));
        let directory = self.settings.directory.clone();
        let account = match self.known_account().await? {
            Some(known) => {
                let refused = |error| AccountError::Authority(directory.clone(), error);
                builder().from_credentials(known).await.map_err(refused)?
            }
            None => {
                let contact = self.settings.email.as_ref().map(|email| format!("mailto:{email}"));
                let contact: Vec<_> = contact.iter().map(String::as_str).collect();
                let wish = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let eab = self.settings.eab.as_ref();
                let eab = eab.map(|eab| ExternalAccountKey::new(eab.key_id.clone(), &eab.hmac_key));
                let made = builder().create(&wish, directory.clone(), eab.as_ref()).await;
                let refused = |error| AccountError::refused(directory.clone(), eab.is_some(), error);
                let (account, credentials) = made.map_err(refused)?;
                let text = serde_json::to_string(&credentials)?;
                let of = directory.clone();
                self.vault.run(move |vault| vault.keep_account(&of, &text)).await?;
                info!(directory, "ACME account made");
                account
            }
        };
        Ok(self.account.insert(account).clone())
    }

    async fn known_account(&self) -> Result<Option<AccountCredentials>, AccountError> {
        let directory = self.settings.directory.clone();
        let Some(text) = self.vault.run(move |vault| vault.account(&directory)).await? else {
            return Ok(None);
        };
        match serde_json::from_str(&text) {
            Ok(credentials) => Ok(Some(credentials)),
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "the ACME account cannot be read; it is set aside, and another one made"
                );
                let directory = self.settings.directory.clone();
                self.vault.run(move |vault| vault.set_aside_account(&directory)).await?;
                Ok(None)
            }
        }
    }

    /// Asks the authority when the certificate of `name` should be renewed.
    async fn ask_when(&mut self, name: &HostPattern) {
        let now = self.parts.clock.wall();
        let Some(kept) = self.certificates.get(name) else { return };
        let certificate = Arc::clone(&kept.certificate);
        // What was refused before was told then.
        let _earlier = self.take_refusal();
        let told = match self.account().await {
            Ok(account) => match certificate.leaf().map(CertificateIdentifier::try_from) {
                Some(Ok(id)) => account.renewal_info(&id).await,
                Some(Err(_)) | None => {
                    Err(instant_acme::Error::Unsupported("a certificate without a key identifier"))
                }
            },
            Err(error) => Err(instant_acme::Error::Other(Box::new(error))),
        };
        let refusal = self.take_refusal();
        let Some(kept) = self.certificates.get_mut(name) else { return };
        match told {
            Ok((info, after)) => {
                let second = |time: i64| Timestamp::from_second(time).unwrap_or(now);
                let window = (info.suggested_window.start, info.suggested_window.end);
                let window = (second(window.0.unix_timestamp()), second(window.1.unix_timestamp()));
                let spread = renewal::spread_of(&certificate);
                if let Some(at) = renewal::in_window(window.0, window.1, spread) {
                    // Never so late that it would expire first.
                    kept.renew_at = at.min(renewal::latest(&certificate));
                    kept.is_told = true;
                }
                let after = SignedDuration::try_from(after).unwrap_or(ASK_EVERY.1);
                kept.ask_at = Some(now + after.clamp(ASK_EVERY.0, ASK_EVERY.1));
            }
            Err(instant_acme::Error::Unsupported(_)) => kept.ask_at = None,
            Err(error) => {
                let now = self.parts.clock.wall();
                let wait = refusal.and_then(|refusal| refusal.retry_after);
                let next = wait.map_or(now + ASK_AGAIN, |wait| self.governor.ask_later(now, wait));
                kept.ask_at = Some(next);
                debug!(%name, error = chain(&error), %next, "the authority does not say when to renew");
                if wait.is_some() {
                    self.keep_ledger().await;
                }
            }
        }
    }

    /// Offers what is there for the wanted names.
    fn offer(&mut self) {
        let wanted = self.certificates.iter().filter(|(name, _)| self.wanted.contains(name));
        let served = wanted.map(|(name, kept)| Served {
            certificate: Arc::clone(&kept.certificate),
            hosts: vec![name.clone()],
        });
        match self.parts.certs.publish_issued(served.collect()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return warn!(error = chain(&error), "certificates are not offered"),
        }
        // Which requests are to come by https is looked at once for each generation of the routes.
        let generation = self.parts.routing.publish(|_nothing| {});
        if self.generation.is_some_and(|known| known + 1 == generation) {
            self.generation = Some(generation);
        }
    }

    async fn keep_ledger(&self) -> bool {
        let ledger = self.governor.ledger.clone();
        let kept = self.vault.run(move |vault| vault.keep_ledger(&ledger)).await;
        if let Err(error) = &kept {
            warn!(error = chain(error), "the ACME ledger is not written");
        }
        kept.is_ok()
    }

    /// Tells what stands in the way.
    fn tell(&self) {
        let authority = self.governor.authority().map(|failures| Trouble {
            subject: self.settings.directory.clone(),
            concern: match failures.concern {
                Concern::ExternalAccount => Concern::ExternalAccount,
                Concern::Name | Concern::Authority | Concern::Record => Concern::Authority,
            },
            is_covered: true,
            failures: failures.count,
            error: failures.error.clone(),
            next: failures.next,
        });
        let of_name = |name: &HostPattern| {
            let failures = self.governor.failures(name)?;
            Some(Trouble {
                subject: name.to_string(),
                concern: Concern::Name,
                is_covered: self.certificates.contains_key(name),
                failures: failures.count,
                error: failures.error.clone(),
                next: failures.next,
            })
        };
        let names = self.wanted.iter().filter_map(of_name);
        let all = authority.into_iter().chain(names).chain(self.left.troubles());
        self.parts.troubles.store(Arc::new(all.collect()));
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Kept {
    fn new(certificate: Arc<Certificate>, now: Timestamp) -> Self {
        let renew_at = renewal::by_age(&certificate, renewal::spread_of(&certificate));
        Self { certificate, renew_at, ask_at: Some(now), is_told: false }
    }
}
