//! What a run showed: the counts, how much they prove, and the evidence for what went wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::plan::Kind;

/// How a request, or what it left behind, was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Answered by an error, refused, or not answered in time.
    Failed,
    /// The connection ended before the answer.
    Reset,
    /// The answer, or the body that the app received, is not what was announced or sent.
    Truncated,
    /// A stream that the proxy ended and said so, or that was expected to be ended.
    Cut,
    /// Served by a version that a swap had replaced, or that no swap had published.
    WrongVersion,
    /// Served by a version older than one that an earlier request saw, on whichever host.
    Mixed,
    /// A submission that the app received more than once.
    Duplicated,
    /// A submission that was answered well and never received.
    Lost,
    /// A connection that the other side closed, unannounced, while no request was on it.
    ClosedIdle,
}

/// How many of each. Every request that was sent is `ok`, `failed`, `reset`, `truncated` or `cut`; the other
/// counts are beside that, so that a request can be `ok` and of the wrong version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub sent: u64,
    pub ok: u64,
    pub failed: u64,
    pub reset: u64,
    pub truncated: u64,
    pub cut: u64,
    pub wrong_version: u64,
    pub mixed: u64,
    pub duplicated: u64,
    pub lost: u64,
    pub closed_idle: u64,
    /// Sent noticeably after their time: the generator's own fault, which the latencies include.
    pub late: u64,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Since the run began.
    pub at_ms: u64,
    pub class: Class,
    /// The kind of request.
    pub kind: &'static str,
    /// Empty where it concerns no single host.
    pub host: String,
    pub what: String,
}

/// How long the short requests took that were answered well, from the time when they were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// The outcome of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    #[serde(flatten)]
    pub counts: Counts,
    pub failed_by: BTreeMap<String, u64>,
    pub sent_by: BTreeMap<Kind, u64>,
    /// Answers by the version that they told.
    pub versions: BTreeMap<String, u64>,
    /// Swaps that were answered during the run.
    pub swaps: u64,
    /// Answers whose version was checked against the swaps; `None` if the run was told of none.
    pub answers_checked: Option<u64>,
    /// Submissions that were compared with what the app received; `None` if there were none, or if only a part
    /// of the app's instances could be asked.
    pub submissions_checked: Option<u64>,
    pub latency: Latency,
    pub elapsed_ms: u64,
    /// Repeats the run's plan.
    pub seed: u64,
    pub cuts_expected: bool,
    /// The first of what went wrong.
    pub evidence: Vec<Evidence>,
}

impl Counts {
    /// The count of a class.
    pub fn of(&mut self, class: Class) -> &mut u64 {
        match class {
            Class::Failed => &mut self.failed,
            Class::Reset => &mut self.reset,
            Class::Truncated => &mut self.truncated,
            Class::Cut => &mut self.cut,
            Class::WrongVersion => &mut self.wrong_version,
            Class::Mixed => &mut self.mixed,
            Class::Duplicated => &mut self.duplicated,
            Class::Lost => &mut self.lost,
            Class::ClosedIdle => &mut self.closed_idle,
        }
    }
}

impl Latency {
    /// Exact: of all the samples, none rounded.
    pub(super) fn of(mut samples_us: Vec<u64>) -> Self {
        samples_us.sort_unstable();
        let at = |percent: usize| {
            let rank = (samples_us.len() * percent).div_ceil(100);
            samples_us.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Self { p50_us: at(50), p99_us: at(99), max_us: at(100) }
    }
}

impl Verdict {
    /// Whether something was sent and nothing was spilled. Cut streams count as spilled unless they were expected.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.counts.sent > 0 && self.spilled() == 0
    }

    /// How many things went wrong that are not to go wrong; the generator's own lateness is not among them.
    #[must_use]
    pub fn spilled(&self) -> u64 {
        let Counts { sent: _, ok: _, late: _, failed, reset, truncated, cut, .. } = self.counts;
        let Counts { wrong_version, mixed, duplicated, lost, closed_idle, .. } = self.counts;
        let cut = if self.cuts_expected { 0 } else { cut };
        failed + reset + truncated + cut + wrong_version + mixed + duplicated + lost + closed_idle
    }

    /// None seen in `n` does not mean none: with 95 % confidence the share of failures is below this, 3/n.
    #[must_use]
    pub fn bound(&self) -> Option<f64> {
        (self.counts.sent > 0).then(|| 3.0 / self.counts.sent as f64)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { sent, ok, failed, reset, truncated, cut, wrong_version, mixed, .. } = self.counts;
        let Counts { duplicated, lost, closed_idle, late, .. } = self.counts;
        let elapsed = Duration::from_millis(self.elapsed_ms);
        row(f, "sent", sent, &format!("in {elapsed:.1?}, {}", list(&self.sent_by, |kind| kind.name())))?;
        row(f, "ok", ok, &list(&self.versions, String::as_str))?;
        row(f, "failed", failed, &list(&self.failed_by, String::as_str))?;
        row(f, "reset", reset, "")?;
        row(f, "truncated", truncated, "")?;
        row(f, "cut", cut, if self.cuts_expected { "expected" } else { "" })?;
        let answers = match self.answers_checked {
            Some(0) => "not checked: no answer says what it comes from".to_owned(),
            Some(answers) => format!("{answers} answers checked against {} swaps", self.swaps),
            None => "not checked: no swap was told".to_owned(),
        };
        row(f, "wrong version", wrong_version, &answers)?;
        row(f, "mixed", mixed, "")?;
        let submissions = match self.submissions_checked {
            Some(submissions) => format!("{submissions} submissions compared with what arrived"),
            None => "not checked in full: no submissions, or not all instances share a record".to_owned(),
        };
        row(f, "duplicated", duplicated, &submissions)?;
        row(f, "lost", lost, "")?;
        row(f, "closed idle", closed_idle, "")?;
        row(f, "late", late, "the generator's own; the latencies include it")?;
        let millis = |us: u64| us as f64 / 1000.0;
        let Latency { p50_us, p99_us, max_us } = self.latency;
        let (p50, p99, max) = (millis(p50_us), millis(p99_us), millis(max_us));
        writeln!(f, "{:<14}p50 {p50:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms", "latency")?;
        for Evidence { at_ms, class, kind, host, what } in &self.evidence {
            let to = if host.is_empty() { "" } else { " to " };
            writeln!(f, "  at {at_ms} ms, {class:?}: {kind}{to}{host}: {what}")?;
        }
        self.conclusion(f)
    }
}

impl Verdict {
    fn conclusion(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, seed) = (self.counts.sent, self.seed);
        match (self.spilled(), self.bound()) {
            (_, None) => write!(f, "proves nothing: no request was sent"),
            (0, Some(bound)) => {
                let percent = bound * 100.0;
                write!(
                    f,
                    "clean: none of {sent} spilled, so with 95 % confidence less than 3/n = {percent:.2} % are (seed {seed})"
                )
            }
            (spilled, Some(_)) => write!(f, "SPILLED: {spilled}, of {sent} sent (seed {seed})"),
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, count: u64, note: &str) -> fmt::Result {
    writeln!(f, "{}", format!("{name:<14}{count:>8}  {note}").trim_end())
}

fn list<K>(counts: &BTreeMap<K, u64>, name: impl Fn(&K) -> &str) -> String {
    let parts: Vec<String> = counts.iter().map(|(key, count)| format!("{} {count}", name(key))).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_samples_themselves() {
        let latency = Latency::of((1..=1000).rev().collect());
        assert_eq!(latency, Latency { p50_us: 500, p99_us: 990, max_us: 1000 });
        assert_eq!(Latency::of(vec![7]), Latency { p50_us: 7, p99_us: 7, max_us: 7 });
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }
}
