//! The rest of a request whose response is over: it goes on as long as the upstream reads and the client sends.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use tokio::task::{AbortHandle, JoinSet};

use crate::routing::backend::Cut;
use crate::upstream::{Connection, LocalTarget, RequestGuard, Stream, Tick};

use super::client::Client;

/// The uploads of one worker that outlive their responses. They are few; their guards are held until they end.
#[derive(Default)]
pub(crate) struct Uploads {
    tasks: RefCell<JoinSet<()>>,
    open: RefCell<Vec<Upload>>,
}

/// What a request goes on over.
pub(crate) enum Rest {
    Connection(Box<Connection>),
    Stream(Box<Stream>),
}

/// Without its client: it may be found here long after it is over, and must not keep a socket open.
struct Upload {
    target: Rc<LocalTarget>,
    /// The request, as it was `at` that moment.
    cut: Cut,
    at: Instant,
    handle: AbortHandle,
}

impl Uploads {
    /// Goes on with a request.
    pub(crate) fn go_on(&self, client: &Rc<Client>, mut rest: Rest, guard: Option<RequestGuard>) {
        let (tick, limits) = (client.worker.settings.limits.tick, client.worker.limits);
        let target = Rc::clone(rest.target());
        let activity = Rc::clone(&client.activity);
        let idle_max = activity.own_limits().body_idle.unwrap_or(limits.body_idle);
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        let handle = tasks.spawn_local(async move {
            let _guard = guard;
            let (mut bytes, mut awaited, mut idle) = (activity.request_bytes(), 0, 0);
            // A timer of its own: its client may be gone, and is not swept then.
            loop {
                match tokio::time::timeout(tick, rest.sent()).await {
                    Ok(true) => return rest.release(),
                    Ok(false) => return,
                    Err(_elapsed) => {}
                }
                // Once all of it has come the client's doings may be those of its next request.
                let is_coming = rest.is_coming();
                let before = std::mem::replace(&mut bytes, activity.request_bytes());
                idle = if is_coming && bytes != before { 0 } else { idle + 1 };
                awaited += Tick::from(is_coming && activity.awaits_client());
                if idle >= idle_max || is_coming && activity.came_too_slowly(awaited, &limits) {
                    return;
                }
            }
        });
        let at = client.worker.clock.now();
        let cut = client.as_cut(false, at);
        let mut open = self.open.borrow_mut();
        open.retain(|upload| !upload.handle.is_finished());
        open.push(Upload { target, cut, at, handle });
    }

    /// Ends those to `target` and says what was ended `now`.
    pub(crate) fn cut(&self, target: &Rc<LocalTarget>, now: Instant) -> Vec<Cut> {
        let mut cuts = Vec::new();
        self.open.borrow_mut().retain(|upload| {
            let is_meant = Rc::ptr_eq(&upload.target, target) && !upload.handle.is_finished();
            if is_meant {
                upload.handle.abort();
                let age = upload.cut.age + now.saturating_duration_since(upload.at);
                cuts.push(Cut { age, ..upload.cut.clone() });
            }
            !is_meant && !upload.handle.is_finished()
        });
        cuts
    }
}

impl Rest {
    fn target(&self) -> &Rc<LocalTarget> {
        match self {
            Self::Connection(connection) => connection.target(),
            Self::Stream(stream) => stream.target(),
        }
    }

    /// Waits until the request is sent whole; `false` if it came to another end.
    async fn sent(&mut self) -> bool {
        match self {
            Self::Connection(connection) => connection.sent().await,
            Self::Stream(stream) => {
                std::future::poll_fn(|cx| stream.poll_upload(cx)).await;
                true
            }
        }
    }

    /// Whether something of the request is to come from its client.
    fn is_coming(&self) -> bool {
        match self {
            Self::Connection(connection) => connection.is_coming(),
            Self::Stream(stream) => stream.is_coming(),
        }
    }

    fn release(self) {
        match self {
            Self::Connection(connection) => connection.release(),
            Self::Stream(stream) => drop(stream),
        }
    }
}
