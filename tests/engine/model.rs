//! Random orders of everything that moves versions, with leaps of time and restarts in between, and with faults inside of
//! what is asked, against a model of what an operator expects. The orders are always the same few, so that whether a change
//! passes is no matter of luck; others are looked for by `LOCKGATE_SEED=$RANDOM`, and one is repeated by its number as far
//! as the machine does the same again. `LOCKGATE_MODEL_STEPS` sets the length. With an even seed production scales to zero.

#[cfg(feature = "fault")]
mod faults;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;

use lockgate::clock::Timestamp;
use lockgate::deploy::{Gate, ScheduledState};
use lockgate::settings::{DeploySettings, Percent};

use super::clock::LOOK_EVERY;
use super::*;

/// Each of these found a fault once.
const SEEDS: [u64; 4] = [2_006, 10_013, 20_000, 1_796_003_178_194_825];

const LABELS: [&str; 3] = ["blue", "green", "red"];
/// What the engine spares the way back for when its time is over.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Between what the model and the engine take for the time at which something was armed.
const NEAR: Duration = Duration::from_secs(50);
/// For which the engine may be behind the model, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);
/// For which its looks are waited for.
const LOOKS: Duration = Duration::from_secs(10);
/// After which previews, and what is live where it scales to zero, rest.
const IDLE: Duration = Duration::from_secs(5 * 60);
/// After which what stays warm is looked at again.
const WARM: Duration = Duration::from_secs(5 * 60);

/// What an operator would write down.
#[derive(Clone, Debug, Default)]
struct Model {
    versions: Vec<Version>,
    live: Option<usize>,
    is_rolled_back: bool,
    /// Counts the cutovers.
    cutovers: usize,
    labels: BTreeMap<&'static str, (usize, Timestamp)>,
    scales_to_zero: bool,
    min_warm: usize,
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
    /// Since when nobody asked for it: from its beginning, its last request, its cutover, or the last restart.
    quiet_since: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    state: DesiredState,
    at: Timestamp,
    /// Not asked for by anybody: it spares the way back, and what stays warm.
    is_by_itself: bool,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Deploy,
    DeployBroken,
    DeployBeside,
    DeployInSteps(Ending),
    Preview(&'static str, u64),
    Swap(usize),
    Rollback,
    RollbackTo(usize),
    Promote(usize),
    Schedule(usize, ScheduledState, u64),
    Clear(usize),
    /// Of what is live, or of a label.
    Request(Option<&'static str>),
    SetWarm(usize),
    Leap(u64),
    Restart,
}

/// An act, and what goes wrong inside of it.
#[derive(Clone, Copy, Debug)]
struct Planned {
    act: Act,
    fault: Option<Fault>,
}

#[cfg(feature = "fault")]
use faults::Fault;
#[cfg(not(feature = "fault"))]
#[derive(Clone, Copy, Debug)]
enum Fault {}

/// How a cutover goes on from its first step.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Finish,
    Cancel,
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

    fn plan(&mut self, versions: usize) -> Planned {
        let act = self.act(versions);
        Planned { act, fault: self.fault(act) }
    }

    #[cfg(not(feature = "fault"))]
    fn fault(&mut self, _: Act) -> Option<Fault> {
        None
    }

    fn act(&mut self, versions: usize) -> Act {
        // Mostly one of the last few: older ones are archived and refuse everything.
        let near = self.below(versions.min(5));
        let one = versions - 1 - near;
        let minutes = [1, 20, 45, 600][self.below(4)];
        match self.below(28) {
            0..=3 => Act::Deploy,
            22 => Act::DeployInSteps([Ending::Finish, Ending::Cancel][self.below(2)]),
            23..=24 => Act::Request(None),
            25 => Act::Request(Some(LABELS[self.below(LABELS.len())])),
            26 => Act::SetWarm(self.below(4)),
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
            27 => Act::Schedule(one, ScheduledState::Running, minutes),
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
        self.ways_back().first().copied()
    }

    /// Where rollbacks go, one after the other.
    fn ways_back(&self) -> Vec<usize> {
        let Some(live) = self.live else { return Vec::new() };
        let until = self.versions[live].live_at;
        let is_earlier = |version: &usize| {
            let at = self.versions[*version].live_at;
            let is_further_back = !self.is_rolled_back || *version < live;
            self.can_serve(*version) && at.is_some() && at < until && is_further_back
        };
        let mut earlier: Vec<_> = (0..self.versions.len()).filter(is_earlier).collect();
        earlier.sort_by_key(|version| std::cmp::Reverse(self.versions[*version].live_at));
        earlier
    }

    fn stays_warm(&self, version: usize) -> bool {
        let of_earlier = self.min_warm.saturating_sub(1);
        !self.versions[version].is_labelled
            && self.min_warm > 0
            && (self.live == Some(version)
                || self.ways_back().iter().take(of_earlier).any(|one| *one == version))
    }

    fn rests_when_idle(&self, version: usize) -> bool {
        let is_live = self.live == Some(version);
        self.versions[version].is_labelled || (is_live && self.scales_to_zero && !self.stays_warm(version))
    }

    fn add(
        &mut self,
        id: DeploymentId,
        status: DeploymentStatus,
        is_labelled: bool,
        now: Timestamp,
    ) -> usize {
        let state =
            if status == DeploymentStatus::Ready { DesiredState::Running } else { DesiredState::Archived };
        let version =
            Version { id, status, state, live_at: None, is_labelled, timer: None, quiet_since: now };
        self.versions.push(version);
        self.versions.len() - 1
    }

    /// The live routes lead to `version` from now on.
    fn cut_over(&mut self, version: usize, now: Timestamp, old_sleeps_at: Option<Timestamp>) {
        let before = self.live.replace(version).filter(|before| *before != version);
        if let (Some(before), Some(at)) = (before, old_sleeps_at) {
            let due = Due { state: DesiredState::Standby, at, is_by_itself: true };
            self.versions[before].timer = Some(due);
        }
        self.cutovers += 1;
        let version = &mut self.versions[version];
        version.live_at = Some(self.cutovers);
        version.state = DesiredState::Running;
        version.timer = None;
        version.quiet_since = now;
    }

    /// It is ready; what does not go live sleeps in its time.
    fn deployed(&mut self, version: usize, now: Timestamp, sleeps_at: Timestamp, goes_live: bool) {
        if goes_live && !self.is_rolled_back {
            self.cut_over(version, now, Some(sleeps_at));
        } else {
            let due = Due { state: DesiredState::Standby, at: sleeps_at, is_by_itself: true };
            self.versions[version].timer = Some(due);
        }
    }

    /// After a promote: what ran on because of a rollback sleeps.
    fn let_rest(&mut self, at: Timestamp) {
        for (index, version) in self.versions.iter_mut().enumerate() {
            let is_left_over = self.live != Some(index)
                && !version.is_labelled
                && version.state == DesiredState::Running
                && version.timer.is_none();
            if is_left_over {
                version.timer = Some(Due { state: DesiredState::Standby, at, is_by_itself: true });
            }
        }
    }

    /// Woken at its time, it goes to rest again in its time.
    fn run_if_due(&mut self, index: usize, now: Timestamp, settings: &DeploySettings) {
        let is_live = self.live == Some(index);
        let version = &mut self.versions[index];
        if version.timer.is_none_or(|due| due.state != DesiredState::Running || due.at > now) {
            return;
        }
        version.timer = None;
        if version.state == DesiredState::Standby && !is_live {
            (version.state, version.quiet_since) = (DesiredState::Running, now);
            let at = now + settings.standby_after.0;
            let rest = Due { state: DesiredState::Standby, at, is_by_itself: true };
            version.timer = (!version.is_labelled).then_some(rest);
        }
    }

    fn has_due(&self, now: Timestamp) -> bool {
        self.versions.iter().any(|version| version.timer.is_some_and(|due| due.at <= now))
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
        // What is due first comes first: what it archives is not spared for, and another one is.
        let mut order: Vec<_> = (0..self.versions.len()).collect();
        order.sort_by_key(|index| self.versions[*index].timer.map_or(now, |due| due.at));
        for index in order {
            let way_back = self.way_back();
            self.run_if_due(index, now, settings);
            let rests = self.rests_when_idle(index);
            let version = &mut self.versions[index];
            if rests && version.state == DesiredState::Running && now >= version.quiet_since + IDLE {
                version.state = DesiredState::Standby;
            }
            let Some(due) = version.timer.filter(|due| due.at <= now) else { continue };
            let spared_for = match due.state {
                DesiredState::Standby => self.stays_warm(index).then_some(WARM),
                DesiredState::Archived => (way_back == Some(index)).then_some(DAY),
                DesiredState::Running => None,
            };
            let version = &mut self.versions[index];
            if let Some(spared_for) = spared_for.filter(|_| due.is_by_itself) {
                version.timer = Some(Due { at: now + spared_for, ..due });
                continue;
            }
            version.state = due.state;
            version.timer = (due.state == DesiredState::Standby).then(|| Due {
                state: DesiredState::Archived,
                at: now + settings.archive_after.0,
                is_by_itself: true,
            });
        }
    }
}

#[cfg(not(feature = "fault"))]
impl Run {
    async fn interrupted(&mut self, _: Act, fault: Fault) -> Vec<Model> {
        match fault {}
    }
}

/// The bed and its model, side by side.
struct Run {
    bed: Option<Bed>,
    model: Model,
    settings: DeploySettings,
    made: usize,
    /// At which fail points the faults so far were, where they came to one.
    sprung: Vec<Option<&'static str>>,
    /// What was asked last that was refused or failed.
    failure: Mutex<String>,
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

    fn failed(&self, what: &dyn Debug) {
        *self.failure.lock().unwrap() = format!("{what:?}");
    }

    async fn run(&self, submitted: Result<Submitted, Denied>) -> Option<(Submitted, OperationState)> {
        let mut submitted = submitted.inspect_err(|denied| self.failed(denied)).ok()?;
        let operation = self.bed().ended(&mut submitted).await;
        if operation.state != OperationState::Succeeded {
            self.failed(&operation);
        }
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
                let version = self.model.add(id, DeploymentStatus::Ready, false, now);
                self.model.deployed(version, now, sleeps_at, goes_live);
                (true, state == OperationState::Succeeded)
            }
            Act::DeployBroken => {
                let request = self.command("exit");
                let (id, state) = self.deploy(request).await;
                self.model.add(id, DeploymentStatus::Failed, false, now);
                (false, state == OperationState::Succeeded)
            }
            Act::DeployInSteps(ending) => self.in_steps(ending, now, sleeps_at).await,
            Act::Preview(label, minutes) => {
                let ttl = Duration::from_secs(minutes * 60);
                let request = DeployRequest {
                    label: Some(label.parse().unwrap()),
                    ttl: Some(Delay(ttl)),
                    ..self.command("serve")
                };
                let (id, state) = self.deploy(request).await;
                let version = self.model.add(id, DeploymentStatus::Ready, true, now);
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
                    self.model.cut_over(version, now, Some(sleeps_at));
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
                let promoted = self.promoted(self.model.versions[version].id).await;
                let promoted = self.run(promoted).await;
                if is_taken {
                    if !is_live {
                        self.model.cut_over(version, now, Some(sleeps_at));
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
                    let due = Due { state, at: now + delay.0, is_by_itself: false };
                    self.model.versions[version].timer = Some(due);
                }
                (is_taken, taken.is_ok())
            }
            Act::Clear(version) => {
                let cleared = self.bed().engine.clear_schedule(self.model.versions[version].id).await;
                self.model.versions[version].timer = None;
                (true, cleared.is_ok())
            }
            Act::Request(label) => {
                let asked = label.map_or(self.model.live, |label| Some(self.model.labels.get(label)?.0));
                let Some(asked) = asked.filter(|asked| self.model.can_serve(*asked)) else {
                    return (true, true);
                };
                let host = label.map_or_else(|| HOST.to_owned(), |label| format!("{label}.{HOST}"));
                let served = self.bed().serve(&host).await;
                let version = &mut self.model.versions[asked];
                (version.state, version.quiet_since) = (DesiredState::Running, now);
                (true, served == version.id.to_string())
            }
            Act::SetWarm(count) => {
                let mut app = self.bed().store.app(&app()).await.unwrap().unwrap();
                app.settings.min_warm = u16::try_from(count).unwrap();
                self.model.min_warm = count;
                (true, self.bed().engine.put_apps(&[app]).await.is_ok())
            }
            Act::Leap(minutes) => {
                self.does_what_is_due().await;
                bed_clock.leap(Duration::from_secs(minutes * 60));
                self.model.arrive(bed_clock.wall(), &self.settings);
                (true, true)
            }
            Act::Restart => {
                self.restart().await;
                (true, true)
            }
        }
    }

    /// What came due right before a leap is done before it by both: the time at which it is done counts for what follows.
    async fn does_what_is_due(&mut self) {
        let clock = self.bed().clock.clone();
        while self.model.has_due(clock.wall()) {
            self.model.arrive(clock.wall(), &self.settings);
            self.is_seen().await;
            self.agrees(vec![self.model.clone()], &[]).await;
        }
    }

    async fn restart(&mut self) {
        let clock = self.bed().clock.clone();
        let now = clock.wall();
        self.bed = Some(self.bed.take().unwrap().restart_at(clock).await);
        self.model.versions.iter_mut().for_each(|version| version.quiet_since = now);
    }

    /// Deploys in two steps. There are none where nothing serves meanwhile, or deploys do not go live.
    async fn in_steps(&mut self, ending: Ending, now: Timestamp, sleeps_at: Timestamp) -> (bool, bool) {
        let live = self.model.live.map(|live| self.model.versions[live].state);
        let has_steps = live == Some(DesiredState::Running) && !self.model.is_rolled_back;
        let steps = vec![Percent::of(50), Percent::of(100)];
        let request = DeployRequest { steps, step_for: Some(LONG), ..self.command("serve") };
        let submitted = self.bed().try_submit(request).await.unwrap();
        let (operation, id) = (submitted.operation, submitted.deployment.unwrap());
        if has_steps {
            eventually("it is in its first step", async || self.bed().production().await.split.is_some())
                .await;
            match ending {
                Ending::Cancel => drop(self.bed().engine.cancel(operation).await.unwrap()),
                Ending::Finish => {
                    let finish = async || self.bed().engine.finish(operation).await.is_ok();
                    eventually("it can be finished", finish).await;
                }
            }
        }
        let ended = async || self.bed().store.operation(&operation).await.unwrap().unwrap().state;
        eventually("it has ended", async || ended().await.is_end()).await;
        let state = ended().await;
        let is_cancelled = has_steps && matches!(ending, Ending::Cancel);
        let status = if is_cancelled { DeploymentStatus::Cancelled } else { DeploymentStatus::Ready };
        let version = self.model.add(id, status, false, now);
        if !is_cancelled {
            self.model.deployed(version, now, sleeps_at, true);
        }
        (!is_cancelled, state == OperationState::Succeeded)
    }

    /// Has the engine look at who was asked for, as of now: it looks once a second, and at the health of what serves as well.
    async fn is_seen(&self) {
        let clock = &self.bed().clock;
        for _ in 0..2 {
            let before = clock.looks();
            clock.leap(LOOK_EVERY);
            let both_have_looked = async {
                while clock.looks() < before + 2 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // Behind a fault a look may not come to its end.
            drop(tokio::time::timeout(LOOKS, both_have_looked).await);
        }
    }

    /// Asks again while it still drains, as what a crash interrupted may.
    async fn promoted(&self, deployment: DeploymentId) -> Result<Submitted, Denied> {
        let mut promoted = self.bed().promote(deployment).await;
        while let Err(Denied::Gate(Gate::DeploymentDraining)) = promoted {
            self.is_seen().await;
            promoted = self.bed().promote(deployment).await;
        }
        promoted
    }

    async fn rolled_back(&mut self, target: Option<usize>, moved: Result<Submitted, Denied>) -> (bool, bool) {
        let moved = self.run(moved).await;
        if let Some(target) = target {
            self.model.cut_over(target, self.bed().clock.wall(), None);
            self.model.is_rolled_back = true;
        }
        (target.is_some(), moved.is_some_and(|(_, state)| state == OperationState::Succeeded))
    }

    /// Everything that can be seen, as a model has it; `Err` says what differs.
    async fn compare(&self, model: &Model) -> Result<(), String> {
        let bed = self.bed();
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
        let in_order = self.in_order_of_their_cutovers(model).await;
        same("the order in which they were live", true.to_string(), in_order.to_string())?;
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

    /// Whether those that can be gone back to were live in the order in which the model has it.
    async fn in_order_of_their_cutovers(&self, model: &Model) -> bool {
        let mut lives = Vec::new();
        for (index, version) in model.versions.iter().enumerate() {
            let found = self.bed().store.deployment(&version.id).await.unwrap().unwrap();
            if model.can_serve(index) && !version.is_labelled {
                lives.push((version.live_at, found.live_at));
            }
        }
        lives.sort();
        lives.is_sorted_by_key(|(_, at)| *at)
    }

    /// Waits until it is as one of these says, which is the model from then on. The engine may have looked for what is due
    /// right before the last leap: so time goes on.
    async fn agrees(&mut self, mut outcomes: Vec<Model>, history: &[Planned]) {
        let mut differ = Vec::new();
        let looked = async {
            for round in 0_u32.. {
                let mut seen = Vec::new();
                for outcome in &outcomes {
                    match self.compare(outcome).await {
                        Ok(()) => return outcome.clone(),
                        Err(what) => seen.push(what),
                    }
                }
                differ = seen;
                tokio::time::sleep(Duration::from_millis(50)).await;
                // Not so fast that what is armed while the machine has much else to do is far from the model's time.
                if !round.is_multiple_of(3) {
                    continue;
                }
                let clock = self.bed().clock.clone();
                clock.leap(Duration::from_secs(1));
                outcomes.iter_mut().for_each(|outcome| outcome.arrive(clock.wall(), &self.settings));
            }
            unreachable!("it goes on until they agree")
        };
        match tokio::time::timeout(PATIENCE, looked).await {
            Ok(outcome) => self.model = outcome,
            Err(_) => {
                panic!("{differ:#?}\nafter {history:?}\nfaults at {:?}\n{:?}", self.sprung, self.model)
            }
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_in_whatever_order_all_is_as_the_model_says() {
    let steps = from_environment("LOCKGATE_MODEL_STEPS").unwrap_or(120);
    let seeds = from_environment("LOCKGATE_SEED").map_or_else(|| SEEDS.to_vec(), |seed| vec![seed]);
    for seed in seeds {
        println!("seed {seed}, {steps} steps");
        run(seed, steps).await;
    }
}

async fn run(seed: u64, steps: u64) {
    // Months go by, and the model forgets nothing.
    let options = Options { history_keep: Delay::seconds(0), ..Options::default() };
    let scales_to_zero = seed.is_multiple_of(2);
    let bed = Bed::with_options(options, |settings| {
        settings.deploy.watch = Delay::seconds(0);
        settings.idle_after = Some(Delay(IDLE));
        settings.scale_to_zero = scales_to_zero;
    })
    .await;
    bed.clock.stop();
    let settings = bed.store.app(&app()).await.unwrap().unwrap().settings.deploy;
    let model = Model { scales_to_zero, ..Model::default() };
    let mut run =
        Run { bed: Some(bed), model, settings, made: 0, sprung: Vec::new(), failure: Mutex::default() };
    let mut random = Random(seed);
    let mut history = vec![Planned { act: Act::Deploy, fault: None }];
    for step in 0..steps {
        let planned = history[usize::try_from(step).unwrap()];
        let outcomes = match planned.fault {
            Some(fault) => run.interrupted(planned.act, fault).await,
            None => {
                let (expected, is) = run.act(planned.act).await;
                assert_eq!(
                    is, expected,
                    "whether it succeeds: {planned:?} after {step} acts\n{:?}\n{:?}",
                    run.failure, run.model
                );
                vec![run.model.clone()]
            }
        };
        run.is_seen().await;
        run.agrees(outcomes, &history).await;
        history.push(random.plan(run.model.versions.len()));
    }
}
