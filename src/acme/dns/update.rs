//! TXT records by dynamic updates (RFC 2136), each message over a TCP connection of its own, and signed (RFC 8945).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Record;
use super::message::{self, Answer, Change, Malformed, TYPE_CNAME, TYPE_SOA, TYPE_TXT};
use super::name::{DnsName, DnsNameError};
use super::tsig::{Signer, Unverified};
use crate::acme::settings::{DnsServer, DnsUpdate};
use crate::clock::Clock;

/// Between two looks whether a record is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

// Of the codes of answers (RFC 1035 section 4.1.1, RFC 2136 section 2.2).
const NOERROR: u16 = 0;
const SERVFAIL: u16 = 2;
const NXDOMAIN: u16 = 3;
const NOTIMP: u16 = 4;
const REFUSED: u16 = 5;
const NOTAUTH: u16 = 9;
const NOTZONE: u16 = 10;

/// Why a record is not set, or not taken back: what is to be looked at, and where.
#[derive(Debug, thiserror::Error)]
pub(in crate::acme) enum UpdateError {
    #[error(
        "the DNS server {0} cannot be asked: see tls.acme.dns_update.server, and that it takes TCP there"
    )]
    Away(DnsServer, #[source] io::Error),
    #[error(
        "the DNS server {0} did not answer within {1:?}: see tls.acme.dns_update.server, and that it takes TCP there"
    )]
    Late(DnsServer, Duration),
    #[error("the answer of the DNS server {0} makes no sense: see tls.acme.dns_update.server")]
    Malformed(DnsServer, #[source] Malformed),
    #[error(
        "the DNS server {server} does not know the key {key} for {algorithm} (BADKEY): see tls.acme.dns_update.key_name \
         and algorithm, and that the server has that key"
    )]
    BadKey { server: DnsServer, key: DnsName, algorithm: &'static str },
    #[error(
        "the DNS server {server} knows another secret of the key {key} (BADSIG): see tls.acme.dns_update.key_secret"
    )]
    BadSignature { server: DnsServer, key: DnsName },
    #[error("the clock here and that of the DNS server {server} differ{} (BADTIME): set both", told(.by))]
    BadTime { server: DnsServer, by: Option<u64> },
    #[error("the DNS server {0} does not take the signature: TSIG error {1}")]
    Signature(DnsServer, u16),
    #[error(
        "the answer of the DNS server {server} is not signed by the key {key}, and is not believed: see \
         tls.acme.dns_update.server and key_name"
    )]
    Unsigned { server: DnsServer, key: DnsName },
    #[error(
        "the DNS server {server} refuses to {act} {name} (REFUSED): see there that the key {key} of tls.acme.dns_update may \
         {act} TXT records of that name"
    )]
    Refused { server: DnsServer, act: &'static str, name: DnsName, key: DnsName },
    #[error(
        "the DNS server {server} is not the one for the zone {zone} (NOTAUTH): see tls.acme.dns_update.server and zone"
    )]
    NotAuthoritative { server: DnsServer, zone: DnsName },
    #[error("{name} is not in the zone {zone} (NOTZONE): see tls.acme.dns_update.zone")]
    NotInZone { name: DnsName, zone: DnsName },
    #[error("the DNS server {0} takes no dynamic updates (NOTIMP): see tls.acme.dns_update.server")]
    NoUpdates(DnsServer),
    #[error("the DNS server {server} failed to {act} {name} (SERVFAIL): its log says why")]
    Failed { server: DnsServer, act: &'static str, name: DnsName },
    #[error("the DNS server {server} did not {act} {name}: it answered code {code}")]
    Code { server: DnsServer, act: &'static str, name: DnsName, code: u16 },
    #[error(
        "the DNS server {server} has no zone for {name}: see tls.acme.dns_update.server, or write zone beside it"
    )]
    NoZone { server: DnsServer, name: DnsName },
    #[error(
        "{0} is an alias (CNAME), beside which no other record can be: take it out, or use tls.acme.dns_hook"
    )]
    Alias(DnsName),
    #[error(
        "the DNS server {server} took the record {name}, and did not show it within {within:?}: its log says why"
    )]
    NotShown { server: DnsServer, name: DnsName, within: Duration },
    #[error("a record cannot be at this name")]
    Name(#[from] DnsNameError),
    #[error("the value of {0} is too long for a record")]
    TooLong(DnsName),
    #[error("there is no randomness")]
    Random(#[from] getrandom::Error),
}

/// What is asked of a server.
#[derive(Clone, Copy, Debug)]
enum Asked<'a> {
    Question(&'a DnsName, u16),
    Change { zone: &'a DnsName, change: Change, name: &'a DnsName, value: &'a str },
}

impl DnsUpdate {
    /// Adds `record` beside what is there, and returns once the server shows it.
    pub(super) async fn add(&self, record: &Record, clock: &dyn Clock) -> Result<(), UpdateError> {
        self.change(Change::Add(self.ttl), record, clock).await?;
        self.wait_for(record, clock).await
    }

    /// Deletes `record` and no other of its name; one that is gone already is no error.
    pub(super) async fn delete(&self, record: &Record, clock: &dyn Clock) -> Result<(), UpdateError> {
        self.change(Change::Delete, record, clock).await
    }

    async fn change(&self, change: Change, record: &Record, clock: &dyn Clock) -> Result<(), UpdateError> {
        let name: DnsName = record.name.parse()?;
        let zone = match &self.zone {
            Some(zone) => zone.clone(),
            None => self.zone_of(&name, clock).await?,
        };
        if !name.is_within(&zone) {
            return Err(UpdateError::NotInZone { name, zone });
        }
        let asked = Asked::Change { zone: &zone, change, name: &name, value: &record.value };
        let answer = self.ask(asked, clock).await?;
        match answer.code() {
            NOERROR => Ok(()),
            code => Err(self.refused(asked, code)),
        }
    }

    /// The zone that has `name`, which a server tells with what it says of any name in it (RFC 2308 section 3).
    async fn zone_of(&self, name: &DnsName, clock: &dyn Clock) -> Result<DnsName, UpdateError> {
        let asked = Asked::Question(name, TYPE_SOA);
        let answer = self.ask(asked, clock).await?;
        if !matches!(answer.code(), NOERROR | NXDOMAIN | REFUSED) {
            return Err(self.refused(asked, answer.code()));
        }
        if answer.answers.iter().any(|found| found.kind == TYPE_CNAME && found.name == *name) {
            return Err(UpdateError::Alias(name.clone()));
        }
        let mut found = answer.answers.iter().chain(&answer.authority);
        let found = found.find(|found| found.kind == TYPE_SOA && name.is_within(&found.name));
        match found.filter(|_| answer.is_authoritative()) {
            Some(found) => Ok(found.name.clone()),
            None => Err(UpdateError::NoZone { server: self.server.clone(), name: name.clone() }),
        }
    }

    /// A server that took `record` and does not show it would have the authority look in vain, which the authority counts.
    async fn wait_for(&self, record: &Record, clock: &dyn Clock) -> Result<(), UpdateError> {
        let name: DnsName = record.name.parse()?;
        let text = message::text_of(&record.value);
        let until = clock.now() + self.timeout;
        loop {
            let asked = Asked::Question(&name, TYPE_TXT);
            let answer = self.ask(asked, clock).await?;
            match answer.code() {
                NOERROR | NXDOMAIN => {}
                // It takes updates, and leaves it to others to show them.
                REFUSED => return Ok(()),
                code => return Err(self.refused(asked, code)),
            }
            let mut own = answer.answers.iter().filter(|found| found.name == name);
            if own.clone().any(|found| found.kind == TYPE_CNAME) {
                return Err(UpdateError::Alias(name));
            }
            if own.any(|found| found.kind == TYPE_TXT && answer.data(found) == text) {
                return Ok(());
            }
            if clock.now() + LOOK_EVERY > until {
                return Err(UpdateError::NotShown {
                    server: self.server.clone(),
                    name,
                    within: self.timeout,
                });
            }
            clock.sleep(LOOK_EVERY).await;
        }
    }

    /// What the server answers, if it is the server that does.
    async fn ask(&self, asked: Asked<'_>, clock: &dyn Clock) -> Result<Answer, UpdateError> {
        let mut message = asked.message()?;
        let signer = Signer::new(&self.key);
        let mac = signer.sign(&mut message, seconds(clock));
        let length =
            u16::try_from(message.len()).map_err(|_too_long| UpdateError::TooLong(asked.name().clone()))?;
        let exchanged = tokio::time::timeout(self.timeout, self.exchange(length, &message)).await;
        let exchanged = exchanged.map_err(|_elapsed| UpdateError::Late(self.server.clone(), self.timeout))?;
        let bytes = exchanged.map_err(|error| UpdateError::Away(self.server.clone(), error))?;
        let malformed = |malformed| UpdateError::Malformed(self.server.clone(), malformed);
        let answer = Answer::read(bytes, &message).map_err(malformed)?;
        let (server, key) = (self.server.clone(), self.key.name.clone());
        match signer.verify(&answer, &mac, seconds(clock)) {
            Ok(()) => Ok(answer),
            Err(Unverified::BadKey) => {
                Err(UpdateError::BadKey { server, key, algorithm: self.key.algorithm.as_str() })
            }
            Err(Unverified::BadSignature) => Err(UpdateError::BadSignature { server, key }),
            Err(Unverified::BadTime(by)) => Err(UpdateError::BadTime { server, by }),
            Err(Unverified::Other(error)) => Err(UpdateError::Signature(server, error)),
            Err(Unverified::Malformed(error)) => Err(malformed(error)),
            // Who refuses may know nothing of signatures; what he says is told, and nothing is done because of it.
            Err(Unverified::Missing) if answer.signature.is_none() && answer.code() != NOERROR => {
                Err(self.refused(asked, answer.code()))
            }
            Err(Unverified::Missing) => Err(UpdateError::Unsigned { server, key }),
        }
    }

    /// A message is behind its length (RFC 1035 section 4.2.2).
    async fn exchange(&self, length: u16, message: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect((self.server.host.as_str(), self.server.port)).await?;
        stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    fn refused(&self, asked: Asked<'_>, code: u16) -> UpdateError {
        let (server, act, name) = (self.server.clone(), asked.act(), asked.name().clone());
        match (code, asked) {
            (REFUSED, _) => UpdateError::Refused { server, act, name, key: self.key.name.clone() },
            (NOTAUTH, Asked::Change { zone, .. }) => {
                UpdateError::NotAuthoritative { server, zone: zone.clone() }
            }
            (NOTZONE, Asked::Change { zone, .. }) => UpdateError::NotInZone { name, zone: zone.clone() },
            (NOTIMP, Asked::Change { .. }) => UpdateError::NoUpdates(server),
            (SERVFAIL, _) => UpdateError::Failed { server, act, name },
            (code, Asked::Question(..) | Asked::Change { .. }) => {
                UpdateError::Code { server, act, name, code }
            }
        }
    }
}

impl Asked<'_> {
    fn message(self) -> Result<Vec<u8>, UpdateError> {
        let mut id = [0; 2];
        getrandom::fill(&mut id)?;
        let id = u16::from_be_bytes(id);
        match self {
            Self::Question(name, kind) => Ok(message::question(id, name, kind)),
            Self::Change { zone, change, name, value } => message::update(id, zone, change, name, value)
                .ok_or_else(|| UpdateError::TooLong(name.clone())),
        }
    }

    fn name(&self) -> &DnsName {
        match self {
            Self::Question(name, _) | Self::Change { name, .. } => name,
        }
    }

    fn act(&self) -> &'static str {
        match self {
            Self::Question(..) => "show",
            Self::Change { change: Change::Add(_), .. } => "add",
            Self::Change { change: Change::Delete, .. } => "delete",
        }
    }
}

/// Since 1970, as signatures count.
fn seconds(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.wall().as_second()).unwrap_or_default()
}

fn told(by: &Option<u64>) -> String {
    by.map_or_else(String::new, |by| format!(" by {by} s"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;
    use crate::acme::dns::tsig::tests::{key, signed};
    use crate::acme::settings::{TsigAlgorithm, TsigKey};
    use crate::clock::SystemClock;
    use crate::error::chain;

    const NAME: &str = "_acme-challenge.a.test";

    /// What a server answers to one message; `None`: it closes the connection.
    type Answers = fn(request: &[u8], key: &TsigKey) -> Option<Vec<u8>>;

    fn record() -> Record {
        Record { name: NAME.to_owned(), value: "v".to_owned() }
    }

    /// The header of an answer, and no more.
    fn bare(request: &[u8], code: u8) -> Vec<u8> {
        [&request[..2], &[0x80 | request[2] & 0x78 | 4, code, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    fn with_code(request: &[u8], key: &TsigKey, code: u8) -> Vec<u8> {
        signed(key, request, bare(request, code), seconds(&SystemClock), (0, &[]))
    }

    /// With one record for what the tests ask, or its zone.
    fn with_record(request: &[u8], key: &TsigKey, name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
        let mut answer = bare(request, 0);
        answer[7] = 1;
        answer.extend(name.parse::<DnsName>().unwrap().as_wire());
        answer.extend([0, kind, 0, 1, 0, 0, 0, 60, 0, u8::try_from(data.len()).unwrap()]);
        answer.extend(data);
        signed(key, request, answer, seconds(&SystemClock), (0, &[]))
    }

    fn is_update(request: &[u8]) -> bool {
        request[2] & 0x78 == 5 << 3
    }

    /// A server, and what asks it.
    async fn server(answers: Answers) -> (DnsUpdate, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let update = DnsUpdate {
            server: DnsServer { host: "127.0.0.1".to_owned(), port },
            zone: Some("a.test".parse().unwrap()),
            key: key("secret", TsigAlgorithm::HmacSha256),
            ttl: 60,
            timeout: Duration::from_secs(60),
        };
        let key = update.key.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut request = vec![0; length.into()];
                stream.read_exact(&mut request).await.unwrap();
                if let Some(answer) = answers(&request, &key) {
                    let length = u16::try_from(answer.len()).unwrap();
                    stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await.unwrap();
                }
            }
        });
        (update, serving)
    }

    async fn told(answers: Answers) -> String {
        told_within(Duration::from_secs(60), answers).await
    }

    async fn told_within(timeout: Duration, answers: Answers) -> String {
        let (mut update, _serving) = server(answers).await;
        update.timeout = timeout;
        chain(&update.add(&record(), &SystemClock).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_record_is_set_once_the_server_shows_it() {
        let (update, _serving) = server(|request, key| match is_update(request) {
            true => Some(with_code(request, key, 0)),
            false => Some(with_record(request, key, NAME, 16, b"\x01v")),
        })
        .await;
        update.add(&record(), &SystemClock).await.unwrap();
        // It may keep what it has from us.
        let (update, _serving) = server(|request, key| match is_update(request) {
            true => Some(with_code(request, key, 0)),
            false => Some(with_code(request, key, 5)),
        })
        .await;
        update.add(&record(), &SystemClock).await.unwrap();
        update.delete(&record(), &SystemClock).await.unwrap();
    }

    #[tokio::test]
    async fn a_record_that_is_not_shown_or_stands_beside_an_alias_is_told_of() {
        let not_shown = told_within(Duration::from_secs(5), |request, key| match is_update(request) {
            true => Some(with_code(request, key, 0)),
            // Another's.
            false => Some(with_record(request, key, NAME, 16, b"\x01w")),
        });
        let not_shown = not_shown.await;
        assert!(not_shown.contains("did not show it within 5s"), "{not_shown}");
        let alias = told(|request, key| match is_update(request) {
            true => Some(with_code(request, key, 0)),
            false => Some(with_record(request, key, NAME, 5, b"\x01b\0")),
        });
        let alias = alias.await;
        assert!(alias.contains("_acme-challenge.a.test is an alias (CNAME)"), "{alias}");
    }

    #[tokio::test]
    async fn the_zone_is_found_where_it_is_not_given() {
        let (mut update, _serving) = server(|request, key| match is_update(request) {
            true if request[12..].starts_with(b"\x01a\x04test\0") => Some(with_code(request, key, 0)),
            true => Some(with_code(request, key, 10)),
            false => Some(with_record(request, key, "a.test", 6, b"")),
        })
        .await;
        update.zone = None;
        update.delete(&record(), &SystemClock).await.unwrap();
        for (answers, expected) in [
            (
                (|request, key| Some(with_code(request, key, 5))) as Answers,
                "has no zone for _acme-challenge.a.test",
            ),
            (|request, key| Some(with_record(request, key, "b.test", 6, b"")), "has no zone for"),
            (|request, key| Some(with_record(request, key, NAME, 5, b"\x01b\0")), "is an alias (CNAME)"),
            (|request, key| Some(with_code(request, key, 2)), "SERVFAIL"),
        ] {
            let (mut update, _serving) = server(answers).await;
            update.zone = None;
            let told = update.delete(&record(), &SystemClock).await.unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[tokio::test]
    async fn each_refusal_says_what_to_look_at() {
        for (answers, expected) in [
            (
                (|request, key| Some(with_code(request, key, 5))) as Answers,
                "refuses to add _acme-challenge.a.test (REFUSED): see there that the key key.test of tls.acme.dns_update",
            ),
            (
                |request, key| Some(with_code(request, key, 9)),
                "not the one for the zone a.test (NOTAUTH): see tls.acme.dns_update.server and zone",
            ),
            (
                |request, key| Some(with_code(request, key, 10)),
                "is not in the zone a.test (NOTZONE): see tls.acme.dns_update.zone",
            ),
            (|request, key| Some(with_code(request, key, 4)), "takes no dynamic updates (NOTIMP)"),
            (|request, key| Some(with_code(request, key, 2)), "SERVFAIL"),
            (|request, key| Some(with_code(request, key, 1)), "answered code 1"),
            // It knows nothing of signatures.
            (|request, _| Some(bare(request, 4)), "takes no dynamic updates (NOTIMP)"),
            (|request, _| Some(bare(request, 0)), "is not signed by the key key.test, and is not believed"),
            (
                |request, key| Some(signed(key, request, bare(request, 9), 0, (17, &[]))),
                "does not know the key key.test for hmac-sha256 (BADKEY): see tls.acme.dns_update.key_name",
            ),
            (
                |request, key| Some(signed(key, request, bare(request, 9), 0, (16, &[]))),
                "another secret of the key key.test (BADSIG): see tls.acme.dns_update.key_secret",
            ),
            (
                |request, key| Some(signed(key, request, bare(request, 9), 0, (18, &[]))),
                "differ (BADTIME): set both",
            ),
            (
                |request, key| Some(signed(key, request, bare(request, 0), 0, (0, &[]))),
                " s (BADTIME): set both",
            ),
            (|request, key| Some(signed(key, request, bare(request, 0), 0, (22, &[]))), "TSIG error 22"),
            (|_, _| Some(b"HTTP/1.1 400 Bad Request".to_vec()), "makes no sense"),
            (|_, _| None, "cannot be asked: see tls.acme.dns_update.server"),
        ] {
            let told = told(answers).await;
            assert!(told.contains(expected), "{expected}: {told}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_away_or_silent_and_a_name_elsewhere_are_told_of() {
        let (mut update, _serving) = server(|_, _| None).await;
        update.zone = Some("b.test".parse().unwrap());
        let told = update.add(&record(), &SystemClock).await.unwrap_err().to_string();
        assert!(told.contains("not in the zone b.test") && told.contains("dns_update.zone"), "{told}");
        update.zone = Some("a.test".parse().unwrap());
        // Taken, so that nobody else listens there meanwhile.
        let away = tokio::net::TcpSocket::new_v4().unwrap();
        away.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        update.server.port = away.local_addr().unwrap().port();
        let told = chain(&update.add(&record(), &SystemClock).await.unwrap_err());
        assert!(told.contains("cannot be asked") && told.contains("refused"), "{told}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        update.server.port = listener.local_addr().unwrap().port();
        update.timeout = Duration::from_millis(50);
        let told = update.add(&record(), &SystemClock).await.unwrap_err().to_string();
        assert!(told.contains("did not answer within 50ms"), "{told}");
    }
}
