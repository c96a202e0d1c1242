//! When a certificate is renewed: when its authority says so (RFC 9773), else at two thirds of its life. Pure.

use jiff::{SignedDuration, Timestamp};

use crate::certs::Certificate;

/// At most this part of its life earlier, so that what was issued together is not renewed together.
const JITTER: f64 = 0.05;

/// Two thirds of its life, and somewhat earlier: by `spread`, from 0 to 1.
pub(super) fn by_age(certificate: &Certificate, spread: f64) -> Timestamp {
    let life = certificate.not_after.duration_since(certificate.not_before);
    let part = (2.0 / 3.0 - JITTER * spread.clamp(0.0, 1.0)) * life.as_secs_f64();
    certificate.not_before + SignedDuration::try_from_secs_f64(part).unwrap_or(SignedDuration::ZERO)
}

/// Whatever the authority suggests: a tenth of its life is left for what may fail.
pub(super) fn latest(certificate: &Certificate) -> Timestamp {
    let life = certificate.not_after.duration_since(certificate.not_before);
    certificate.not_after - life / 10
}

/// A moment in the window that the authority suggests; `None` if it is no window.
pub(super) fn in_window(start: Timestamp, end: Timestamp, spread: f64) -> Option<Timestamp> {
    let width = end.duration_since(start).as_secs_f64();
    (width > 0.0)
        .then(|| SignedDuration::try_from_secs_f64(width * spread.clamp(0.0, 1.0)).ok())
        .flatten()
        .map(|after| start + after)
}

/// From 0 to 1, the same for a certificate whenever it is asked, and another for the next one.
pub(super) fn spread_of(certificate: &Certificate) -> f64 {
    let leaf = certificate.leaf().map(AsRef::as_ref).unwrap_or_default();
    let hash = blake3::hash(leaf);
    let bytes = hash.as_bytes();
    f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate() -> Certificate {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 4, 1);
        let key = KeyPair::generate().unwrap();
        Certificate::of_pem(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem()).unwrap()
    }

    #[test]
    fn it_is_renewed_at_two_thirds_of_its_life_and_never_later() {
        let certificate = certificate();
        let day = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(by_age(&certificate, 0.0), day("2026-03-02T00:00:00Z"));
        let earliest = by_age(&certificate, 1.0);
        assert!(
            earliest < day("2026-02-26T00:00:00Z") && earliest > day("2026-02-24T00:00:00Z"),
            "{earliest}"
        );
        let spread = spread_of(&certificate);
        assert!((0.0..=1.0).contains(&spread) && spread_of(&certificate).to_bits() == spread.to_bits());
    }

    #[test]
    fn a_window_is_kept_and_one_that_is_none_is_not_believed() {
        let (start, end) = (Timestamp::from_second(100).unwrap(), Timestamp::from_second(200).unwrap());
        for spread in [0.0, 0.3, 1.0, 7.0] {
            assert!((start..=end).contains(&in_window(start, end, spread).unwrap()), "{spread}");
        }
        assert_eq!(in_window(end, start, 0.5), None);
        assert_eq!(in_window(start, start, 0.5), None);
    }
}
