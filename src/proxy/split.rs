//! Which of two versions a visitor gets while a route is split between them.

use std::sync::Arc;

use http::{HeaderValue, Request, header};

use crate::routing::Backend;
use crate::routing::split::{Place, Split};
use crate::routing::table::RouteMatch;
use crate::upstream::RequestBody;

use super::exchange::Mark;
use super::headers::X_FORWARDED_PROTO;
use super::worker::Worker;

/// The version that the request goes to, and the cookie for a visitor that has none: it stays there.
pub(crate) fn choose<'a>(
    worker: &Worker,
    request: &Request<RequestBody>,
    route: &RouteMatch<'a>,
    split: &'a Split,
) -> (&'a Arc<Backend>, Mark) {
    let headers = request.headers();
    let known = headers.get_all(header::COOKIE).iter().find_map(|field| split.place_in(field.as_bytes()));
    let place = known.unwrap_or_else(|| Place::of(worker.ids.random()));
    let mark = if known.is_some() {
        Mark::None
    } else {
        // By now it says what the client used, or what a trusted proxy told of it.
        let is_secure = headers.get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
        let cookie = split.cookie(place, route.route.prefix.as_str(), is_secure);
        HeaderValue::try_from(cookie).map_or(Mark::None, Mark::Visitor)
    };
    (split.leads(place).unwrap_or(route.backend), mark)
}
