//! How many connections a worker may have, of each listener and of all. More wait in the kernel, and those that there are go on.

use std::cell::Cell;

use tokio::sync::Notify;

use super::settings::{ProxySettings, Scheme};

/// File descriptors that stay free for the control plane.
const DESCRIPTORS_KEPT: u64 = 64;

/// The most that one worker may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    all: usize,
    plain: usize,
    secure: usize,
}

/// The connections of one worker, those included that it has not come to.
pub(crate) struct Open {
    room: Room,
    plain: Cell<usize>,
    secure: Cell<usize>,
    is_awaited: Cell<bool>,
    ended: Notify,
}

impl Room {
    /// Of each of `workers`.
    pub(crate) fn of(settings: &ProxySettings, workers: usize) -> Self {
        let share = |count: usize| (count / workers).max(1);
        let all = share(settings.limits.connections.unwrap_or_else(by_descriptors));
        let own = |count: Option<usize>| count.map_or(all, share).min(all);
        let secure = settings.tls.as_ref().and_then(|tls| tls.connections);
        Self { all, plain: own(settings.connections), secure: own(secure) }
    }
}

fn by_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    let share = (limit - limit / 5).min(limit.saturating_sub(DESCRIPTORS_KEPT));
    usize::try_from(share).unwrap_or(usize::MAX)
}

impl Open {
    pub(crate) fn new(room: Room) -> Self {
        Self {
            room,
            plain: Cell::default(),
            secure: Cell::default(),
            is_awaited: Cell::default(),
            ended: Notify::default(),
        }
    }

    fn of(&self, scheme: Scheme) -> &Cell<usize> {
        match scheme {
            Scheme::Http => &self.plain,
            Scheme::Https => &self.secure,
        }
    }

    fn count(&self) -> usize {
        self.plain.get() + self.secure.get()
    }

    /// Waits until there is room for one more.
    pub(crate) async fn room_for(&self, scheme: Scheme) {
        let most = match scheme {
            Scheme::Http => self.room.plain,
            Scheme::Https => self.room.secure,
        };
        self.until(|| self.of(scheme).get() < most && self.count() < self.room.all).await;
    }

    /// Waits until there is none.
    pub(crate) async fn none(&self) {
        self.until(|| self.count() == 0).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        while !is_so() {
            self.is_awaited.set(true);
            self.ended.notified().await;
        }
    }

    pub(crate) fn begin(&self, scheme: Scheme) {
        let count = self.of(scheme);
        count.set(count.get() + 1);
    }

    pub(crate) fn end(&self, scheme: Scheme) {
        let count = self.of(scheme);
        count.set(count.get() - 1);
        if self.is_awaited.take() {
            self.ended.notify_waiters();
        }
    }
}
