//! The load verifier: puts a known load on an app and says what of it was spilled.
//!
//! The load is open: requests are due at times that were fixed before the run, and a latency begins when its
//! request was due, so that a stall of the target is not hidden by a generator that waits for it. Every answer
//! is checked against what was sent; nothing is ever sent again. Whoever swaps versions during the run says so
//! through a [`Handle`]; then every answer's version is checked too. Where others swap, the run looks by itself what
//! serves ([`Verifier::run_watching`]). `history.rs` has the rules.

mod client;
mod exchange;
mod history;
mod http2;
mod options;
mod plan;
mod streams;
mod tally;
mod tls;
mod verdict;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use client::Client;
use exchange::Framing;
use history::Right;
use plan::{Plan, Reuse, Slot};
use tally::{Fault, Naming, Tally};
use watch::Watch;

pub use options::{Target, TargetError, VerifyOptions};
pub use plan::{Kind, Mix, MixError};
pub use tls::{Authorities, AuthoritiesError};
pub use verdict::{Class, Counts, Evidence, Latency, Verdict};
pub use watch::Serving;

/// Requests beyond this many in flight are not sent but counted as failed: the target has stopped answering.
const MAX_IN_FLIGHT: usize = 4096;
/// Bytes of a slow download.
const SLOW_DOWNLOAD: u64 = 512 * 1024;

/// One run, not yet begun.
#[derive(Debug)]
pub struct Verifier {
    run: Arc<Run>,
    stop: CancellationToken,
}

/// What a run is told, and asked, while it goes on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    tally: Arc<Tally>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
}

/// A swap that was called. Dropped without a word it counts as one that may have happened at any time since.
#[derive(Debug)]
#[must_use = "say how the swap was answered"]
pub struct SwapToken(usize);

/// What the tasks of one run share.
#[derive(Debug)]
struct Run {
    options: VerifyOptions,
    /// Sets this run's submissions apart from every other's.
    id: String,
    seed: u64,
    client: Client,
    tally: Arc<Tally>,
    clock: Arc<dyn Clock>,
    began: Instant,
}

/// Runs the load to its end.
pub async fn run(options: VerifyOptions) -> Verdict {
    Verifier::new(options, Arc::new(SystemClock)).run().await
}

impl Verifier {
    /// Fixes the plan; nothing is sent before [`run`](Self::run).
    #[must_use]
    pub fn new(options: VerifyOptions, clock: Arc<dyn Clock>) -> Self {
        let random = uuid::Uuid::now_v7();
        let (_, low) = random.as_u64_pair();
        let hosts = options.hosts().iter().map(ToString::to_string).collect();
        let tally = Arc::new(Tally::new(clock.now(), hosts));
        let run = Run {
            id: random.simple().to_string(),
            // 32 bits: short to type, and exact in every reader of JSON.
            seed: options.seed.unwrap_or(low & 0xffff_ffff),
            client: Client::new(&options, Arc::clone(&clock), Arc::clone(&tally)),
            began: clock.now(),
            options,
            tally,
            clock,
        };
        Self { run: Arc::new(run), stop: CancellationToken::new() }
    }

    /// For whoever swaps versions or stops the run.
    #[must_use]
    pub fn handle(&self) -> Handle {
        let (tally, clock) = (Arc::clone(&self.run.tally), Arc::clone(&self.run.clock));
        Handle { tally, clock, stop: self.stop.clone() }
    }

    /// Sends what the plan says until its end or [`Handle::stop`], lets what is in flight end, and judges.
    pub async fn run(self) -> Verdict {
        let elapsed = self.send().await;
        self.run.verdict(elapsed)
    }

    /// The same for hosts that others swap: `look` says what serves them now, and is asked again and again. `None` is that
    /// it cannot be said; of that time nothing is held against any version. Answers are known by their `X-Deployment`.
    pub async fn run_watching(self, look: impl AsyncFn() -> Option<Serving>) -> Verdict {
        let run = &*self.run;
        run.tally.name_by(Naming::Deployment);
        let mut watch = Watch::new(&run.tally, &*run.clock, run.began);
        watch.look(&look).await;
        let over = CancellationToken::new();
        let sending = async {
            let _over = over.clone().drop_guard();
            self.send().await
        };
        let (elapsed, ()) = tokio::join!(sending, watch.go_on(&look, &over));
        run.verdict(elapsed)
    }

    /// Returns when all has ended that was sent, and how long that took.
    async fn send(&self) -> Duration {
        let Self { run, stop } = self;
        let _flowing = run.tally.flowing.clone().drop_guard();
        let start = run.clock.now();
        let mut requests = JoinSet::new();
        let options = &run.options;
        let hosts = options.hosts().len();
        for slot in Plan::new(run.seed, options.rate, options.duration.into(), options.mix.clone(), hosts) {
            let due = start + slot.at;
            tokio::select! {
                () = run.clock.sleep_until(due) => (),
                () = stop.cancelled() => break,
            }
            while requests.try_join_next().is_some() {}
            run.tally.sending(&slot, run.clock.now() - due);
            if requests.len() >= MAX_IN_FLIGHT {
                let full = Fault::Failed(format!("not sent: {MAX_IN_FLIGHT} requests in flight"));
                run.tally.ended(&slot, Err(full), Duration::ZERO, run.clock.now());
            } else {
                requests.spawn(Arc::clone(run).request(slot, due));
            }
        }
        run.finish(requests).await;
        run.check_submissions().await;
        run.client.close().await;
        run.clock.now() - start
    }
}

impl Handle {
    /// To be called right before a swap to `version` is asked for. The swaps of a run must take effect in the
    /// order in which they are called.
    pub fn swap_called(&self, version: &str) -> SwapToken {
        SwapToken(self.tally.swap_called(version, Right::Only, self.clock.now()))
    }

    /// The same before the first step of a cutover in steps: from then on a client may get `version`, or what it got
    /// before. That ends with a swap to either of them.
    pub fn split_called(&self, version: &str) -> SwapToken {
        SwapToken(self.tally.swap_called(version, Right::Also, self.clock.now()))
    }

    /// To be called right after the answer that the swap has happened.
    #[expect(clippy::needless_pass_by_value, reason = "a swap is answered once")]
    pub fn swap_answered(&self, swap: SwapToken) {
        self.tally.swap_answered(swap.0, self.clock.now());
    }

    /// To be called after the answer that the swap did not happen: no client may have seen its version.
    #[expect(clippy::needless_pass_by_value, reason = "a swap is answered once")]
    pub fn swap_failed(&self, swap: SwapToken) {
        self.tally.swap_failed(swap.0);
    }

    /// Resolves once every host has given one good answer, or the run is over.
    pub async fn flowing(&self) {
        self.tally.flowing.cancelled().await;
    }

    /// What was counted so far. Versions and submissions are judged at the end.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Ends the sending; the run then lets what is in flight end.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Run {
    fn verdict(&self, elapsed: Duration) -> Verdict {
        self.tally.verdict(elapsed, self.options.cuts_expected, self.seed)
    }

    /// One request of the plan, from its due time to its last byte.
    async fn request(self: Arc<Self>, slot: Slot, due: Instant) {
        let client = &self.client;
        let time = Duration::from(self.options.stream_duration);
        let (length, even) = (u64::from(slot.size), slot.number.is_multiple_of(2));
        let outcome = match slot.kind {
            Kind::Get | Kind::GetHttp2 => exchange::get(client, &slot).await,
            Kind::Head => exchange::head(client, &slot).await,
            Kind::Post | Kind::PostHttp2 => exchange::post(client, &slot, &self.id, Framing::Length).await,
            Kind::PostChunked => exchange::post(client, &slot, &self.id, Framing::Chunked).await,
            Kind::SlowUpload => exchange::post(client, &slot, &self.id, Framing::Spread(time)).await,
            Kind::Download => exchange::download(client, &slot, length, false, Duration::ZERO).await,
            Kind::DownloadChunked => exchange::download(client, &slot, length, true, Duration::ZERO).await,
            Kind::SlowDownload => exchange::download(client, &slot, SLOW_DOWNLOAD, even, time).await,
            Kind::Sse => streams::events(client, &slot, time).await,
            Kind::Websocket => streams::websocket(client, &slot, time).await,
        };
        let outcome = outcome.map_err(|fault| match fault {
            Fault::Reset(what) | Fault::Truncated(what)
                if self.options.cuts_expected && slot.kind.is_long() =>
            {
                Fault::Cut(what)
            }
            fault => fault,
        });
        let now = self.clock.now();
        self.tally.ended(&slot, outcome, now - due, now);
    }

    /// Lets what is in flight end. Each request has its own time-outs; this one is for a fault of the generator.
    async fn finish(&self, mut requests: JoinSet<()>) {
        let options = &self.options;
        let longest = Duration::from(options.stream_duration) * 2 + Duration::from(options.timeout) * 4;
        let ended =
            tokio::time::timeout(longest, async { while requests.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            requests.shutdown().await;
        }
        let Counts { sent, ok, failed, reset, truncated, cut, .. } = self.tally.counts();
        self.tally.unfinished(sent - ok - failed - reset - truncated - cut);
    }

    /// Asks the app what it received. That is one more request, which may fail as any other.
    async fn check_submissions(&self) {
        if !self.tally.has_submissions() {
            return;
        }
        let at = self.clock.now() - self.began;
        let slot = Slot { number: 0, at, kind: Kind::Get, host: 0, reuse: Reuse::New, size: 0 };
        self.tally.sending(&slot, Duration::ZERO);
        let due = self.clock.now();
        let record = exchange::record(&self.client, &slot, &self.id).await;
        let now = self.clock.now();
        let outcome = record.map(|record| self.tally.check_submissions(&self.id, &record, now));
        self.tally.ended(&slot, outcome, now - due, now);
    }
}
