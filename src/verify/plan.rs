//! What is sent and when: fixed by the seed before the first request, whatever the answers are.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Get,
    /// The same over HTTP/2, many on one connection.
    GetHttp2,
    Head,
    /// A body with a content length, whose digest the answer must tell; never to be sent twice.
    Post,
    /// The same over HTTP/2.
    PostHttp2,
    /// The same in chunks.
    PostChunked,
    Download,
    DownloadChunked,
    /// A `Post` whose body takes the stream duration.
    SlowUpload,
    SlowDownload,
    Sse,
    Websocket,
}

/// How often each kind is sent, in proportion to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(Vec<(Kind, u32)>);

/// A mix that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MixError {
    #[error("{text:?} is not KIND=WEIGHT; the kinds are {}", Kind::names())]
    Part { text: String },
    #[error("every weight is zero, so that nothing would be sent")]
    Empty,
}

/// What becomes of the connection that a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// An idle one if there is one; afterwards it is kept.
    Kept,
    /// A new one, which the client closes afterwards.
    New,
    /// A new one, which the request asks the other side to close.
    Close,
}

/// One request of the plan.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) number: u64,
    /// When it is due, since the run began.
    pub(super) at: Duration,
    pub(super) kind: Kind,
    /// Which of the run's hosts.
    pub(super) host: usize,
    pub(super) reuse: Reuse,
    /// Bytes of the body, where the kind has one: 1 to 1 MiB, small ones as likely as large ones.
    pub(super) size: u32,
}

/// The slots of one run, in the order of their times: a Poisson process of the given rate.
#[derive(Debug)]
pub(super) struct Plan {
    random: Random,
    rate: f64,
    until: Duration,
    mix: Mix,
    hosts: usize,
    at: Duration,
    number: u64,
}

/// A small generator of random numbers (SplitMix64): the same for the same seed, on every machine.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Kind {
    /// Each kind with its weight in the default mix.
    const WEIGHTS: [(Self, u32); 12] = [
        (Self::Get, 48),
        (Self::GetHttp2, 8),
        (Self::Head, 3),
        (Self::Post, 8),
        (Self::PostHttp2, 4),
        (Self::PostChunked, 6),
        (Self::Download, 6),
        (Self::DownloadChunked, 5),
        (Self::SlowUpload, 3),
        (Self::SlowDownload, 3),
        (Self::Sse, 3),
        (Self::Websocket, 3),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetHttp2 => "get-http2",
            Self::Head => "head",
            Self::Post => "post",
            Self::PostHttp2 => "post-http2",
            Self::PostChunked => "post-chunked",
            Self::Download => "download",
            Self::DownloadChunked => "download-chunked",
            Self::SlowUpload => "slow-upload",
            Self::SlowDownload => "slow-download",
            Self::Sse => "sse",
            Self::Websocket => "websocket",
        }
    }

    /// Whether it lasts as long as the stream duration says, so that its latency means nothing.
    pub(super) fn is_long(self) -> bool {
        match self {
            Self::SlowUpload | Self::SlowDownload | Self::Sse | Self::Websocket => true,
            Self::Get
            | Self::GetHttp2
            | Self::Head
            | Self::Post
            | Self::PostHttp2
            | Self::PostChunked
            | Self::Download
            | Self::DownloadChunked => false,
        }
    }

    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::GetHttp2 | Self::PostHttp2)
    }

    fn names() -> String {
        Self::WEIGHTS.map(|(kind, _)| kind.name()).join(", ")
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self(Kind::WEIGHTS.to_vec())
    }
}

impl FromStr for Mix {
    type Err = MixError;

    /// `get=40,post=10`: kinds that are not named are not sent.
    fn from_str(text: &str) -> Result<Self, MixError> {
        let mut weights = BTreeMap::new();
        for part in text.split(',') {
            let kind_and_weight = part.split_once('=').and_then(|(name, weight)| {
                let (kind, _) = Kind::WEIGHTS.into_iter().find(|(kind, _)| kind.name() == name.trim())?;
                Some((kind, weight.trim().parse().ok()?))
            });
            let (kind, weight) = kind_and_weight.ok_or_else(|| MixError::Part { text: part.to_owned() })?;
            weights.insert(kind, weight);
        }
        if weights.values().all(|weight| *weight == 0) {
            return Err(MixError::Empty);
        }
        Ok(Self(weights.into_iter().collect()))
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (kind, weight)) in self.0.iter().enumerate() {
            write!(f, "{}{}={weight}", if n == 0 { "" } else { "," }, kind.name())?;
        }
        Ok(())
    }
}

impl Mix {
    /// All but those of `kind`.
    #[must_use]
    pub fn without(mut self, kind: Kind) -> Self {
        self.0.retain(|(other, _)| *other != kind);
        self
    }

    fn pick(&self, random: &mut Random) -> Kind {
        let total = self.0.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut place = random.below(total);
        for &(kind, weight) in &self.0 {
            let weight = u64::from(weight);
            if place < weight {
                return kind;
            }
            place -= weight;
        }
        unreachable!("a number below the sum of the weights falls to one of them")
    }
}

impl Plan {
    pub(super) fn new(seed: u64, rate: u32, until: Duration, mix: Mix, hosts: usize) -> Self {
        Self { random: Random(seed), rate: f64::from(rate), until, mix, hosts, at: Duration::ZERO, number: 0 }
    }
}

impl Iterator for Plan {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        self.at += Duration::from_secs_f64(-(1.0 - self.random.unit()).ln() / self.rate);
        if self.at >= self.until {
            return None;
        }
        self.number += 1;
        let kind = self.mix.pick(&mut self.random);
        let host = usize::try_from(self.random.below(self.hosts as u64)).unwrap_or(0);
        let reuse = match self.random.below(10) {
            0..7 => Reuse::Kept,
            7..9 => Reuse::New,
            _ => Reuse::Close,
        };
        let magnitude = self.random.below(21);
        let size = u32::try_from(self.random.below(1 << magnitude) + 1).unwrap_or(1);
        Some(Slot { number: self.number, at: self.at, kind, host, reuse, size })
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero; the slight favour of small ones does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number from 0 up to, not including, 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn bytes(&mut self, length: u32) -> Vec<u8> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Vec<Slot> {
        Plan::new(seed, 100, Duration::from_secs(100), Mix::default(), 3).collect()
    }

    #[test]
    fn the_seed_fixes_the_plan_and_the_rate_is_kept() {
        let (one, same, other) = (plan(1), plan(1), plan(2));
        assert_eq!(format!("{one:?}"), format!("{same:?}"));
        assert_ne!(format!("{one:?}"), format!("{other:?}"));
        assert!((9_500..10_500).contains(&one.len()), "{} slots", one.len());
        assert!(one.iter().all(|slot| slot.host < 3 && (1..=1 << 20).contains(&slot.size)));
        for (kind, _) in Kind::WEIGHTS {
            assert!(one.iter().any(|slot| slot.kind == kind), "no {}", kind.name());
        }
    }

    #[test]
    fn a_mix_is_read_as_it_is_written_and_a_wrong_one_is_refused() {
        let mix: Mix = "websocket=1, get=40".parse().unwrap();
        assert_eq!(mix.to_string(), "get=40,websocket=1");
        assert_eq!(Mix::default().to_string().parse(), Ok(Mix::default()));
        for bad in ["", "get", "gte=1", "get=-1", "get=0"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad:?} passed");
        }
    }
}
