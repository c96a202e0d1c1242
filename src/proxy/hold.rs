//! A request whose backend is held: it waits its turn, with its body unread, or is told to come back.

use std::rc::Rc;
use std::time::Instant;

use http::{Method, Request};

use crate::routing::hold::{Entered, Hold, HoldEnd, HoldRules, Refusal, WaitingPage};
use crate::telemetry::HoldCells;
use crate::upstream::{Abort, LocalBackend, RequestBody};

use super::client::Client;
use super::error::ForwardError;
use super::error_page::Form;
use super::exchange::Exchange;

/// Tells a navigation from what a page's scripts ask for.
const SEC_FETCH_MODE: &str = "sec-fetch-mode";

/// Waits until `hold` releases the request, and says when that was: its route is to be resolved again.
///
/// # Errors
/// What the client is told: it waited too long, there is no place, the hold ended in a refusal, or nobody is left who
/// would release it.
pub(crate) async fn wait(
    client: &Client,
    exchange: &mut Exchange,
    backend: &Rc<LocalBackend>,
    hold: &Hold,
    request: &Request<RequestBody>,
) -> Result<Instant, ForwardError> {
    let worker = &client.worker;
    if worker.is_draining() {
        return Err(ForwardError::Aborted(Abort::Shutdown));
    }
    let cells = &backend.backend.stats.of(worker.number).holds;
    let began = worker.clock.now();
    exchange.hold(backend, began);
    let place = match hold.enter() {
        Entered::Waits(place) => place,
        Entered::Ended(end) => return conclude(exchange, cells, began, end),
        Entered::Full => return conclude(exchange, cells, began, HoldEnd::Refused(hold.full(began))),
    };
    let page = hold.rules().page.filter(|_| is_navigation(request));
    let (limit, told) = longest(hold.rules(), page);
    let counted = cells.wait();
    let ended = tokio::select! {
        biased;
        end = place.ended() => Some(end),
        () = worker.clock.sleep_until(began + limit) => None,
    };
    drop((place, counted));
    let now = worker.clock.now();
    match ended {
        Some(end) => conclude(exchange, cells, now, end),
        None => {
            exchange.unhold(now);
            cells.timed_out.add(1);
            Err(ForwardError::Held(told))
        }
    }
}

/// How long a request waits, and what it is told then.
fn longest(rules: &HoldRules, page: Option<WaitingPage>) -> (std::time::Duration, Refusal) {
    match page {
        Some(page) if page.after < rules.limit => (page.after, page.shown),
        Some(_) | None => (rules.limit, rules.timed_out),
    }
}

fn conclude(
    exchange: &mut Exchange,
    cells: &HoldCells,
    now: Instant,
    end: HoldEnd,
) -> Result<Instant, ForwardError> {
    exchange.unhold(now);
    match end {
        HoldEnd::Released => {
            cells.released.add(1);
            Ok(now)
        }
        HoldEnd::Refused(refusal) => {
            cells.refused.add(1);
            Err(ForwardError::Held(refusal))
        }
    }
}

/// Whether a person waits for a page, and not a program or a part of a page.
fn is_navigation(request: &Request<RequestBody>) -> bool {
    let headers = request.headers();
    request.method() == Method::GET
        && Form::of(headers.get(http::header::ACCEPT)) == Form::Html
        && headers.get(SEC_FETCH_MODE).is_none_or(|mode| mode == "navigate")
}
