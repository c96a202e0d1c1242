//! What a worker does once in a tick, and when it is told to look: end what is overdue, obey orders for targets
//! that are being replaced, close what has been idle too long.

use std::rc::Rc;

use crate::routing::backend::Order;
use crate::upstream::{Abort, LocalTarget, Phase, Tick};

use super::give_back::QUIET;
use super::worker::Worker;

impl Worker {
    /// One tick.
    pub(crate) fn tick(&self) {
        self.now.set(self.now.get() + 1);
        let ends_idle = self.is_draining() || self.swapped_under_sabotage();
        for client in self.clients().values() {
            let activity = &client.activity;
            client.look_at_reader();
            client.look_at_held();
            if let Some(abort) = activity.overdue(&self.limits) {
                activity.ask(abort);
            } else if ends_idle && activity.phase() == Phase::Idle {
                activity.ask(Abort::Idle);
            } else if ends_idle && activity.phase() == Phase::Multiplexed
                || activity.is_half_closed()
                || activity.closes_stream()
            {
                // Its task looks again: at the socket, at the time, or whether its connection ends.
                activity.wake();
            } else {
                client.rest_if_idle();
            }
        }
        self.memos.sweep(self.routing.generation());
        if let Some(log) = &self.access_log {
            log.hand_over(self);
        }
        if let Some(tracer) = &self.tracer {
            tracer.hand_over();
        }
        self.obey();
        let cells = self.cells();
        let ended = cells.connection_rests.get() + cells.connections_ended.get();
        self.give_back.tick(ended, self.settings.limits.ticks(QUIET));
    }

    /// Carries out the orders for targets that are being replaced.
    pub(crate) fn obey(&self) {
        for target in self.upstreams.active() {
            match target.target.order() {
                Order::Serve | Order::CloseIdle => {}
                Order::CutRequests => self.cut(&target, is_request),
                Order::CloseStreams => {
                    self.cut(&target, is_request);
                    self.close_streams(&target);
                }
                Order::CutStreams => self.cut(&target, |_| true),
            }
        }
        self.upstreams.sweep();
    }

    /// Answers what is held: nobody is left who would release it.
    pub(crate) fn refuse_held(&self) {
        for client in self.clients().values() {
            if client.activity.phase() == Phase::Held {
                client.activity.ask(Abort::Shutdown);
            }
        }
    }

    /// Ends everything that is left.
    pub(crate) fn end_all(&self) {
        for client in self.clients().values() {
            client.activity.ask(Abort::Shutdown);
        }
    }

    fn cut(&self, target: &Rc<LocalTarget>, which: fn(Phase) -> bool) {
        let now = self.clock.now();
        let mut cuts = self.uploads.cut(target, now);
        for client in self.clients().values() {
            let activity = &client.activity;
            if activity.is_served_by(target) && which(activity.phase()) && activity.abort().is_none() {
                cuts.push(client.as_cut(!is_request(activity.phase()), now));
                activity.ask(Abort::Cut);
            }
        }
        let streams = cuts.iter().filter(|cut| cut.stream).count() as u64;
        self.cells().cuts.streams.add(streams);
        self.cells().cuts.requests.add(cuts.len() as u64 - streams);
        cuts.into_iter().for_each(|cut| target.target.record_cut(cut));
    }

    /// Has the WebSockets closed, spread over some seconds so that their clients do not come back all at once.
    fn close_streams(&self, target: &Rc<LocalTarget>) {
        let spread = u64::from(self.settings.limits.ticks(self.settings.limits.close_spread));
        for client in self.clients().values() {
            if client.activity.phase() == Phase::Tunnel && client.activity.is_served_by(target) {
                let delay = Tick::try_from(self.ids.random() % spread).unwrap_or_default();
                client.activity.close_stream_in(delay);
            }
        }
    }

    /// The promise that the verifier can see broken: client connections outlive a swap.
    fn swapped_under_sabotage(&self) -> bool {
        crate::fault::sabotaged("close_idle_at_swap")
            && self.swept_generation.replace(self.routing.generation()) != self.routing.generation()
    }
}

fn is_request(phase: Phase) -> bool {
    match phase {
        Phase::Request | Phase::Response => true,
        // What is held is sent to nobody yet.
        Phase::Idle | Phase::Head | Phase::Held | Phase::EventStream | Phase::Tunnel | Phase::Multiplexed => {
            false
        }
    }
}
