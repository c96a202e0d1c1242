//! What is asked for with a fault inside: a step, a write of the store, a start or a stop that fails, or a crash there. Then
//! all is as it was before or as it is afterwards, or the version did not hold; and nothing in between.

use lockgate::fault::{Springs, Trap};
use lockgate::store::{Of, Page};

use super::*;

/// So many fail points at most are passed before the trap springs; a deploy passes about as many, and most acts few.
const PASSES: usize = 48;

#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    passes: usize,
    springs: Springs,
}

impl Random {
    /// In every third act that may have one.
    pub(super) fn fault(&mut self, act: Act) -> Option<Fault> {
        let springs = [Springs::Once, Springs::ForGood][self.below(2)];
        let most = self.below(PASSES) + 1;
        let fault = Fault { passes: self.below(most), springs };
        let is_due = self.below(3) == 0;
        match act {
            Act::Deploy
            | Act::DeployBeside
            | Act::Preview(..)
            | Act::Swap(_)
            | Act::Rollback
            | Act::RollbackTo(_)
            | Act::Promote(_)
            | Act::Schedule(..)
            | Act::Leap(_) => Some(fault).filter(|_| is_due),
            Act::DeployBroken
            | Act::DeployInSteps(_)
            | Act::Clear(_)
            | Act::Request(_)
            | Act::SetWarm(_)
            | Act::Restart => None,
        }
    }
}

impl Run {
    /// Does it with a fault inside, and says what may come of it.
    pub(super) async fn interrupted(&mut self, act: Act, fault: Fault) -> Vec<Model> {
        let clock = self.bed().clock.clone();
        clock.leap(Duration::from_millis(10));
        if matches!(act, Act::Leap(_)) {
            self.does_what_is_due().await;
        }
        let (now, sleeps_at) = (clock.wall(), self.sleeps_at());
        let before = self.model.clone();
        let trap = Trap::after(fault.passes, fault.springs);
        self.ask(act, &trap, fault.springs).await;
        let sprung = trap.sprung();
        self.sprung.push(sprung);
        match (sprung, fault.springs) {
            (Some(_), Springs::ForGood) => self.bed = Some(self.bed.take().unwrap().crash(trap).await),
            (None, _) | (Some(_), Springs::Once) => {
                drop(trap);
                // What the store could not write down at its end is finished by a restart.
                if self.is_left_unfinished().await {
                    self.restart().await;
                }
            }
        }
        self.has_come_to_rest().await;
        let made = self.made_since(&before).await;
        let mut outcomes = before.outcomes(act, made, (now, sleeps_at));
        let restarted = clock.wall();
        if sprung.is_some() && fault.springs == Springs::Once {
            outcomes = outcomes.into_iter().flat_map(|outcome| outcome.or_not_woken(restarted)).collect();
        }
        for outcome in &mut outcomes {
            outcome.arrive(clock.wall(), &self.settings);
            // Its windows begin anew with a restart, if there was one.
            for (version, is) in outcome.versions.iter_mut().zip(&self.model.versions) {
                version.quiet_since = version.quiet_since.max(is.quiet_since);
            }
            if sprung.is_some() && fault.springs == Springs::ForGood {
                outcome.versions.iter_mut().for_each(|version| version.quiet_since = restarted);
            }
        }
        outcomes
    }

    /// Asks for it, and returns when it has ended or nothing goes on any more.
    async fn ask(&mut self, act: Act, trap: &Trap, springs: Springs) {
        let submitted = match act {
            Act::Deploy | Act::DeployBeside => {
                let cutover = matches!(act, Act::Deploy);
                let request = DeployRequest { cutover, ..self.command("serve") };
                self.bed().try_submit(request).await
            }
            Act::Preview(label, minutes) => {
                let (label, ttl) = (Some(label.parse().unwrap()), Some(Delay::seconds(minutes * 60)));
                let request = DeployRequest { label, ttl, ..self.command("serve") };
                self.bed().try_submit(request).await
            }
            Act::Swap(version) => self.bed().swap(self.model.versions[version].id).await,
            Act::Rollback => self.bed().rollback(None, None).await,
            Act::RollbackTo(version) => {
                self.bed().rollback(None, Some(self.model.versions[version].id)).await
            }
            Act::Promote(version) => self.bed().promote(self.model.versions[version].id).await,
            Act::Schedule(version, state, minutes) => {
                let delay = Delay::seconds(minutes * 60);
                drop(self.bed().schedule(self.model.versions[version].id, state, delay).await);
                return;
            }
            Act::Leap(minutes) => {
                self.bed().clock.leap(Duration::from_secs(minutes * 60));
                for _ in 0..10 {
                    self.is_seen().await;
                    // What a look has begun goes on beside it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if trap.sprung().is_some() {
                        return;
                    }
                }
                return;
            }
            other => unreachable!("{other:?} has no faults"),
        };
        let Ok(mut submitted) = submitted else { return };
        let dead = async {
            while trap.sprung().is_none() || springs == Springs::Once {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = self.bed().in_time(within(submitted.reached(Progress::Ended))) => {}
            () = dead => {}
        }
    }

    async fn is_left_unfinished(&self) -> bool {
        for _ in 0..20 {
            if self.bed().store.unfinished_operations().await.unwrap().is_empty() {
                return false;
            }
            self.bed().clock.leap(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Waits for what was accepted before a restart and goes on after it: until then it looks like one that was undone.
    async fn has_come_to_rest(&self) {
        let bed = self.bed();
        eventually("nothing goes on any more", async || {
            // Hardly faster than it does, as what is armed meanwhile has to be near the model's time.
            bed.clock.leap(Duration::from_millis(50));
            bed.store.unfinished_operations().await.unwrap().is_empty()
        })
        .await;
    }

    /// The version that was made, if it was.
    async fn made_since(&self, before: &Model) -> Option<(DeploymentId, DeploymentStatus)> {
        let of = Of { app: Some(app()), environment: None };
        let newest = self.bed().store.deployments(&of, Page { offset: 0, limit: 1 }).await.unwrap();
        let found = newest.into_iter().next()?;
        if before.versions.iter().any(|version| version.id == found.id) {
            return None;
        }
        // What was accepted before a restart may run after it, and what broke off is found by the next look at all.
        let clock = &self.bed().clock;
        eventually("it has become something", async || {
            clock.leap(Duration::from_secs(1));
            self.bed().status(found.id).await.0.is_end()
        })
        .await;
        Some((found.id, self.bed().status(found.id).await.0))
    }
}

impl Model {
    /// What it may come to.
    fn outcomes(
        &self,
        act: Act,
        made: Option<(DeploymentId, DeploymentStatus)>,
        (now, sleeps_at): (Timestamp, Timestamp),
    ) -> Vec<Self> {
        let mut after = self.clone();
        let target = match act {
            Act::Leap(_) => return vec![after],
            Act::Schedule(version, state, minutes) => {
                if self.can_serve(version) && self.live != Some(version) {
                    let at = now + Delay::seconds(minutes * 60).0;
                    after.versions[version].timer =
                        Some(Due { state: state.into(), at, is_by_itself: false });
                }
                return vec![after, self.clone()];
            }
            Act::Deploy | Act::DeployBeside | Act::Preview(..) => {
                return self.outcomes_of_deploy(act, made, (now, sleeps_at));
            }
            Act::Swap(version) => Some(version).filter(|version| self.live != Some(*version)),
            Act::Rollback => self.way_back(),
            Act::RollbackTo(version) => Some(version).filter(|version| self.live != Some(*version)),
            Act::Promote(version) => {
                Some(version).filter(|version| self.live != Some(*version) || self.is_rolled_back)
            }
            other => unreachable!("{other:?} has no faults"),
        };
        let target =
            target.filter(|version| self.can_serve(*version) && !self.versions[*version].is_labelled);
        let Some(target) = target else { return vec![after] };
        let is_rollback = matches!(act, Act::Rollback | Act::RollbackTo(_));
        if self.live != Some(target) {
            after.cut_over(target, now, Some(sleeps_at).filter(|_| !is_rollback));
        }
        match act {
            Act::Promote(_) => {
                after.is_rolled_back = false;
                after.let_rest(sleeps_at);
            }
            _ if is_rollback => after.is_rolled_back = true,
            _ => {}
        }
        let taken_back = self.taken_back(target, (now, sleeps_at));
        [vec![after, self.clone()], taken_back].concat()
    }

    /// What was to run by `now` runs, or its start was what failed: then it sleeps on, as nothing tries it again.
    fn or_not_woken(self, now: Timestamp) -> Vec<Self> {
        let is_to_run = |version: &Version| {
            version.state == DesiredState::Standby
                && version.timer.is_some_and(|due| due.state == DesiredState::Running && due.at <= now)
        };
        let mut outcomes = vec![self.clone()];
        for index in (0..self.versions.len()).filter(|index| is_to_run(&self.versions[*index])) {
            let mut asleep = self.clone();
            asleep.versions[index].timer = None;
            outcomes.push(asleep);
        }
        outcomes
    }

    /// It had gone live, did not hold, and is what it was; the one before is live again.
    fn taken_back(&self, target: usize, (now, sleeps_at): (Timestamp, Timestamp)) -> Vec<Self> {
        let Some(live) = self.live.filter(|live| *live != target) else { return Vec::new() };
        let mut back = self.clone();
        back.cut_over(target, now, None);
        let state = self.versions[live].state;
        back.cut_over(live, now, None);
        back.versions[live].state = state;
        back.versions[target].state = self.versions[target].state;
        let rest = Due { state: DesiredState::Standby, at: sleeps_at, is_by_itself: true };
        let at_once = Due { at: now, is_by_itself: false, ..rest };
        let was_running = self.versions[target].state == DesiredState::Running;
        back.versions[target].state = DesiredState::Running;
        back.versions[target].timer = Some(if was_running { rest } else { at_once });
        vec![back]
    }

    fn outcomes_of_deploy(
        &self,
        act: Act,
        made: Option<(DeploymentId, DeploymentStatus)>,
        (now, sleeps_at): (Timestamp, Timestamp),
    ) -> Vec<Self> {
        let mut after = self.clone();
        let Some((id, status)) = made else { return vec![after] };
        let is_labelled = matches!(act, Act::Preview(..));
        let version = after.add(id, status, is_labelled, now);
        if status != DeploymentStatus::Ready {
            let mut back = after.clone();
            if let Some(live) = back.live {
                // If it had gone live before it did not hold.
                back.cutovers += 1;
                back.versions[live].live_at = Some(back.cutovers);
                back.versions[live].quiet_since = now;
            }
            return vec![after, back];
        }
        match act {
            Act::Preview(label, minutes) => {
                let expires = now + Delay::seconds(minutes * 60).0;
                if let Some((replaced, _)) = after.labels.insert(label, (version, expires)) {
                    after.versions[replaced].state = DesiredState::Archived;
                    after.versions[replaced].timer = None;
                }
            }
            _ => after.deployed(version, now, sleeps_at, matches!(act, Act::Deploy)),
        }
        vec![after]
    }
}
