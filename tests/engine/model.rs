//! Random orders of everything that moves versions, with leaps of time and restarts in between, against a model of
//! what an operator expects. `LOCKGATE_SEED` repeats a run, `LOCKGATE_MODEL_STEPS` sets its length.

use std::collections::BTreeMap;

use lockgate::clock::{SystemClock, Timestamp};
use lockgate::deploy::ScheduledState;
use lockgate::settings::DeploySettings;

use super::*;

const LABELS: [&str; 3] = ["blue", "green", "red"];
/// What the engine spares the way back for when its time is over.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Between what the model and the engine take for the time at which something was armed.
const NEAR: Duration = Duration::from_secs(50);

/// What an operator would write down.
#[derive(Clone, Debug, Default)]
struct Model {
    versions: Vec<Version>,
    live: Option<usize>,
    is_rolled_back: bool,
    /// Counts the cutovers.
    cutovers: usize,
    labels: BTreeMap<&'static str, (usize, Timestamp)>,
}

#[derive(Clone, Debug)]
struct Version {
    id: DeploymentId,
    status: DeploymentStatus,
    state: DesiredState,
    /// The cutover that made it live last.
    live_at: Option<usize>,
    is_labelled: bool,
    timer: Option<Due>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    state: DesiredState,
    at: Timestamp,
    /// Not asked for by anybody: it spares the way back.
    is_retention: bool,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Deploy,
    DeployBroken,
    DeployBeside,
    Preview(&'static str, u64),
    Swap(usize),
    Rollback,
    RollbackTo(usize),
    Promote(usize),
    Schedule(usize, ScheduledState, u64),
    Clear(usize),
    Leap(u64),
    Restart,
}

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }

    fn act(&mut self, versions: usize) -> Act {
        // Mostly one of the last few: older ones are archived and refuse everything.
        let near = self.below(versions.min(5));
        let one = versions - 1 - near;
        let minutes = [1, 20, 45, 600][self.below(4)];
        match self.below(22) {
            0..=3 => Act::Deploy,
            4 => Act::DeployBroken,
            5 => Act::DeployBeside,
            6..=7 => Act::Preview(LABELS[self.below(LABELS.len())], minutes),
            8..=9 => Act::Swap(one),
            10..=11 => Act::Rollback,
            12 => Act::RollbackTo(one),
            13..=14 => Act::Promote(one),
            15 => Act::Schedule(one, ScheduledState::Standby, minutes),
            16 => Act::Schedule(one, ScheduledState::Archived, minutes),
            17 => Act::Clear(one),
            18..=20 => Act::Leap([1, 15, 31, 90, 11_000][self.below(5)]),
            _ => Act::Restart,
        }
    }
}

impl Model {
    fn can_serve(&self, version: usize) -> bool {
        let version = &self.versions[version];
        version.status == DeploymentStatus::Ready && version.state != DesiredState::Archived
    }

    /// Where a rollback goes.
    fn way_back(&self) -> Option<usize> {
        let live = self.live?;
        let until = self.versions[live].live_at;
        let is_earlier = |version: &usize| {
            let at = self.versions[*version].live_at;
            let is_further_back = !self.is_rolled_back || *version < live;
            self.can_serve(*version) && at.is_some() && at < until && is_further_back
        };
        (0..self.versions.len()).filter(is_earlier).max_by_key(|version| self.versions[*version].live_at)
    }

    fn add(&mut self, id: DeploymentId, status: DeploymentStatus, is_labelled: bool) -> usize {
        let state =
            if status == DeploymentStatus::Ready { DesiredState::Running } else { DesiredState::Archived };
        self.versions.push(Version { id, status, state, live_at: None, is_labelled, timer: None });
        self.versions.len() - 1
    }

    /// The live routes lead to `version` from now on.
    fn cut_over(&mut self, version: usize, old_sleeps_at: Option<Timestamp>) {
        let before = self.live.replace(version).filter(|before| *before != version);
        if let (Some(before), Some(at)) = (before, old_sleeps_at) {
            let due = Due { state: DesiredState::Standby, at, is_retention: false };
            self.versions[before].timer = Some(due);
        }
        self.cutovers += 1;
        let version = &mut self.versions[version];
        version.live_at = Some(self.cutovers);
        version.state = DesiredState::Running;
        version.timer = None;
    }

    /// After a promote: what ran on because of a rollback sleeps.
    fn let_rest(&mut self, at: Timestamp) {
        for (index, version) in self.versions.iter_mut().enumerate() {
            let is_left_over = self.live != Some(index)
                && version.live_at.is_some()
                && version.state == DesiredState::Running
                && version.timer.is_none();
            if is_left_over {
                version.timer = Some(Due { state: DesiredState::Standby, at, is_retention: false });
            }
        }
    }

    /// It is `now`, and everything due has happened.
    fn arrive(&mut self, now: Timestamp, settings: &DeploySettings) {
        self.labels.retain(|_, (version, expires)| {
            let is_kept = *expires > now;
            if !is_kept {
                self.versions[*version].state = DesiredState::Archived;
                self.versions[*version].timer = None;
            }
            is_kept
        });
        let way_back = self.way_back();
        for index in 0..self.versions.len() {
            let Some(due) = self.versions[index].timer.filter(|due| due.at <= now) else { continue };
            let version = &mut self.versions[index];
            if due.is_retention && way_back == Some(index) {
                version.timer = Some(Due { at: now + DAY, ..due });
                continue;
            }
            version.state = due.state;
            version.timer = (due.state == DesiredState::Standby).then(|| Due {
                state: DesiredState::Archived,
                at: now + settings.archive_after.0,
                is_retention: true,
            });
        }
    }
}

/// The bed and its model, side by side.
struct Run {
    bed: Option<Bed>,
    model: Model,
    settings: DeploySettings,
    made: usize,
}

impl Run {
    fn bed(&self) -> &Bed {
        self.bed.as_ref().unwrap()
    }

    fn sleeps_at(&self) -> Timestamp {
        self.bed().clock.wall() + self.settings.standby_after.0
    }

    fn command(&mut self, behaviour: &str) -> DeployRequest {
        self.made += 1;
        request(&[behaviour, &self.made.to_string()])
    }

    async fn run(&self, submitted: Result<Submitted, Denied>) -> Option<(Submitted, OperationState)> {
        let mut submitted = submitted.ok()?;
        let operation = self.bed().ended(&mut submitted).await;
        Some((submitted, operation.state))
    }

    async fn deploy(&mut self, request: DeployRequest) -> (DeploymentId, OperationState) {
        let submitted = self.bed().try_submit(request).await;
        let (submitted, state) = self.run(submitted).await.unwrap();
        (submitted.deployment.unwrap(), state)
    }

    /// Does it, and says what the model expected of it and what came of it.
    async fn act(&mut self, act: Act) -> (bool, bool) {
        let bed_clock = self.bed().clock.clone();
        // No two things happen at the same time.
        bed_clock.leap(Duration::from_millis(10));
        let now = bed_clock.wall();
        let sleeps_at = self.sleeps_at();
        match act {
            Act::Deploy | Act::DeployBeside => {
                let goes_live = matches!(act, Act::Deploy);
                let request = DeployRequest { cutover: goes_live, ..self.command("serve") };
                let (id, state) = self.deploy(request).await;
                let version = self.model.add(id, DeploymentStatus::Ready, false);
                if goes_live && !self.model.is_rolled_back {
                    self.model.cut_over(version, Some(sleeps_at));
                }
                (true, state == OperationState::Succeeded)
            }
            Act::DeployBroken => {
                let request = self.command("exit");
                let (id, state) = self.deploy(request).await;
                self.model.add(id, DeploymentStatus::Failed, false);
                (false, state == OperationState::Succeeded)
            }
            Act::Preview(label, minutes) => {
                let ttl = Duration::from_secs(minutes * 60);
                let request = DeployRequest {
                    label: Some(label.parse().unwrap()),
                    ttl: Some(Delay(ttl)),
                    ..self.command("serve")
                };
                let (id, state) = self.deploy(request).await;
                let version = self.model.add(id, DeploymentStatus::Ready, true);
                if let Some((before, _)) = self.model.labels.insert(label, (version, now + ttl)) {
                    self.model.versions[before].state = DesiredState::Archived;
                    self.model.versions[before].timer = None;
                }
                (true, state == OperationState::Succeeded)
            }
            Act::Swap(version) => {
                let is_taken = self.model.can_serve(version)
                    && self.model.live != Some(version)
                    && !self.model.versions[version].is_labelled;
                let swapped = self.bed().swap(self.model.versions[version].id).await;
                let swapped = self.run(swapped).await;
                if is_taken {
                    self.model.cut_over(version, Some(sleeps_at));
                }
                (is_taken, swapped.is_some_and(|(_, state)| state == OperationState::Succeeded))
            }
            Act::Rollback => {
                let target = self.model.way_back();
                let moved = self.bed().rollback(None, None).await;
                self.rolled_back(target, moved).await
            }
            Act::RollbackTo(version) => {
                let target = Some(version)
                    .filter(|version| self.model.live != Some(*version) && self.model.can_serve(*version));
                // A label is an environment's too; it is never what production goes back to.
                let target = target.filter(|version| !self.model.versions[*version].is_labelled);
                let moved = self.bed().rollback(None, Some(self.model.versions[version].id)).await;
                self.rolled_back(target, moved).await
            }
            Act::Promote(version) => {
                let is_live = self.model.live == Some(version);
                let is_taken = self.model.can_serve(version)
                    && !self.model.versions[version].is_labelled
                    && (!is_live || self.model.is_rolled_back);
                let promoted = self.bed().promote(self.model.versions[version].id).await;
                let promoted = self.run(promoted).await;
                if is_taken {
                    if !is_live {
                        self.model.cut_over(version, Some(sleeps_at));
                    }
                    self.model.is_rolled_back = false;
                    self.model.let_rest(sleeps_at);
                }
                (is_taken, promoted.is_some_and(|(_, state)| state == OperationState::Succeeded))
            }
            Act::Schedule(version, state, minutes) => {
                let is_taken = self.model.can_serve(version) && self.model.live != Some(version);
                let delay = Delay::seconds(minutes * 60);
                let taken = self.bed().schedule(self.model.versions[version].id, state, delay).await;
                if is_taken {
                    let state = state.into();
                    let due = Due { state, at: now + delay.0, is_retention: false };
                    self.model.versions[version].timer = Some(due);
                }
                (is_taken, taken.is_ok())
            }
            Act::Clear(version) => {
                let cleared = self.bed().engine.clear_schedule(self.model.versions[version].id).await;
                self.model.versions[version].timer = None;
                (true, cleared.is_ok())
            }
            Act::Leap(minutes) => {
                bed_clock.leap(Duration::from_secs(minutes * 60));
                self.model.arrive(bed_clock.wall(), &self.settings);
                (true, true)
            }
            Act::Restart => {
                self.bed = Some(self.bed.take().unwrap().restart_at(bed_clock).await);
                (true, true)
            }
        }
    }

    async fn rolled_back(&mut self, target: Option<usize>, moved: Result<Submitted, Denied>) -> (bool, bool) {
        let moved = self.run(moved).await;
        if let Some(target) = target {
            self.model.cut_over(target, None);
            self.model.is_rolled_back = true;
        }
        (target.is_some(), moved.is_some_and(|(_, state)| state == OperationState::Succeeded))
    }

    /// Everything that can be seen, as the model has it; `Err` says what differs.
    async fn compare(&self) -> Result<(), String> {
        let (bed, model) = (self.bed(), &self.model);
        let same = |what: &str, expected: String, is: String| {
            if expected == is { Ok(()) } else { Err(format!("{what}: expected {expected}, is {is}")) }
        };
        let production = bed.production().await;
        let live = model.live.map(|live| model.versions[live].id);
        same("live", format!("{live:?}"), format!("{:?}", production.live))?;
        same("flag", model.is_rolled_back.to_string(), production.rolled_back.to_string())?;
        let serving = live.map(|live| live.to_string());
        same("served", format!("{serving:?}"), format!("{:?}", bed.serves(HOST).ok()))?;
        if live.is_some() {
            let is_closed = bed.backend(HOST).unwrap().targets.iter().any(|target| target.gate.is_closed());
            same("a live gate is shut", false.to_string(), is_closed.to_string())?;
        }
        let timers = bed.store.timers().await.unwrap();
        let running = bed.runtime.running();
        for (index, version) in model.versions.iter().enumerate() {
            let name = format!("version {index} ({})", version.id);
            let found = bed.status(version.id).await;
            if version.status == DeploymentStatus::Ready {
                same(&name, format!("{:?}", (version.status, version.state)), format!("{found:?}"))?;
            } else {
                same(&name, format!("{:?}", version.status), format!("{:?}", found.0))?;
            }
            let instances = bed.runtime.of(version.id);
            let expected = usize::from(version.state != DesiredState::Archived);
            same(&format!("{name}: instances"), expected.to_string(), instances.len().to_string())?;
            let runs = instances.iter().filter(|id| running.contains(id)).count();
            let expected = usize::from(version.state == DesiredState::Running);
            same(&format!("{name}: running"), expected.to_string(), runs.to_string())?;
            let timer = timers.iter().find(|timer| timer.deployment == version.id);
            let is_near = match (version.timer, timer) {
                (None, None) => true,
                (Some(due), Some(timer)) => {
                    due.state == timer.state && due.at.duration_since(timer.due).unsigned_abs() < NEAR
                }
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !is_near {
                return Err(format!("{name}: expected {:?}, is {timer:?}", version.timer));
            }
        }
        for label in LABELS {
            let version = model.labels.get(label).map(|(version, _)| &model.versions[*version]);
            if version.is_some_and(|version| version.state != DesiredState::Running) {
                continue;
            }
            let expected = version.map(|version| version.id.to_string());
            let is = bed.serves(&format!("{label}.{HOST}")).ok();
            same(label, format!("{expected:?}"), format!("{is:?}"))?;
        }
        Ok(())
    }

    /// Waits until it is so. The engine may have looked for what is due right before the last leap: so time goes on.
    async fn agrees(&mut self, history: &[Act]) {
        let mut last = Ok(());
        let looked = async {
            loop {
                last = self.compare().await;
                if last.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                let clock = self.bed().clock.clone();
                clock.leap(Duration::from_secs(1));
                self.model.arrive(clock.wall(), &self.settings);
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), looked).await.is_err() {
            panic!("{}\nafter {history:?}\n{:?}", last.unwrap_err(), self.model);
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_in_whatever_order_all_is_as_the_model_says() {
    let seed = from_environment("LOCKGATE_SEED")
        .unwrap_or_else(|| SystemClock.wall().as_microsecond().unsigned_abs());
    let steps = from_environment("LOCKGATE_MODEL_STEPS").unwrap_or(120);
    println!("seed {seed}, {steps} steps");
    // Months go by, and the model forgets nothing.
    let options = Options { history_keep: Delay::seconds(0), ..Options::default() };
    let bed = Bed::with_options(options, |settings| {
        settings.deploy.watch = Delay::seconds(0);
        // The model knows nothing of requests, and so of nobody who rests for want of them.
        settings.idle_after = Some(Delay::seconds(0));
    })
    .await;
    bed.clock.stop();
    let settings = bed.store.app(&app()).await.unwrap().unwrap().settings.deploy;
    let mut run = Run { bed: Some(bed), model: Model::default(), settings, made: 0 };
    let mut random = Random(seed);
    let mut history = vec![Act::Deploy];
    for step in 0..steps {
        let act = history[usize::try_from(step).unwrap()];
        let (expected, is) = run.act(act).await;
        assert_eq!(is, expected, "whether it succeeds: {act:?} after {step} acts\n{:?}", run.model);
        run.agrees(&history).await;
        history.push(random.act(run.model.versions.len()));
    }
}
