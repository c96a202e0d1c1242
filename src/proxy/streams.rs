//! The streams of one connection of HTTP/2 or HTTP/3, each of which has a task.

use std::future::Future;
use std::task::{Context, Poll};

use tokio::task::JoinSet;

use crate::upstream::{Activity, Phase};

use super::worker;

#[derive(Default)]
pub(crate) struct Streams(JoinSet<()>);

impl Streams {
    /// One more. Boxed because the task's cell is moved several times, with all that is in it.
    pub(crate) fn begin(&mut self, serving: impl Future<Output = ()> + 'static) {
        self.0.spawn_local(Box::pin(serving));
    }

    /// Forgets those that are over.
    pub(crate) fn reap(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(ended)) = self.0.poll_join_next(cx) {
            worker::report(ended);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Idle is a connection without streams, whatever else its client sends.
    pub(crate) fn enter_phase(&self, activity: &Activity) {
        let phase = if self.is_empty() { Phase::Idle } else { Phase::Multiplexed };
        if activity.phase() != phase {
            activity.enter(phase);
        }
    }

    /// Ends those that are left, each of which sees its client gone.
    pub(crate) async fn end(&mut self) {
        self.0.shutdown().await;
    }
}
