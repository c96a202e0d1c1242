//! What keeps the wrong version from going live, and the wrong instance from being stopped: sequence, rollback,
//! cancels, timers that came due while nobody looked, and stores that know too little.

use std::io;
use std::sync::{Mutex, PoisonError};

use lockgate::ids::OperationId;
use lockgate::settings::{ReadinessMode, Replicas};
use lockgate::store::{
    EventKind, GitFacts, InstanceRow, NewDeployment, NewOperation, OperationKind, SwapPlan,
};

use super::*;

const DELAY: Duration = Duration::from_secs(60);

/// A deploy is ready after [`DELAY`] of a clock that only the test moves, and then not watched.
async fn slow() -> Bed {
    let bed = Bed::with(|settings| {
        settings.deploy.readiness_mode = ReadinessMode::Delay;
        settings.deploy.readiness_delay = Delay(DELAY);
        settings.deploy.watch = Delay::seconds(0);
    })
    .await;
    bed.clock.stop();
    bed
}

impl Bed {
    async fn waits_for_readiness(&self, submitted: &Submitted) {
        let deployment = submitted.deployment.unwrap();
        eventually("it is checked", async || {
            self.status(deployment).await.0 == DeploymentStatus::Checking
                && !self.runtime.of(deployment).is_empty()
        })
        .await;
    }

    /// Ends a deploy that waits for its delay.
    async fn made_ready(&self, submitted: &mut Submitted) -> Operation {
        eventually("it ends", async || {
            self.clock.leap(DELAY);
            let operation = self.store.operation(&submitted.operation).await.unwrap().unwrap();
            operation.state.is_end()
        })
        .await;
        self.ended(submitted).await
    }

    /// Another version goes live, without the engine having made it.
    async fn another_goes_live(&self) -> DeploymentId {
        let environment =
            self.store.environment(&app(), &EnvironmentName::production()).await.unwrap().unwrap();
        let (operation, deployment) = (OperationId::generate(), DeploymentId::generate());
        let at = self.clock.wall();
        let begun = NewOperation {
            id: operation,
            kind: OperationKind::Deploy,
            app: app(),
            environment: environment.name.clone(),
            deployment: Some(deployment),
            request: "{}".to_owned(),
            actor: "test".to_owned(),
            idempotency: None,
            at,
        };
        let made = NewDeployment {
            id: deployment,
            settings: AppSettings::default(),
            git: GitFacts::default(),
            pinned: None,
            label: None,
            expires_at: None,
        };
        self.store.begin_operation(&begun, Some(&made)).await.unwrap();
        let plan = SwapPlan {
            operation,
            app: app(),
            environment: environment.name,
            to: deployment,
            expected_generation: environment.generation,
            rolled_back: false,
            routes: Vec::new(),
            retire: None,
            stopped: None,
            left_over: None,
            cutover: "{}".to_owned(),
            at,
        };
        self.store.commit_swap(&plan).await.unwrap();
        deployment
    }

    async fn live(&self) -> Option<DeploymentId> {
        self.store.environment(&app(), &EnvironmentName::production()).await.unwrap().unwrap().live
    }

    fn count(&self, told: &Told) -> usize {
        self.runtime.told().iter().filter(|other| *other == told).count()
    }
}

#[tokio::test]
async fn an_older_deploy_that_is_ready_late_is_superseded_and_goes() {
    let bed = slow().await;
    let mut older = bed.submit(&["serve", "1"]).await;
    bed.waits_for_readiness(&older).await;
    let newer = bed.another_goes_live().await;
    let operation = bed.made_ready(&mut older).await;
    assert_eq!(operation.state, OperationState::Superseded, "{operation:?}");
    assert!(operation.failure.unwrap().cause.contains(&newer.to_string()));
    let older = older.deployment.unwrap();
    assert_eq!(bed.status(older).await, (DeploymentStatus::Superseded, DesiredState::Archived));
    assert_eq!((bed.live().await, bed.runtime.known()), (Some(newer), 0));
    assert_ne!(bed.serves(HOST), Ok(older.to_string()));
}

#[tokio::test]
async fn while_rolled_back_a_deploy_is_ready_on_its_own_names_and_says_why_it_is_not_live() {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    let bed = Bed::with_options(options, |_| {}).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    let request = lockgate::deploy::RollbackRequest { app: Some(app()), ..Default::default() };
    let mut back = bed.engine.submit(Command::Rollback(request), caller()).await.unwrap();
    bed.ended(&mut back).await;
    let (three, operation) = bed.deploy(&["serve", "3"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.status(three).await, (DeploymentStatus::Ready, DesiredState::Running));
    for host in [HOST, "web.apps.test", "web-production.apps.test"] {
        assert_eq!(bed.serves(host), Ok(one.to_string()), "{host}");
    }
    let own = bed.engine.hosts(three);
    assert_eq!(own.len(), 1, "{own:?}");
    assert_eq!(bed.serves(&own[0]), Ok(three.to_string()));
    let events = bed.store.events(Some(&operation.id), 0, 100).await.unwrap();
    let says_why = |kind, text: &str| kind == EventKind::Progress && text.contains("rolled back");
    assert!(events.iter().any(|event| says_why(event.kind, &event.text)), "{events:?}");
}

#[tokio::test]
async fn a_cancelled_one_that_waits_in_line_never_starts_and_the_one_before_it_goes_on() {
    let bed = slow().await;
    let mut first = bed.submit(&["serve", "1"]).await;
    bed.waits_for_readiness(&first).await;
    let of_branch = DeployRequest {
        git: GitFacts { branch: Some("other".to_owned()), ..GitFacts::default() },
        ..request(&["serve", "2"])
    };
    let mut queued = bed.try_submit(of_branch).await.unwrap();
    bed.engine.cancel(queued.operation).await.unwrap();
    let operation = bed.ended(&mut queued).await;
    assert_eq!((operation.state, operation.started_at), (OperationState::Cancelled, None));
    let deployment = queued.deployment.unwrap();
    assert_eq!(bed.status(deployment).await, (DeploymentStatus::Cancelled, DesiredState::Archived));
    assert_eq!(bed.made_ready(&mut first).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves(HOST), Ok(first.deployment.unwrap().to_string()));
    // The lane has gone through all it had: what is asked for next runs.
    let mut next = bed.submit(&["serve", "3"]).await;
    assert_eq!(bed.made_ready(&mut next).await.state, OperationState::Succeeded);
    assert_eq!(bed.store.steps(&queued.operation).await.unwrap(), []);
    assert_eq!(bed.status(deployment).await.0, DeploymentStatus::Cancelled);
}

#[tokio::test]
async fn a_cancel_after_the_cutover_changes_nothing() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay(DELAY)).await;
    bed.clock.stop();
    let mut submitted = bed.submit(&["serve", "1"]).await;
    let deployment = submitted.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(deployment.to_string())).await;
    bed.engine.cancel(submitted.operation).await.unwrap();
    assert_eq!(bed.made_ready(&mut submitted).await.state, OperationState::Succeeded);
    assert_eq!(bed.status(deployment).await.0, DeploymentStatus::Ready);
    assert_eq!(bed.serves(HOST), Ok(deployment.to_string()));
}

/// Whichever comes first: operation, deployment, live pointer and route tell the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_races_the_commit_has_one_outcome() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let (mut live, _) = bed.deploy(&["serve", "first"]).await;
    // Searched by the outcomes: the moment at which it is as often too late as not.
    let (mut moment, mut step) = (Duration::ZERO, Duration::from_millis(16));
    let mut was_late = false;
    for round in 0..50 {
        let mut submitted = bed.submit(&["serve", &round.to_string()]).await;
        let deployment = submitted.deployment.unwrap();
        let until = bed.clock.now() + moment;
        while bed.clock.now() < until {
            tokio::task::yield_now().await;
        }
        bed.engine.cancel(submitted.operation).await.unwrap();
        let operation = bed.ended(&mut submitted).await;
        let status = bed.status(deployment).await.0;
        match operation.state {
            OperationState::Succeeded => {
                assert_eq!(status, DeploymentStatus::Ready, "round {round}");
                live = deployment;
            }
            OperationState::Cancelled => {
                assert_eq!(status, DeploymentStatus::Cancelled, "round {round}");
                assert_eq!(bed.runtime.of(deployment), [], "round {round}: something of it is left");
            }
            other => panic!("round {round}: {other:?}, {:?}", operation.failure),
        }
        assert_eq!(bed.live().await, Some(live), "round {round}");
        assert_eq!(bed.serves(HOST), Ok(live.to_string()), "round {round}");
        drop(bed.request(HOST));
        let is_late = operation.state == OperationState::Succeeded;
        if is_late != was_late {
            step = (step / 2).max(Duration::from_micros(100));
        }
        moment = if is_late { moment.saturating_sub(step) } else { moment + step };
        was_late = is_late;
    }
}

#[tokio::test]
async fn a_timer_that_came_due_while_lockgate_was_down_fires_once_at_the_start() {
    let bed = Bed::with(|settings| settings.deploy.standby_after = Delay::seconds(600)).await;
    let (first, _) = bed.deploy(&["serve", "1"]).await;
    let old = bed.runtime.of(first)[0];
    bed.deploy(&["serve", "2"]).await;
    bed.looked().await;
    assert_eq!((bed.count(&Told::Stop(old)), bed.sleepers().await), (0, vec![first]));
    // It starts an hour later, and no time passes from then on.
    let clock: Arc<LeapClock> = Arc::default();
    clock.leap(Duration::from_secs(3600));
    clock.stop();
    let bed = bed.restart_at(clock).await;
    eventually("it is in standby", async || bed.status(first).await.1 == DesiredState::Standby).await;
    eventually("it is stopped", async || bed.count(&Told::Stop(old)) == 1).await;
    assert_eq!(bed.sleepers().await, []);
    for _ in 0..3 {
        bed.clock.leap(Duration::from_secs(60));
        bed.looked().await;
    }
    assert_eq!((bed.count(&Told::Stop(old)), bed.runtime.starts(old)), (1, 1));
    assert_eq!(bed.count(&Told::Remove(old)), 0, "standby keeps the instance");
}

impl Bed {
    /// Those that a timer is to put to sleep.
    async fn sleepers(&self) -> Vec<DeploymentId> {
        let timers = self.store.timers().await.unwrap();
        let to_sleep = timers.into_iter().filter(|timer| timer.state == DesiredState::Standby);
        to_sleep.map(|timer| timer.deployment).collect()
    }
}

/// What this thread logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn has(&self, text: &str) -> bool {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).contains(text)
    }
}

/// `orphans` instances that no row stands for, beside a version with `replicas`; what is left when it was looked at.
async fn left_of(orphans: usize, replicas: u16) -> (usize, Log) {
    let bed = Bed::with(|settings| settings.replicas = Replicas::new(replicas).unwrap()).await;
    let (deployment, _) = bed.deploy(&["serve", "1"]).await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    for _ in 0..orphans {
        lockgate::runtime::Runtime::start(&*bed.runtime, &orphan_of(deployment)).await.unwrap();
    }
    let bed = bed.restart().await;
    bed.looked().await;
    bed.looked().await;
    assert_eq!(bed.backend(HOST).unwrap().targets.len(), usize::from(replicas));
    (bed.runtime.known() - usize::from(replicas), log)
}

#[tokio::test]
async fn of_many_orphans_none_is_removed_and_the_log_says_why() {
    let said = "was an old backup restored? nothing is removed";
    for (orphans, replicas) in [(4, 1), (4, 3), (6, 5)] {
        let (left, log) = left_of(orphans, replicas).await;
        assert_eq!(left, orphans, "beside {replicas}");
        assert!(log.has(said), "it was not logged");
    }
    // Few of them, or few beside what is known, are what a crash leaves behind.
    for (orphans, replicas) in [(3, 1), (4, 4)] {
        let (left, log) = left_of(orphans, replicas).await;
        assert_eq!(left, 0, "{orphans} beside {replicas}");
        assert!(!log.has(said));
    }
}

/// The list of what runs is older than the look at the rows: a row that is written since stands for its instance.
#[tokio::test]
async fn an_orphan_whose_row_is_written_meanwhile_is_left_alone() {
    let bed = Bed::new().await;
    let (deployment, _) = bed.deploy(&["serve", "1"]).await;
    let deployment = bed.store.deployment(&deployment).await.unwrap().unwrap();
    let held = bed.runtime.hold_stops();
    let orphans = [orphan_of(deployment.id), orphan_of(deployment.id)];
    for orphan in &orphans {
        lockgate::runtime::Runtime::start(&*bed.runtime, orphan).await.unwrap();
    }
    let is_stopped = |orphan: &&lockgate::runtime::InstanceSpec| bed.count(&Told::Stop(orphan.id)) > 0;
    eventually("one of them goes", async || {
        bed.runtime.hint(orphans[0].id);
        orphans.iter().any(|orphan| is_stopped(&orphan))
    })
    .await;
    let other = orphans.iter().find(|orphan| !is_stopped(orphan)).unwrap();
    let row = InstanceRow { id: other.id, ..InstanceRow::new(&deployment, deployment.operation) };
    bed.store.put_instance(&row).await.unwrap();
    held.notify_one();
    bed.looked().await;
    assert_eq!((bed.count(&Told::Stop(other.id)), bed.count(&Told::Remove(other.id))), (0, 0));
    let gone = orphans.iter().find(|orphan| orphan.id != other.id).unwrap();
    assert_eq!(bed.count(&Told::Remove(gone.id)), 1);
}

/// Whatever fails in a deploy, once: it goes live, or it has failed and what was live is; it does not stay on its way.
#[cfg(feature = "fault")]
#[tokio::test(flavor = "multi_thread")]
async fn whichever_fail_point_of_a_deploy_fails_its_version_comes_to_an_end() {
    use lockgate::fault::{Springs, Trap};
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(0)).await;
    let (mut live, _) = bed.deploy(&["serve", "0"]).await;
    let mut points = Vec::new();
    for passes in 0.. {
        let trap = Trap::after(passes, Springs::Once);
        let submitted = bed.try_submit(request(&["serve", &format!("{}", passes + 1)])).await;
        let mut ended = None;
        if let Ok(mut submitted) = submitted {
            ended = Some((submitted.deployment.unwrap(), bed.in_time(bed.ended(&mut submitted)).await));
        }
        let Some(point) = trap.sprung() else { break };
        drop(trap);
        points.push(point);
        let Some((deployment, _)) = ended else { continue };
        eventually(&format!("{point}: it comes to an end"), async || {
            bed.clock.leap(Duration::from_secs(5));
            bed.status(deployment).await.0.is_end()
        })
        .await;
        if bed.status(deployment).await.0 == DeploymentStatus::Ready {
            live = deployment;
        }
        assert_eq!(bed.serves(HOST), Ok(live.to_string()), "{point}");
        eventually(&format!("{point}: nothing is left of it"), async || {
            bed.clock.leap(Duration::from_secs(5));
            let is_left = bed.status(deployment).await.0 != DeploymentStatus::Ready;
            !is_left || bed.runtime.of(deployment).is_empty()
        })
        .await;
    }
    for point in ["store.write", "fake.start", "step.check.acted", "swap.committed"] {
        assert!(points.contains(&point), "{points:?}");
    }
}
