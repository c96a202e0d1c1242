//! The certificates that are offered, and those that somebody has to look after.

use jiff::SignedDuration;

use super::Admin;
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
            expires_soon: is_soon(until, now),
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
            remedy: "put a new one where it was read from: it is offered at once".to_owned(),
        }
    });
    told.collect()
}

fn is_soon(until: Timestamp, now: Timestamp) -> bool {
    until.duration_since(now) < SOON
}
