//! When a request is sent to a target once more, and how it is addressed each time.
//!
//! A refusal by a gate is no failure: the route is resolved again and the client does not notice. After a failure
//! the request goes out again only if none of it was written; `upstream` has its own rule for kept connections.

use std::cell::Cell;
use std::rc::Rc;

use http::{HeaderValue, Request, Uri};

use crate::routing::table::RouteMatch;
use crate::upstream::{LocalBackend, LocalTarget, RequestBody, UpstreamError};

use super::client::Client;
use super::error::{ForwardError, code_of};
use super::link::Kind;
use super::queue::Queued;
use super::skew::Wish;
use super::{headers, validate};

/// Refusals of one request after which it is told to come back later. One is usual during a cutover; more mean
/// that gates are closed without another route being published.
const REFUSALS_MAX: u32 = 16;

/// Tries after the first.
const RETRIES_MAX: u32 = 2;

/// One request in so many may be tried again.
const REQUESTS_PER_RETRY: u32 = 5;

/// Retries that can be saved up.
const BUDGET_MAX: u32 = 20 * REQUESTS_PER_RETRY;

/// A worker's allowance of retries, so that they cannot multiply the load of a target that is failing.
#[derive(Debug)]
pub(crate) struct RetryBudget(Cell<u32>);

/// What was tried for one request.
#[derive(Default)]
pub(crate) struct Tries {
    refused: u32,
    retried: u32,
    /// The last target that failed.
    pub(crate) failed: Option<Rc<LocalTarget>>,
    /// The target as it came, if a route's prefix was stripped from it.
    original: Option<Uri>,
    /// The version that it is for.
    pub(crate) wish: Wish,
    /// It goes to that one, and not where everybody goes.
    pub(crate) is_pinned: bool,
    /// Where it may have to wait for a place.
    pub(crate) queued: Queued,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(Cell::new(BUDGET_MAX))
    }
}

impl RetryBudget {
    /// A request was made.
    pub(crate) fn earn(&self) {
        if self.0.get() < BUDGET_MAX {
            self.0.set(self.0.get() + 1);
        }
    }

    fn spend(&self) -> bool {
        let Some(left) = self.0.get().checked_sub(REQUESTS_PER_RETRY) else { return false };
        self.0.set(left);
        true
    }
}

impl Tries {
    pub(crate) fn new(wish: Wish) -> Self {
        Self { wish, ..Self::default() }
    }

    /// The path that decides the route: as the client sent it.
    pub(crate) fn path<'a>(&'a self, request: &'a Request<RequestBody>) -> &'a str {
        self.original.as_ref().unwrap_or_else(|| request.uri()).path()
    }

    /// Path and query as the client sent them.
    pub(crate) fn target(&self, request: &Request<RequestBody>) -> String {
        let uri = self.original.as_ref().unwrap_or_else(|| request.uri());
        uri.path_and_query().map_or("/", |target| target.as_str()).to_owned()
    }

    /// Takes the token of a link off: whoever was let by has no more use for it.
    pub(crate) fn take_off_token(&mut self, request: &mut Request<RequestBody>, kind: &Kind) {
        for uri in self.original.iter_mut().chain([request.uri_mut()]) {
            let bare = uri.path_and_query().and_then(|target| kind.bare(target.as_str()));
            if let Some(bare) = bare.and_then(|bare| bare.parse().ok()) {
                *uri = bare;
            }
        }
    }

    /// A gate was closed. The new table is there already; only if it leads to a closed gate as well, others get
    /// their turn first.
    pub(crate) async fn refused(&mut self, client: &Client) -> Result<(), ForwardError> {
        self.refused += 1;
        client.worker.cells().gate_refusals.add(1);
        if self.refused >= REFUSALS_MAX {
            return Err(ForwardError::Draining);
        }
        if self.refused > 1 {
            self.wish.give_up();
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// A hold ended: the table leads to something else by now. As with gates, only so often.
    pub(crate) fn released(&mut self) -> Result<(), ForwardError> {
        self.refused += 1;
        if self.refused >= REFUSALS_MAX { Err(ForwardError::Draining) } else { Ok(()) }
    }

    /// Puts on what depends on the route.
    pub(crate) fn address(
        &mut self,
        request: &mut Request<RequestBody>,
        route: &RouteMatch<'_>,
        client: &Client,
        generation: u64,
    ) {
        if let Some(original) = self.original.take() {
            *request.uri_mut() = original;
        }
        if route.route.strip {
            let original = request.uri().clone();
            let stripped = route.route.prefix.strip(original.path()).into_owned();
            *request.uri_mut() = validate::origin_form(original.clone(), Some(stripped));
            self.original = Some(original);
        }
        let headers = request.headers_mut();
        match route.label.map(HeaderValue::from_str) {
            Some(Ok(label)) => drop(headers.insert(headers::LABEL, label)),
            Some(Err(_)) | None if self.is_first() => {}
            Some(Err(_)) | None => drop(headers.remove(headers::LABEL)),
        }
        if client.worker.settings.debug_generation {
            headers.insert(headers::GENERATION, HeaderValue::from(generation));
        }
    }

    /// Whether the request, of which nothing was written if it is `unsent`, may go out once more.
    ///
    /// # Errors
    /// Why not, which is what the client is told.
    pub(crate) fn again(
        &mut self,
        client: &Client,
        (error, is_unsent): (UpstreamError, bool),
        backend: &LocalBackend,
        target: &Rc<LocalTarget>,
        generation: u64,
    ) -> Result<(), ForwardError> {
        let worker = &client.worker;
        let is_retired = matches!(error, UpstreamError::Retired);
        let is_its_fault = !is_retired && !matches!(error, UpstreamError::NoUpgrades);
        // What a broken request led to is not the target's fault.
        if is_its_fault && client.activity.body_fault().is_none() {
            worker.blame(backend, target);
        }
        // A static service is nobody's instance.
        if matches!(error, UpstreamError::Connect(_)) && backend.backend.stats.labels.is_some() {
            worker.routing.doubt();
        }
        let has_other =
            backend.targets.len() > 1 || self.is_pinned || worker.routing.generation() != generation;
        let may_retry = is_retired && self.refused < REFUSALS_MAX
            || has_other && self.retried < RETRIES_MAX && worker.retries.spend();
        if !is_unsent || !may_retry {
            return Err(ForwardError::Upstream(error));
        }
        if is_retired {
            self.refused += 1;
        } else {
            self.retried += 1;
            worker.cells().retried(code_of(&error));
        }
        if backend.targets.len() == 1 || self.retried > 1 {
            self.wish.give_up();
        }
        self.failed = Some(Rc::clone(target));
        Ok(())
    }

    fn is_first(&self) -> bool {
        self.refused == 0 && self.retried == 0
    }
}
