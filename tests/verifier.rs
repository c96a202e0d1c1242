//! The verifier finds nothing where nothing is wrong, and each fault in the class that is its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "verifier/relay.rs"]
mod relay;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockgate::clock::SystemClock;
use lockgate::sample::{Sample, SampleOptions};
use lockgate::verify::{Class, Counts, Handle, Kind, Mix, Serving, Verdict, Verifier, VerifyOptions};
use relay::{HOSTS, Relay, Sabotage};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Two versions of the sample app that share a record, and perhaps a relay in front of them.
struct Bed {
    samples: JoinSet<()>,
    addresses: Vec<SocketAddr>,
    _directory: tempfile::TempDir,
    _turn: SemaphorePermit<'static>,
}

const VERSIONS: [&str; 2] = ["v1", "v2"];

impl Bed {
    async fn make() -> Self {
        // Who sends goes by the clock and waits for nobody: a machine that is too busy for more would never come to an end.
        static TURNS: Semaphore = Semaphore::const_new(2);
        let turn = TURNS.acquire().await.unwrap();
        open_many_files();
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let (samples, addresses) = (JoinSet::new(), Vec::new());
        let mut bed = Self { samples, addresses, _directory: directory, _turn: turn };
        for version in VERSIONS {
            bed.add(version, record.clone()).await;
        }
        bed
    }

    async fn add(&mut self, version: &str, record: PathBuf) {
        let options = SampleOptions {
            version: version.to_owned(),
            record_file: Some(record),
            ..SampleOptions::default()
        };
        let sample = Sample::bind(options, Arc::new(SystemClock)).await.unwrap();
        self.addresses.push(sample.address());
        self.samples.spawn(sample.serve(CancellationToken::new()));
    }

    async fn relay(&self, sabotage: Sabotage) -> Arc<Relay> {
        Relay::start(sabotage, [self.addresses[0], self.addresses[1]]).await
    }
}

/// Four sockets for each request in flight are more than some machines give at first.
fn open_many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
}

/// Runs until it is stopped, or for longer than any test should take; with short streams.
fn options(target: SocketAddr, mix: Mix) -> VerifyOptions {
    let mut options = VerifyOptions::new(format!("http://{target}").parse().unwrap());
    options.hosts = HOSTS.iter().map(|host| host.parse().unwrap()).collect();
    options.duration = Duration::from_secs(300).into();
    options.rate = 100;
    // Nobody is late by that on however busy a machine.
    options.timeout = Duration::from_secs(60).into();
    options.stream_duration = Duration::from_millis(800).into();
    options.mix = mix;
    options
}

fn verifier(target: SocketAddr, mix: Mix) -> Verifier {
    Verifier::new(options(target, mix), Arc::new(SystemClock))
}

/// Waits until so many requests have ended of those that are sent from now on: on a busy machine many are in flight.
async fn asked_anew(handle: &Handle, more: u64) {
    let ended = || {
        let Counts { ok, failed, reset, truncated, cut, .. } = handle.counts();
        ok + failed + reset + truncated + cut
    };
    // No more than were sent before can have ended before.
    let until = handle.counts().sent + more;
    while ended() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Swaps back and forth, each time after the relay has served some requests that were sent since.
async fn swap_often(relay: &Relay, handle: &Handle) {
    handle.flowing().await;
    for turn in 1..=8 {
        asked_anew(handle, 40).await;
        let swap = handle.swap_called(VERSIONS[turn % 2]);
        relay.switch(0, turn % 2);
        relay.switch(1, turn % 2);
        handle.swap_answered(swap);
    }
    handle.stop();
}

/// What the verifier says of a relay with a fault.
async fn with(sabotage: Sabotage, mix: &str) -> Verdict {
    let bed = Bed::make().await;
    let relay = bed.relay(sabotage).await;
    let verifier = verifier(relay.address, mix.parse().unwrap());
    let handle = verifier.handle();
    let (verdict, ()) = tokio::join!(verifier.run(), swap_often(&relay, &handle));
    verdict
}

/// The fault was found, and taken for nothing else but what it may also be.
fn assert_only(verdict: &Verdict, class: Class, or: Option<Class>) {
    let mut rest = verdict.clone();
    let found = std::mem::take(rest.counts.of(class));
    if let Some(or) = or {
        *rest.counts.of(or) = 0;
    }
    assert!(found > 0, "not found:\n{verdict}");
    assert_eq!(rest.spilled(), 0, "found as something else:\n{verdict}");
    assert!(verdict.evidence.iter().any(|evidence| evidence.class == class), "no evidence:\n{verdict}");
    assert!(!verdict.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_without_a_proxy_is_clean() {
    let bed = Bed::make().await;
    let mut options = options(bed.addresses[0], Mix::default());
    (options.duration, options.rate) = (Duration::from_secs(2).into(), 200);
    // A plan that has each kind: of 30,000 others one lacks one of the rarest.
    options.seed = Some(1);
    let verdict = lockgate::verify::run(options).await;
    let Counts { sent, ok, .. } = verdict.counts;
    assert!(verdict.is_clean() && sent > 200 && ok == sent, "{verdict}");
    assert_eq!(verdict.sent_by.len(), 12, "a kind is missing:\n{verdict}");
    assert_eq!(verdict.answers_checked, None);
    assert!(verdict.submissions_checked.unwrap() > 20, "{verdict}");
    assert!(verdict.latency.p99_us >= verdict.latency.p50_us && verdict.latency.p50_us > 0);
    let last = verdict.to_string().lines().last().unwrap().to_owned();
    assert!(last.contains(&format!("none of {sent} spilled, so with 95 % confidence less than")), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_by_a_relay_that_keeps_its_promises_are_clean() {
    let mix = Mix::default().without(Kind::GetHttp2).without(Kind::PostHttp2);
    let verdict = with(Sabotage::Nothing, &mix.to_string()).await;
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.swaps, verdict.versions.len()), (8, 2), "{verdict}");
    assert!(verdict.answers_checked.unwrap() > 100, "{verdict}");
}

/// What went live last may have answered before any look showed it.
#[tokio::test]
async fn a_run_that_watches_looks_once_more_when_all_has_ended() {
    let bed = Bed::make().await;
    let verifier = verifier(bed.addresses[0], "get=1".parse().unwrap());
    let handle = verifier.handle();
    let has_ended = std::cell::Cell::new(false);
    let look = async || {
        let Counts { sent, ok, .. } = handle.counts();
        if ok >= 5 {
            handle.stop();
        }
        has_ended.set(ok >= 5 && ok == sent);
        Some(Serving { generation: 1, live: "one".to_owned(), split: None })
    };
    let verdict = verifier.run_watching(look).await;
    assert!(verdict.is_clean() && has_ended.get(), "{verdict}");
    // The sample app was not told a deployment, so its answers name none.
    assert_eq!(verdict.answers_checked, Some(0));
    assert!(verdict.to_string().contains("no answer says what it comes from"), "{verdict}");
}

#[tokio::test]
async fn nobody_listening_is_a_failure() {
    // Taken, so that nobody else listens there meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let verifier = verifier(address, "get=1".parse().unwrap());
    let handle = verifier.handle();
    let (verdict, ()) = tokio::join!(verifier.run(), async {
        while handle.counts().failed < 5 {
            tokio::task::yield_now().await;
        }
        handle.stop();
    });
    assert_only(&verdict, Class::Failed, None);
    assert_eq!(verdict.failed_by["connection refused"], verdict.counts.sent);
}

#[tokio::test]
async fn a_run_that_sent_nothing_is_not_clean() {
    let bed = Bed::make().await;
    let verifier = verifier(bed.addresses[0], Mix::default());
    verifier.handle().stop();
    let verdict = verifier.run().await;
    assert!(!verdict.is_clean() && verdict.bound().is_none(), "{verdict}");
}

/// One test for each fault: its name, what it is, the mix that meets it, the class that it is.
macro_rules! found {
    ($($name:ident: $sabotage:ident, $mix:literal => $class:ident $(or $or:ident)?;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let verdict = with(Sabotage::$sabotage, $mix).await;
            assert_only(&verdict, Class::$class, [$(Class::$or)?].first().copied());
        }
    )*};
}

found! {
    a_bad_gateway_is_a_failure: BadGateway, "get=1,head=1" => Failed;
    a_connection_that_ends_before_the_answer_is_a_reset: Reset, "get=3,post=1,sse=1,websocket=1" => Reset;
    a_body_that_ends_in_its_middle_is_truncated: CutBody, "get=1,download=1,download-chunked=1,sse=1" => Truncated;
    an_altered_byte_is_truncated: FlipByte, "download=1,download-chunked=1,slow-download=1" => Truncated;
    a_submission_sent_twice_is_duplicated: SendTwice, "get=1,post=1,post-chunked=1" => Duplicated;
    a_submission_that_never_arrived_is_lost: Swallow, "get=1,post=1,slow-upload=1" => Lost;
    // Within the swap's own call, the old version after the new one breaks only the order.
    the_old_version_after_the_swap_is_a_wrong_version: WrongUpstream, "get=1,post=1,websocket=1" => WrongVersion or Mixed;
    a_websocket_without_a_close_frame_is_truncated: DropWebsocket, "get=3,websocket=1" => Truncated;
    a_websocket_closed_for_a_restart_is_cut: RestartWebsocket, "get=3,websocket=1" => Cut;
    // A request that is sent while its connection is being closed is a reset.
    idle_connections_that_a_swap_closes_are_counted: CloseIdle, "get=1" => ClosedIdle or Reset;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_host_by_host_is_mixed_though_no_answer_is_stale_by_itself() {
    let bed = Bed::make().await;
    let relay = bed.relay(Sabotage::Nothing).await;
    let verifier = verifier(relay.address, "get=1".parse().unwrap());
    let handle = verifier.handle();
    let swap_slowly = async {
        handle.flowing().await;
        let swap = handle.swap_called(VERSIONS[1]);
        relay.switch(0, 1);
        // The first host is seen to have the new version, and then the second one still has the old one. Which host is asked
        // is left to chance.
        asked_anew(&handle, 40).await;
        asked_anew(&handle, 40).await;
        relay.switch(1, 1);
        handle.swap_answered(swap);
        handle.stop();
    };
    let (verdict, ()) = tokio::join!(verifier.run(), swap_slowly);
    assert_only(&verdict, Class::Mixed, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_failed_must_not_have_shown_its_version() {
    let bed = Bed::make().await;
    let relay = bed.relay(Sabotage::Nothing).await;
    let verifier = verifier(relay.address, "get=1".parse().unwrap());
    let handle = verifier.handle();
    let fail = async {
        handle.flowing().await;
        let swap = handle.swap_called(VERSIONS[1]);
        relay.switch(0, 1);
        relay.served(0, 10).await;
        handle.swap_failed(swap);
        handle.stop();
    };
    let (verdict, ()) = tokio::join!(verifier.run(), fail);
    assert_only(&verdict, Class::WrongVersion, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expected_cuts_are_counted_and_do_not_spoil_the_verdict() {
    let bed = Bed::make().await;
    let relay = bed.relay(Sabotage::DropWebsocket).await;
    let mut options = options(relay.address, "get=1,websocket=1".parse().unwrap());
    options.duration = Duration::from_millis(500).into();
    options.cuts_expected = true;
    let verdict = lockgate::verify::run(options).await;
    assert!(verdict.is_clean() && verdict.counts.cut > 0, "{verdict}");
}
