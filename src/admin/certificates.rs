//! The certificates that are offered, and those that somebody has to look after.

use jiff::SignedDuration;

use super::Admin;
use crate::acme::{Concern, Trouble};
use crate::api::Certificate;
use crate::clock::Timestamp;
use crate::deploy::{Finding, FindingKind};

/// Who renews certificates does it earlier: one that is still there so shortly before its end was forgotten.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// All of them.
pub(super) fn list(admin: &Admin) -> Vec<Certificate> {
    let now = admin.clock.wall();
    let table = admin.certs.table();
    let one = |served: &crate::certs::Served| {
        let until = served.certificate.not_after;
        let names = if served.hosts.is_empty() { served.certificate.names() } else { &served.hosts };
        Certificate {
            names: names.iter().map(ToString::to_string).collect(),
            not_after: until,
            expires_soon: is_soon(&served.certificate, now),
        }
    };
    table.all().iter().map(one).collect()
}

/// Those that expire soon, or have.
pub(super) fn amiss(admin: &Admin) -> Vec<Finding> {
    let now = admin.clock.wall();
    let found = list(admin).into_iter().filter(|certificate| certificate.expires_soon);
    let told = found.map(|certificate| {
        let (kind, verb) = if certificate.not_after <= now {
            (FindingKind::CertificateExpired, "expired")
        } else {
            (FindingKind::CertificateExpiring, "expires")
        };
        Finding {
            kind,
            subject: certificate.names.join(", "),
            cause: format!("the certificate {verb} at {}", certificate.not_after),
            remedy: "put a new one where it was read from: it is offered at once. One that ACME gave is renewed by itself: \
                     another finding tells what stands in the way".to_owned(),
        }
    });
    told.chain(admin.acme.troubles().iter().map(of_trouble)).collect()
}

fn of_trouble(trouble: &Trouble) -> Finding {
    let next = match (trouble.next, trouble.concern) {
        (Some(next), _) => format!("; it is tried again at {next}"),
        (None, Concern::Record) => "; it is not tried again by itself".to_owned(),
        (None, Concern::Name | Concern::Authority | Concern::ExternalAccount) => String::new(),
    };
    let still = if trouble.concern != Concern::Name || !trouble.is_covered {
        ""
    } else {
        "; the certificate that is there goes on being offered"
    };
    let (kind, remedy) = match trouble.concern {
        Concern::Authority => (
            FindingKind::AcmeAway,
            "see that tls.acme.directory can be reached from here, and that tls.acme.storage can be written",
        ),
        Concern::ExternalAccount => (
            FindingKind::AcmeAway,
            "write the key id and the HMAC key that the authority gives to its customers as tls.acme.eab, the key best from a \
             file; it is asked at once then",
        ),
        Concern::Record => (
            FindingKind::DnsRecordLeft,
            "see that tls.acme.dns_update or dns_hook can delete it, or delete it by hand; each start of lockgate, and each change of \
             tls.acme, tries it again",
        ),
        Concern::Name => (
            FindingKind::CertificateNotIssued,
            "see that the name leads here: port 80 for http-01, port 443 for tls-alpn-01; and for dns-01 that its record is \
             set by tls.acme.dns_update or dns_hook",
        ),
    };
    Finding {
        kind,
        subject: trouble.subject.clone(),
        cause: format!("attempt {} failed: {}{next}{still}", trouble.failures, trouble.error),
        remedy: remedy.to_owned(),
    }
}

/// Two weeks before its end, or a sixth of its life where that is short.
fn is_soon(certificate: &crate::certs::Certificate, now: Timestamp) -> bool {
    let life = certificate.not_after.duration_since(certificate.not_before);
    certificate.not_after.duration_since(now) < SOON.min(life / 6)
}
