//! The operation engine over the real store and a runtime that does as it is told: what a deploy promises, without
//! the data plane. A "request" here is what the data plane does: resolve, then enter the target's gate.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod access;
mod balance;
#[path = "../tls/ca.rs"]
mod ca;
mod clock;
mod clones;
mod doctor;
mod environments;
mod evidence;
mod expiry;
mod fake;
mod guards;
mod handovers;
mod health;
mod host_names;
mod hosts;
mod hours;
mod https;
mod idle;
mod model;
mod moves;
mod plane;
mod policies;
mod preview_auth;
mod previews;
mod progressive;
mod readiness;
mod receipts;
mod release;
mod renaming;
mod replicas;
mod restarts;
mod scale;
mod schedule;
mod skew;
mod submissions;
mod swaps;
mod tls;
mod volumes;
mod wake;
mod warm;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clock::LeapClock;
use fake::{FakeRuntime, Told};
use lockgate::clock::Clock;
use lockgate::deploy::{
    Caller, Command, Denied, DeployRequest, Options, Orchestrator, Progress, Submitted, SwapRequest,
};
use lockgate::gate::Guard;
use lockgate::ids::{AppName, DeploymentId, EnvironmentName, WorkspaceName};
use lockgate::routing::{Backend, HostName, Miss, Routing};
use lockgate::settings::{AppSettings, Delay};
use lockgate::store::sqlite::SqliteStore;
use lockgate::store::{
    App, DeploymentStatus, DesiredState, HostRow, Operation, OperationState, Origin, Store,
};

const HOST: &str = "web.test";
/// No wait lasts longer, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longer than any test: what it limits ends by a leap of the clock alone.
const LONG: Delay = Delay::seconds(3600);
/// The same, and not as long as a version that was replaced stays up.
const WATCH: Delay = Delay::seconds(600);

/// One installation: store, runtime, routes, engine.
struct Bed {
    store: Arc<dyn Store>,
    runtime: Arc<FakeRuntime>,
    routing: Arc<Routing>,
    engine: Orchestrator,
    clock: Arc<LeapClock>,
    options: Options,
    directory: tempfile::TempDir,
}

impl Bed {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With the app `web` at [`HOST`], its settings changed by `change`.
    async fn with(change: impl FnOnce(&mut AppSettings)) -> Self {
        Self::with_options(Options::default(), change).await
    }

    async fn with_options(options: Options, change: impl FnOnce(&mut AppSettings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bed = Self::open(directory, Arc::default(), Arc::default(), options).await;
        let mut settings =
            AppSettings { command: vec!["serve".into(), "1".into()], ..AppSettings::default() };
        settings.deploy.watch = Delay(Duration::from_millis(50));
        settings.deploy.health_timeout = Delay::seconds(30);
        settings.health.path = Some("/up".to_owned());
        settings.deploy.stop_grace = Delay::seconds(1);
        change(&mut settings);
        let app = App {
            workspace: WorkspaceName::default_workspace(),
            name: app(),
            hosts: vec![HostRow { host: HOST.into(), path: "/".into(), strip: false }],
            settings,
            origin: Origin::Api,
        };
        bed.engine.put_apps(&[app]).await.unwrap();
        bed
    }

    async fn open(
        directory: tempfile::TempDir,
        runtime: Arc<FakeRuntime>,
        leaping: Arc<LeapClock>,
        options: Options,
    ) -> Self {
        let clock: Arc<dyn Clock> = leaping.clone();
        let store: Arc<dyn Store> = Arc::new(open_store(directory.path(), &clock));
        let routing = Arc::new(Routing::new(1));
        let engine = Orchestrator::start(
            store.clone(),
            runtime.clone(),
            routing.clone(),
            clock.clone(),
            options.clone(),
        )
        .await
        .unwrap();
        Self { store, runtime, routing, engine, clock: leaping, options, directory }
    }

    /// Lockgate ends and begins again over the same store and the same instances.
    async fn restart(self) -> Self {
        self.restart_at(Arc::default()).await
    }

    /// The same, at another time.
    async fn restart_at(self, clock: Arc<LeapClock>) -> Self {
        self.engine.shutdown(Duration::from_secs(5)).await;
        let Self { store, runtime, engine, options, directory, .. } = self;
        drop((store, engine));
        Self::open(directory, runtime, clock, options).await
    }

    /// The process is gone at the fail point at which `trap` sprang, and another one begins over what it left.
    #[cfg(feature = "fault")]
    async fn crash(self, trap: lockgate::fault::Trap) -> Self {
        self.in_time(self.engine.shutdown(Duration::from_secs(5))).await;
        let Self { store, runtime, engine, clock, options, directory, .. } = self;
        let held = Arc::downgrade(&store);
        drop((store, engine));
        // As long as something of it is there, it must not do anything.
        eventually("nothing of the engine is left", async || {
            clock.leap(Duration::from_millis(500));
            held.upgrade().is_none()
        })
        .await;
        drop(trap);
        Self::open(directory, runtime, clock, options).await
    }

    async fn submit(&self, command: &[&str]) -> Submitted {
        self.try_submit(request(command)).await.unwrap()
    }

    async fn try_submit(&self, request: DeployRequest) -> Result<Submitted, Denied> {
        self.engine.submit(Command::Deploy(request), caller()).await
    }

    /// Deploys and waits for the end of the operation.
    async fn deploy(&self, command: &[&str]) -> (DeploymentId, Operation) {
        let mut submitted = self.submit(command).await;
        let operation = self.ended(&mut submitted).await;
        (submitted.deployment.unwrap(), operation)
    }

    async fn ended(&self, submitted: &mut Submitted) -> Operation {
        within(submitted.reached(Progress::Ended)).await;
        self.store.operation(&submitted.operation).await.unwrap().unwrap()
    }

    /// Waits for the end of an operation that a limit of its own is to end.
    async fn ended_in_time(&self, submitted: &mut Submitted) -> Operation {
        self.in_time(self.ended(submitted)).await
    }

    /// Lets time pass, faster than it does, until something has ended.
    async fn in_time<T>(&self, waited: impl Future<Output = T>) -> T {
        let passing = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                self.clock.leap(Duration::from_millis(500));
            }
        };
        tokio::select! {
            waited = waited => waited,
            () = passing => unreachable!(),
        }
    }

    async fn swap(&self, deployment: DeploymentId) -> Result<Submitted, Denied> {
        let request = SwapRequest {
            app: Some(app()),
            environment: None,
            deployment,
            expected_generation: None,
            queue: true,
            steps: Vec::new(),
            step_for: None,
        };
        self.engine.submit(Command::Swap(request), caller()).await
    }

    fn backend(&self, host: &str) -> Result<Arc<Backend>, Miss> {
        let name: HostName = host.parse().unwrap();
        let (_, found) = self.routing.resolve(&name).ok_or(Miss::NoRoute)?;
        found.route("/", self.clock.now()).map(|route| route.backend.clone())
    }

    /// Which deployment serves `host`, as text.
    fn serves(&self, host: &str) -> Result<String, Miss> {
        self.backend(host).map(|backend| backend.stats.labels.as_ref().unwrap().deployment.clone())
    }

    /// Begins a request, as the data plane does.
    fn request(&self, host: &str) -> Guard {
        loop {
            if let Ok(guard) = self.backend(host).unwrap().targets[0].gate.enter(0) {
                return guard;
            }
        }
    }

    async fn status(&self, deployment: DeploymentId) -> (DeploymentStatus, DesiredState) {
        let found = self.store.deployment(&deployment).await.unwrap().unwrap();
        (found.status, found.desired_state)
    }
}

fn open_store(directory: &Path, clock: &Arc<dyn Clock>) -> SqliteStore {
    SqliteStore::open(directory, clock.clone()).unwrap()
}

fn app() -> AppName {
    "web".parse().unwrap()
}

fn caller() -> Caller {
    Caller { actor: "test".to_owned(), idempotency: None }
}

fn request(command: &[&str]) -> DeployRequest {
    DeployRequest {
        app: Some(app()),
        command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        ..DeployRequest::default()
    }
}

/// No wait of these tests may last.
async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.expect("it took too long")
}

/// Waits for something that happens in the background.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looked = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_known_host_without_a_version_has_a_route_and_no_target() {
    let bed = Bed::new().await;
    assert!(bed.backend(HOST).unwrap().targets.is_empty());
    assert_eq!(bed.backend("other.test").unwrap_err(), Miss::NoRoute);
}

#[tokio::test]
async fn a_deploy_goes_live_and_its_receipt_says_so() {
    let bed = Bed::new().await;
    let (first, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    let receipt: lockgate::deploy::Receipt = serde_json::from_str(&operation.receipt.unwrap()).unwrap();
    assert_eq!((receipt.from, receipt.to, receipt.hosts), (None, first, vec![HOST.to_owned()]));
    let steps = bed.store.steps(&operation.id).await.unwrap();
    let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["image", "start", "check", "gate", "swap", "watch"]);
}

#[tokio::test]
async fn the_old_version_is_stopped_only_after_its_last_request_and_its_rest() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = Delay::seconds(0)).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let held = bed.request(HOST);
    let old = bed.backend(HOST).unwrap().targets[0].id;
    let mut second = bed.submit(&["serve", "2"]).await;
    within(second.reached(Progress::CutOver)).await;
    assert_eq!(bed.serves(HOST), Ok(second.deployment.unwrap().to_string()));
    // Its timer is due from the cutover on; what holds it is the request.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!bed.runtime.told().contains(&Told::Stop(old)), "stopped under a request");
    drop(held);
    let operation = bed.ended(&mut second).await;
    let receipt: lockgate::deploy::Receipt = serde_json::from_str(&operation.receipt.unwrap()).unwrap();
    assert_eq!((receipt.in_flight_at_cutover.requests, receipt.drained.requests), (1, 1));
    eventually("the old version is stopped", async || bed.runtime.told().contains(&Told::Stop(old))).await;
    eventually("it is in standby", async || bed.status(first).await.1 == DesiredState::Standby).await;
    assert_eq!(bed.runtime.told().iter().filter(|told| **told == Told::Stop(old)).count(), 1);
    assert!(!bed.runtime.told().contains(&Told::Remove(old)), "standby keeps the instance");
}

#[tokio::test]
async fn a_deploy_that_fails_changes_nothing_and_leaves_nothing() {
    for (command, code, evidence) in [
        (["exit", ""], "instance_exited", "code 3"),
        (["deaf", ""], "not_ready", "connect to 127."),
        (["sick", ""], "not_ready", "answered 500"),
    ] {
        let bed = Bed::new().await;
        let (first, _) = bed.deploy(&["serve", "1"]).await;
        let generation = bed.routing.generation();
        let mut submitted = bed.submit(&command).await;
        let failed = submitted.deployment.unwrap();
        let operation = bed.ended_in_time(&mut submitted).await;
        let failure = operation.failure.unwrap();
        assert_eq!((operation.state, failure.code.as_str()), (OperationState::Failed, code));
        let told = format!("{} {:?}", failure.cause, failure.evidence);
        assert!(told.contains(evidence) && told.contains("the last line it wrote"), "{told}");
        assert!(failure.remedy.is_some());
        assert_eq!(bed.serves(HOST), Ok(first.to_string()));
        assert_eq!(bed.routing.generation(), generation, "a client could see something");
        assert_eq!(
            (bed.runtime.running().len(), bed.runtime.known()),
            (1, 1),
            "{command:?} left an instance"
        );
        assert_eq!(bed.status(failed).await.0, DeploymentStatus::Failed);
    }
}

#[tokio::test]
async fn a_version_that_dies_after_its_cutover_gives_the_traffic_back() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let (first, _) = bed.deploy_held(&["serve", "1"]).await;
    let old = bed.backend(HOST).unwrap().targets[0].clone();
    let mut submitted = bed.submit(&["serve", "2"]).await;
    let second = submitted.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(second.to_string())).await;
    bed.runtime.end(bed.runtime.of(second)[0]);
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    assert_eq!(operation.failure.unwrap().code, "instance_exited");
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert!(!old.gate.is_closed(), "the old version's gate is shut");
    assert_eq!(bed.status(second).await.0, DeploymentStatus::Failed);
    eventually("the new instance is gone", async || bed.runtime.known() == 1).await;
}

#[tokio::test]
async fn an_equal_deploy_is_a_noop_unless_forced() {
    let bed = Bed::new().await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let (_, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.state, OperationState::Succeeded);
    assert_eq!(operation.failure.unwrap().code, "noop");
    assert_eq!((bed.serves(HOST), bed.runtime.known()), (Ok(first.to_string()), 1));
    let mut forced = bed.try_submit(DeployRequest { force: true, ..request(&["serve", "1"]) }).await.unwrap();
    bed.ended(&mut forced).await;
    assert_eq!(bed.serves(HOST), Ok(forced.deployment.unwrap().to_string()));
}

#[tokio::test]
async fn of_deploys_that_wait_only_the_newest_runs() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let mut first = bed.submit(&["serve", "1"]).await;
    eventually("it is at work", async || !bed.runtime.running().is_empty()).await;
    let mut second = bed.submit(&["serve", "2"]).await;
    let mut third = bed.submit(&["serve", "3"]).await;
    let same = bed.submit(&["serve", "3"]).await;
    assert_eq!(
        (same.operation, same.repeated),
        (third.operation, true),
        "an equal one that waits is the same"
    );
    let states = [bed.held(&mut first).await, bed.ended(&mut second).await, bed.held(&mut third).await];
    assert_eq!(
        states.map(|operation| operation.state),
        [OperationState::Succeeded, OperationState::Superseded, OperationState::Succeeded]
    );
    assert_eq!(bed.serves(HOST), Ok(third.deployment.unwrap().to_string()));
}

#[tokio::test]
async fn a_caller_that_does_not_wait_in_line_is_told_who_is_at_it() {
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    let mut first = bed.submit(&["serve", "1"]).await;
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    let denied =
        bed.try_submit(DeployRequest { queue: false, ..request(&["serve", "2"]) }).await.unwrap_err();
    assert!(
        matches!(denied, Denied::OperationInProgress { holder } if holder == first.operation),
        "{denied:?}"
    );
    bed.held(&mut first).await;
}

#[tokio::test]
async fn a_cancelled_deploy_takes_back_what_it_did() {
    let bed = Bed::with(|settings| settings.deploy.health_timeout = Delay::seconds(60)).await;
    let mut submitted = bed.submit(&["deaf", ""]).await;
    eventually("it waits for readiness", async || !bed.runtime.running().is_empty()).await;
    bed.engine.cancel(submitted.operation).await.unwrap();
    assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Cancelled);
    assert_eq!(bed.runtime.known(), 0);
    let again = bed.engine.cancel(submitted.operation).await.unwrap();
    assert_eq!(again.state, OperationState::Cancelled, "cancelling an ended one is a success without effect");
}

#[tokio::test]
async fn a_version_that_still_drains_serves_again_and_is_not_cut() {
    let bed = Bed::with(|settings| {
        settings.deploy.drain_timeout = LONG;
        settings.deploy.stream_drain_timeout = LONG;
    })
    .await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let held = bed.request(HOST);
    let old = bed.backend(HOST).unwrap().targets[0].clone();
    let mut second = bed.submit(&["serve", "2"]).await;
    within(second.reached(Progress::CutOver)).await;
    assert!(old.gate.is_closed());
    let mut back = bed.swap(first).await.unwrap();
    within(back.reached(Progress::CutOver)).await;
    assert!(!old.gate.is_closed());
    let again = bed.request(HOST);
    // Past the old deadline: an order to cut would have come.
    bed.clock.leap(2 * LONG.0);
    bed.looked().await;
    assert_eq!(old.order(), lockgate::routing::backend::Order::Serve);
    assert_eq!(old.gate.in_flight().requests, 2);
    drop((held, again));
    let operation = bed.ended(&mut second).await;
    assert!(operation.receipt.unwrap().contains("serves again"));
    assert_eq!(
        bed.runtime.told().iter().filter(|told| matches!(told, Told::Start(_))).count(),
        2,
        "no restart"
    );
}

#[tokio::test]
async fn while_the_runtime_is_away_what_is_known_is_served_and_a_deploy_is_refused() {
    let bed = Bed::new().await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    bed.runtime.set_away(true);
    let denied = bed.try_submit(request(&["serve", "2"])).await.unwrap_err();
    assert!(matches!(denied, Denied::RuntimeUnavailable { .. }), "{denied:?}");
    let bed = bed.restart().await;
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.backend(HOST).unwrap().targets.len(), 1, "served from what the store knows");
    bed.runtime.set_away(false);
    let (second, operation) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(operation.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(second.to_string()));
}

#[tokio::test]
async fn a_restart_serves_what_was_committed_with_the_same_instances() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let (second, _) = bed.deploy(&["serve", "2"]).await;
    let address = bed.backend(HOST).unwrap().targets[0].address;
    let before = bed.runtime.told().len();
    let bed = bed.restart().await;
    assert_eq!(bed.serves(HOST), Ok(second.to_string()));
    assert_eq!(bed.backend(HOST).unwrap().targets[0].address, address);
    assert_eq!(bed.runtime.told().len(), before, "an instance was touched");
}

#[tokio::test]
async fn an_instance_that_ends_is_started_again_and_followed_to_its_new_address() {
    let bed = Bed::new().await;
    bed.deploy(&["serve", "1"]).await;
    let first = bed.backend(HOST).unwrap().targets[0].address;
    bed.runtime.end(bed.serving());
    eventually("it has a new address", async || {
        bed.backend(HOST).unwrap().targets.first().is_some_and(|target| target.address != first)
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_nobody_knows_is_removed_and_a_known_one_is_not() {
    let bed = Bed::new().await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let kept = bed.runtime.running();
    let spec = orphan_of(first);
    lockgate::runtime::Runtime::start(&*bed.runtime, &spec).await.unwrap();
    let bed = bed.restart().await;
    eventually("the orphan is gone", async || bed.runtime.known() == 1).await;
    assert_eq!(bed.runtime.running(), kept);
}

fn orphan_of(deployment: DeploymentId) -> lockgate::runtime::InstanceSpec {
    lockgate::runtime::InstanceSpec {
        volumes: Vec::new(),
        label: None,
        id: lockgate::ids::InstanceId::generate(),
        app: app(),
        environment: EnvironmentName::production(),
        deployment,
        operation: lockgate::ids::OperationId::generate(),
        digest: String::new(),
        command: vec!["serve".into()],
        directory: None,
        port: None,
        env: std::collections::BTreeMap::new(),
        resources: lockgate::settings::ResourceSettings::default(),
        health_check: None,
        stop_signal: None,
        stop_grace: Duration::from_secs(1),
    }
}

#[tokio::test]
async fn a_swap_wakes_a_version_in_standby_before_the_traffic_moves() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = Delay::seconds(0)).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    eventually("it is stopped", async || {
        bed.status(first).await.1 == DesiredState::Standby && bed.runtime.running().len() == 1
    })
    .await;
    let mut back = bed.swap(first).await.unwrap();
    let operation = bed.ended(&mut back).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.serves(HOST), Ok(first.to_string()));
    assert_eq!(bed.status(first).await.1, DesiredState::Running);
}

#[tokio::test]
async fn a_label_leads_to_its_deployment_until_it_expires_and_live_is_untouched() {
    let bed = Bed::new().await;
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let labelled = |command: &[&str], seconds| DeployRequest {
        label: Some("feat".parse().unwrap()),
        ttl: Some(Delay::seconds(seconds)),
        ..request(command)
    };
    let mut preview = bed.try_submit(labelled(&["serve", "p"], 3600)).await.unwrap();
    assert_eq!(bed.ended(&mut preview).await.state, OperationState::Succeeded);
    let first = preview.deployment.unwrap();
    assert_eq!(bed.serves("feat.web.test"), Ok(first.to_string()));
    assert_eq!(bed.serves("other.web.test"), Err(Miss::EphemeralUnknown));
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));

    let mut replaced = bed.try_submit(labelled(&["serve", "q"], 3600)).await.unwrap();
    bed.ended(&mut replaced).await;
    assert_eq!(bed.serves("feat.web.test"), Ok(replaced.deployment.unwrap().to_string()));
    eventually("the replaced one is gone", async || bed.status(first).await.1 == DesiredState::Archived)
        .await;
    bed.clock.leap(LONG.0);
    assert_eq!(bed.serves("feat.web.test"), Err(Miss::EphemeralExpired));
    eventually("its instance is removed", async || bed.runtime.known() == 1).await;
    assert_eq!(bed.serves(HOST), Ok(live.to_string()));
}

#[tokio::test]
async fn what_cannot_be_deployed_is_refused_with_the_field_and_a_remedy() {
    let bed = Bed::new().await;
    let label = |text: &str| DeployRequest { label: Some(text.parse().unwrap()), ..request(&["serve"]) };
    let imaged = DeployRequest { image: Some("nginx:1".to_owned()), command: None, ..request(&["serve"]) };
    for (wrong, field) in [
        (DeployRequest { command: Some(Vec::new()), ..request(&["serve"]) }, "command"),
        // Fixed fault: it was taken for a deploy of the app's own command.
        (imaged, "image"),
        (label("www"), "label"),
        (label("xn--a"), "label"),
        (DeployRequest { ttl: Some(Delay::seconds(0)), ..label("ok") }, "ttl"),
        (DeployRequest { ttl: Some(Delay::seconds(1)), ..request(&["serve"]) }, "ttl"),
    ] {
        let denied = bed.try_submit(wrong).await.unwrap_err();
        assert!(
            matches!(&denied, Denied::Invalid { field: named, remedy: Some(_), .. } if *named == field),
            "{denied:?}"
        );
    }
    let unknown = DeployRequest { app: Some("nobody".parse().unwrap()), ..request(&["serve"]) };
    assert!(matches!(bed.try_submit(unknown).await.unwrap_err(), Denied::AppNotFound { .. }));
    assert!(matches!(
        bed.swap(DeploymentId::generate()).await.unwrap_err(),
        Denied::DeploymentNotFound { .. }
    ));
}

/// What the store said before a swap is never published after it.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_an_app_that_race_swaps_never_lead_back() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let changing = {
        let (engine, store, stop) = (bed.engine.clone(), bed.store.clone(), stop.clone());
        tokio::runtime::Handle::current().spawn(async move {
            let mut app = store.app(&app()).await.unwrap().unwrap();
            let mut changes = 0_u32;
            while !stop.is_cancelled() {
                changes += 1;
                app.hosts.truncate(1);
                if changes.is_multiple_of(2) {
                    app.hosts.push(HostRow { host: "www.web.test".into(), path: "/".into(), strip: false });
                }
                engine.put_apps(std::slice::from_ref(&app)).await.unwrap();
            }
            changes
        })
    };
    for round in 0..200 {
        let to = if round % 2 == 0 { one } else { two };
        let mut submitted = bed.swap(to).await.unwrap();
        within(submitted.reached(Progress::CutOver)).await;
        for _ in 0..3 {
            assert_eq!(bed.serves(HOST).unwrap(), to.to_string(), "round {round}");
            tokio::task::yield_now().await;
        }
        let operation = bed.ended(&mut submitted).await;
        assert_eq!(operation.state, OperationState::Succeeded, "round {round}: {:?}", operation.failure);
        assert_eq!(bed.serves(HOST).unwrap(), to.to_string(), "round {round}, afterwards");
    }
    stop.cancel();
    assert!(changing.await.unwrap() > 100, "the app was hardly changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_change_together_or_not_at_all_and_may_exchange_hosts() {
    let bed = Bed::new().await;
    let (web, _) = bed.deploy(&["serve", "1"]).await;
    let named = |name: &str, host: &str| App {
        workspace: WorkspaceName::default_workspace(),
        name: name.parse().unwrap(),
        hosts: vec![HostRow { host: host.into(), path: "/".into(), strip: false }],
        settings: AppSettings { command: vec!["serve".into(), "1".into()], ..AppSettings::default() },
        origin: Origin::Api,
    };
    bed.engine.put_apps(&[named("api", "api.test"), named("other", "other.test")]).await.unwrap();

    let taken = bed.engine.put_apps(&[named("api", "new.test"), named("third", "other.test")]).await;
    assert!(matches!(taken, Err(Denied::HostTaken { .. })), "{taken:?}");
    assert!(bed.store.app(&"third".parse().unwrap()).await.unwrap().is_none());
    assert!(matches!(bed.backend("new.test"), Err(Miss::NoRoute)), "half of it was applied");
    assert!(bed.backend("api.test").unwrap().targets.is_empty());

    let mut bad = named("third", "third.test");
    bad.settings.resources.memory_mib = 1;
    let refused = bed.engine.put_apps(&[named("api", "new.test"), bad]).await;
    assert!(
        matches!(&refused, Err(Denied::Invalid { field, .. }) if field == "resources.memory_mib"),
        "{refused:?}"
    );
    assert!(bed.backend("api.test").is_ok() && matches!(bed.backend("new.test"), Err(Miss::NoRoute)));

    bed.engine.put_apps(&[named("web", "api.test"), named("api", HOST)]).await.unwrap();
    assert_eq!(bed.serves("api.test").unwrap(), web.to_string());
    assert!(bed.backend(HOST).unwrap().targets.is_empty(), "the host of an app that has nothing live");
}
