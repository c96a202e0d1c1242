//! Messages signed by a secret that both sides know, and the answers to them verified (RFC 8945).

use aws_lc_rs::hmac;

use super::message::{Answer, CLASS_ANY, Malformed, Reader, Resource, TYPE_TSIG, count_additional};
use super::name::DnsName;
use crate::acme::settings::{TsigAlgorithm, TsigKey};

/// By how many seconds the clocks may differ.
const FUDGE: u16 = 300;
const BADSIG: u16 = 16;
const BADKEY: u16 = 17;
const BADTIME: u16 = 18;

/// Signs a message, and verifies what answers it.
pub(super) struct Signer<'a> {
    key: &'a TsigKey,
    hmac: hmac::Key,
}

/// What a message was signed with: its answer is bound to it.
#[derive(Debug)]
pub(super) struct Mac(hmac::Tag);

/// Why an answer is not taken as the server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// The server says that it does not know the key.
    BadKey,
    /// The server says that the signature is by another secret.
    BadSignature,
    /// The clocks differ by so many seconds, as far as that is known.
    BadTime(Option<u64>),
    /// Another word of the server's.
    Other(u16),
    /// There is no signature, or it is not good.
    Missing,
    Malformed(Malformed),
}

/// The data of a TSIG record (RFC 8945 section 4.2).
#[derive(Debug, PartialEq, Eq)]
struct Signature<'a> {
    time: u64,
    fudge: u16,
    mac: &'a [u8],
    original_id: u16,
    error: u16,
    other: &'a [u8],
}

impl From<Malformed> for Unverified {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl TsigAlgorithm {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// Its name, as messages have it.
    fn as_wire(self) -> &'static [u8] {
        match self {
            Self::HmacSha256 => b"\x0bhmac-sha256\0",
            Self::HmacSha384 => b"\x0bhmac-sha384\0",
            Self::HmacSha512 => b"\x0bhmac-sha512\0",
        }
    }
}

impl<'a> Signer<'a> {
    pub(super) fn new(key: &'a TsigKey) -> Self {
        Self { key, hmac: hmac::Key::new(key.algorithm.hmac(), &key.secret) }
    }

    /// Appends the signature of `message`, as made at `now`.
    pub(super) fn sign(&self, message: &mut Vec<u8>, now: u64) -> Mac {
        let original_id = message.iter().take(2).fold(0, |id, byte| id << 8 | u16::from(*byte));
        let mut signature =
            Signature { time: now, fudge: FUDGE, mac: &[], original_id, error: 0, other: &[] };
        let mut digest = message.clone();
        self.push_variables(&mut digest, &signature);
        let mac = hmac::sign(&self.hmac, &digest);
        signature.mac = mac.as_ref();
        let data = signature.data(self.key.algorithm);
        message.extend(self.key.name.as_wire());
        message.extend(TYPE_TSIG.to_be_bytes());
        message.extend(CLASS_ANY.to_be_bytes());
        message.extend(0_u32.to_be_bytes());
        message.extend(length_of(&data));
        message.extend(data);
        count_additional(message, |count| count.saturating_add(1));
        Mac(mac)
    }

    /// Whether `answer` comes from who has the key, answers what was signed with `request`, and is as old as `now` allows.
    pub(super) fn verify(&self, answer: &Answer, request: &Mac, now: u64) -> Result<(), Unverified> {
        let resource = answer.signature.as_ref().ok_or(Unverified::Missing)?;
        let (algorithm, signature) = Signature::read(answer, resource)?;
        // These two are not signed: the server cannot. Whoever forges them keeps a record from being set, as he could by
        // keeping the answer.
        match signature.error {
            BADSIG => return Err(Unverified::BadSignature),
            BADKEY => return Err(Unverified::BadKey),
            _ => {}
        }
        let is_ours = resource.name == self.key.name && algorithm.as_wire() == self.key.algorithm.as_wire();
        let mut signed = answer.bytes.get(..resource.at).unwrap_or_default().to_vec();
        count_additional(&mut signed, |count| count.saturating_sub(1));
        if let Some(id) = signed.get_mut(..2) {
            id.copy_from_slice(&signature.original_id.to_be_bytes());
        }
        let mut digest = Vec::new();
        digest.extend(length_of(request.0.as_ref()));
        digest.extend(request.0.as_ref());
        digest.extend(signed);
        self.push_variables(&mut digest, &signature);
        // A MAC that was cut short is none: nobody of whom we ask cuts them.
        if !is_ours || hmac::verify(&self.hmac, &digest, signature.mac).is_err() {
            return Err(Unverified::Missing);
        }
        match signature.error {
            0 if signature.time.abs_diff(now) <= u64::from(signature.fudge) => Ok(()),
            0 => Err(Unverified::BadTime(Some(signature.time.abs_diff(now)))),
            BADTIME => Err(Unverified::BadTime(signature.server_time().map(|time| time.abs_diff(now)))),
            other => Err(Unverified::Other(other)),
        }
    }

    /// What is signed beside the message (RFC 8945 section 4.3.3).
    fn push_variables(&self, to: &mut Vec<u8>, signature: &Signature<'_>) {
        to.extend(self.key.name.as_wire());
        to.extend(CLASS_ANY.to_be_bytes());
        to.extend(0_u32.to_be_bytes());
        to.extend(self.key.algorithm.as_wire());
        to.extend(six_octets(signature.time));
        to.extend(signature.fudge.to_be_bytes());
        to.extend(signature.error.to_be_bytes());
        to.extend(length_of(signature.other));
        to.extend(signature.other);
    }
}

impl<'a> Signature<'a> {
    /// With the name of its algorithm.
    fn read(answer: &'a Answer, resource: &Resource) -> Result<(DnsName, Self), Malformed> {
        let mut reader = Reader::of(answer, resource);
        let algorithm = reader.name()?;
        let (time, fudge, length) = (reader.u48()?, reader.u16()?, reader.u16()?);
        let mac = reader.take(length.into())?;
        let (original_id, error, length) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let other = reader.take(length.into())?;
        Ok((algorithm, Self { time, fudge, mac, original_id, error, other }))
    }

    fn data(&self, algorithm: TsigAlgorithm) -> Vec<u8> {
        let mut data = algorithm.as_wire().to_vec();
        data.extend(six_octets(self.time));
        data.extend(self.fudge.to_be_bytes());
        data.extend(length_of(self.mac));
        data.extend(self.mac);
        data.extend(self.original_id.to_be_bytes());
        data.extend(self.error.to_be_bytes());
        data.extend(length_of(self.other));
        data.extend(self.other);
        data
    }

    /// Told with BADTIME.
    fn server_time(&self) -> Option<u64> {
        let octets: [u8; 6] = self.other.try_into().ok()?;
        Some(octets.into_iter().fold(0, |time, byte| time << 8 | u64::from(byte)))
    }
}

/// Of what is never longer than it can say: a MAC, or what was read by such a length.
fn length_of(data: &[u8]) -> [u8; 2] {
    u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes()
}

fn six_octets(time: u64) -> impl Iterator<Item = u8> {
    time.to_be_bytes().into_iter().skip(2)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acme::dns::message::{self, Change, TYPE_TXT};

    const NOW: u64 = 1_800_000_000;

    pub(in crate::acme::dns) fn key(secret: &str, algorithm: TsigAlgorithm) -> TsigKey {
        TsigKey { name: "key.test".parse().unwrap(), algorithm, secret: secret.as_bytes().to_vec() }
    }

    /// What a server appends to `answer`, whose error is `error`.
    pub(in crate::acme::dns) fn signed(
        key: &TsigKey,
        request: &[u8],
        mut answer: Vec<u8>,
        time: u64,
        (error, other): (u16, &[u8]),
    ) -> Vec<u8> {
        let signer = Signer::new(key);
        // Behind the MAC are three fields of two octets each.
        let end = request.len() - 6;
        let mac = &request[end - key.algorithm.hmac().digest_algorithm().output_len()..end];
        let original_id = u16::from_be_bytes([answer[0], answer[1]]);
        let mut signature = Signature { time, fudge: FUDGE, mac: &[], original_id, error, other };
        let mut digest = [&length_of(mac), mac, &answer].concat();
        signer.push_variables(&mut digest, &signature);
        let tag = hmac::sign(&signer.hmac, &digest);
        if !matches!(error, BADSIG | BADKEY) {
            signature.mac = tag.as_ref();
        }
        let data = signature.data(key.algorithm);
        answer.extend(key.name.as_wire());
        answer.extend([0, 250, 0, 255, 0, 0, 0, 0]);
        answer.extend(length_of(&data));
        answer.extend(data);
        count_additional(&mut answer, |count| count + 1);
        answer
    }

    fn asked(signer: &Signer<'_>) -> (Vec<u8>, Mac) {
        let mut request = message::question(7, &"a.test".parse().unwrap(), TYPE_TXT);
        let mac = signer.sign(&mut request, NOW);
        (request, mac)
    }

    /// The header of an answer to it, and no more.
    fn bare(request: &[u8]) -> Vec<u8> {
        [&request[..2], &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    fn verified(
        signer: &Signer<'_>,
        answer: Vec<u8>,
        (request, mac): &(Vec<u8>, Mac),
        now: u64,
    ) -> Result<(), Unverified> {
        signer.verify(&Answer::read(answer, request)?, mac, now)
    }

    #[test]
    fn an_answer_is_believed_if_the_key_has_signed_it_for_this_question_now() {
        for algorithm in [TsigAlgorithm::HmacSha256, TsigAlgorithm::HmacSha384, TsigAlgorithm::HmacSha512] {
            let key = key("secret", algorithm);
            let signer = Signer::new(&key);
            let asked = asked(&signer);
            let (request, _) = &asked;
            let good = signed(&key, request, bare(request), NOW, (0, &[]));
            assert_eq!(verified(&signer, good.clone(), &asked, NOW + 300), Ok(()), "{algorithm:?}");
            assert_eq!(verified(&signer, bare(request), &asked, NOW), Err(Unverified::Missing));
            let late = verified(&signer, good, &asked, NOW + 301);
            assert_eq!(late, Err(Unverified::BadTime(Some(301))));

            let other_key = TsigKey { secret: b"other".to_vec(), ..key.clone() };
            let of_other = signed(&other_key, request, bare(request), NOW, (0, &[]));
            assert_eq!(verified(&signer, of_other, &asked, NOW), Err(Unverified::Missing));
            let renamed = TsigKey { name: "other.test".parse().unwrap(), ..key.clone() };
            let renamed = signed(&renamed, request, bare(request), NOW, (0, &[]));
            assert_eq!(verified(&signer, renamed, &asked, NOW), Err(Unverified::Missing));
            let mut elsewhere = message::question(7, &"b.test".parse().unwrap(), TYPE_TXT);
            signer.sign(&mut elsewhere, NOW);
            let replayed = signed(&key, &elsewhere, bare(request), NOW, (0, &[]));
            assert_eq!(verified(&signer, replayed, &asked, NOW), Err(Unverified::Missing));
        }
    }

    #[test]
    fn what_the_server_says_of_the_signature_is_told() {
        let key = key("secret", TsigAlgorithm::HmacSha256);
        let signer = Signer::new(&key);
        let asked = asked(&signer);
        let server_time: Vec<u8> = six_octets(NOW - 5000).collect();
        for (error, other, expected) in [
            (BADKEY, &[][..], Unverified::BadKey),
            (BADSIG, &[][..], Unverified::BadSignature),
            (BADTIME, &server_time[..], Unverified::BadTime(Some(5000))),
            (BADTIME, &[][..], Unverified::BadTime(None)),
            (22, &[][..], Unverified::Other(22)),
        ] {
            let answer = signed(&key, &asked.0, bare(&asked.0), NOW, (error, other));
            assert_eq!(verified(&signer, answer, &asked, NOW), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn nothing_of_an_answer_can_be_changed(at in any::<prop::sample::Index>(), by in 1_u8..) {
            let key = key("secret", TsigAlgorithm::HmacSha256);
            let signer = Signer::new(&key);
            let asked = asked(&signer);
            let mut answer = signed(&key, &asked.0, bare(&asked.0), NOW, (0, &[]));
            let at = at.index(answer.len());
            let of_key = b"key.test".len() + 2;
            // Case does not count in names, nor do class and time to live of a signature, which are always the same.
            prop_assume!(by != 0x20 && !(12 + of_key + 2..12 + of_key + 8).contains(&at));
            answer[at] ^= by;
            prop_assert!(verified(&signer, answer, &asked, NOW).is_err());
        }

        #[test]
        fn a_signature_is_read_as_it_was_written(time in 0_u64..1 << 48, fudge: u16, mac: [u8; 20], error: u16, other: [u8; 6]) {
            let key = key("secret", TsigAlgorithm::HmacSha512);
            let request = message::update(7, &"a".parse().unwrap(), Change::Add(1), &"b.a".parse().unwrap(), "v").unwrap();
            let written = Signature { time, fudge, mac: &mac, original_id: 7, error, other: &other };
            let data = written.data(key.algorithm);
            let mut answer = request.clone();
            answer[2] |= 0x80;
            answer.extend(key.name.as_wire());
            answer.extend([0, 250, 0, 255, 0, 0, 0, 0]);
            answer.extend(length_of(&data));
            answer.extend(data);
            count_additional(&mut answer, |count| count + 1);
            let answer = Answer::read(answer, &request).unwrap();
            let (algorithm, read) = Signature::read(&answer, answer.signature.as_ref().unwrap()).unwrap();
            prop_assert_eq!(algorithm.as_wire(), key.algorithm.as_wire());
            prop_assert_eq!(read, written);
        }
    }
}
