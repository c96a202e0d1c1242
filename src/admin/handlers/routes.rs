//! Routes as they are, how a host name is resolved, and what is in flight where.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, paged};
use crate::admin::Admin;
use crate::admin::call::Asked;
use crate::admin::problem::Refusal;
use crate::api::{ExplainedTarget, Explanation, Instance, List, PageQuery, Problem, Route, RouteSplit};
use crate::routing::split::Split;
use crate::routing::{HoldEnd, HostMatch, HostName, Miss, RouteTable, Via};

/// What to resolve.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExplainQuery {
    host: String,
    #[serde(default = "root")]
    path: String,
}

fn root() -> String {
    "/".to_owned()
}

/// Lists the routes of apps, then those of the configuration's static services.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", params(PageQuery), responses((status = 200, body = List<Route>)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Route>> {
    let table = admin.routing.table();
    let rows = admin.store.routes().await?.into_iter().map(Route::from);
    let rows = rows.map(|route| Route { split: split_of(&table, &route), ..route });
    paged(query, rows.chain(services(&table))).map(Json)
}

/// Says how a host name and path are resolved, and why.
#[utoipa::path(get, path = "/v1/explain", tag = "routes", params(ExplainQuery), responses((status = 200, body = Explanation), (status = 400, body = Problem)))]
pub(crate) async fn explain(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<ExplainQuery>,
) -> Answer<Explanation> {
    let host = HostName::from_authority(&query.host)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "host_invalid", error.to_string()))?;
    let table = admin.routing.table();
    let found = table.resolve(&host);
    let mut explanation = Explanation {
        trail: trail(&host, found.as_ref()),
        host: host.to_string(),
        path: query.path.clone(),
        generation: table.generation(),
        deployment: None,
        app: None,
        label: None,
        targets: Vec::new(),
        split: None,
        split_targets: Vec::new(),
        code: None,
    };
    let route = match &found {
        None => Err(Miss::NoRoute),
        Some(found) => found.route(&query.path, admin.clock.now()),
    };
    match route {
        Ok(route) => {
            let stats = &route.backend.stats;
            explanation.trail.push(format!("path prefix {} leads to {}", route.route.prefix, stats.name()));
            explanation.app = Some(stats.name().to_owned());
            explanation.deployment =
                stats.labels.as_ref().map(|labels| labels.deployment.clone()).filter(|id| !id.is_empty());
            explanation.label = route.label.map(str::to_owned);
            explanation.targets = route.backend.targets.iter().map(|target| shown(target)).collect();
            if let Some(split) = route.route.split().filter(|_| route.label.is_none()) {
                let shares = told(split);
                let line = format!("{} % of the visitors get {}", shares.share, shares.deployment);
                explanation.trail.push(line);
                explanation.split = Some(shares);
                explanation.split_targets =
                    split.backend().targets.iter().map(|target| shown(target)).collect();
            }
            if let Some(policies) = &route.backend.policies {
                let names = policies.names_for(&query.path);
                explanation.trail.push(format!("its policies, in their order: {}", names.join(", ")));
            }
            if let Some(own) = &route.backend.https {
                explanation.trail.extend(own.told());
            }
            match route.backend.hold.as_ref().map(|hold| (hold.end(), hold.waiting())) {
                Some((Some(HoldEnd::Refused(refusal)), _)) => {
                    explanation.code = Some(refusal.code.to_owned());
                }
                Some((_, waiting)) => {
                    explanation.trail.push(format!("requests wait until it serves, {waiting} now"));
                }
                None if explanation.targets.is_empty() => explanation.code = Some("no_backend".to_owned()),
                None => {}
            }
        }
        Err(miss) => explanation.code = Some(code(miss).to_owned()),
    }
    Ok(Json(explanation))
}

/// Lists the instances with what is in flight at each.
#[utoipa::path(get, path = "/v1/instances", tag = "routes", params(PageQuery), responses((status = 200, body = List<Instance>)))]
pub(crate) async fn instances(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Instance>> {
    paged(query, admin.engine.instances().await?.into_iter().map(Instance::from)).map(Json)
}

/// The routes that no row stands for, in the order of their host names.
fn services(table: &RouteTable) -> Vec<Route> {
    let mut found = Vec::new();
    for routes in table.iter() {
        let host = routes.pattern().to_string();
        let paths = routes.paths().iter().filter(|path| path.backend().stats.labels.is_none());
        found.extend(paths.map(|path| Route {
            host: host.clone(),
            path: path.prefix.to_string(),
            strip: path.strip,
            sticky: None,
            app: None,
            environment: None,
            deployment: None,
            service: Some(path.backend().stats.name().to_owned()),
            split: None,
        }));
    }
    found.sort_by(|one, other| (&one.host, &one.path).cmp(&(&other.host, &other.path)));
    found
}

/// As it is published.
fn split_of(table: &RouteTable, route: &Route) -> Option<RouteSplit> {
    let routes = table.routes(&route.host.parse().ok()?)?;
    let path = routes.paths().iter().find(|path| path.prefix.as_str() == route.path)?;
    path.split().map(told)
}

fn told(split: &Split) -> RouteSplit {
    let labels = split.backend().stats.labels.as_ref();
    let deployment = labels.map(|labels| labels.deployment.clone()).unwrap_or_default();
    RouteSplit { deployment, share: split.share() }
}

fn trail(host: &HostName, found: Option<&HostMatch>) -> Vec<String> {
    let missed_exact = format!("no exact route for {host}");
    let Some(found) = found else {
        return vec![missed_exact, "no wildcard, no label to strip, no catch-all".to_owned()];
    };
    let pattern = found.routes().pattern();
    match found.via() {
        Via::Exact => vec![format!("exact route {pattern}")],
        Via::Wildcard { label } => {
            vec![
                missed_exact,
                format!("wildcard {pattern}; label {label} is tried, else the live version answers"),
            ]
        }
        Via::Stripped { label } => {
            vec![
                missed_exact,
                format!("label {label} stripped; {pattern} has a route, so the label must be known"),
            ]
        }
        Via::Any => vec![missed_exact, "the catch-all route".to_owned()],
    }
}

fn shown(target: &crate::routing::Target) -> ExplainedTarget {
    let in_flight = target.gate.in_flight();
    ExplainedTarget {
        instance: target.id,
        address: target.address.to_string(),
        healthy: target.is_healthy(),
        open: !target.gate.is_closed(),
        requests: in_flight.requests,
        streams: in_flight.streams,
    }
}

fn code(miss: Miss) -> &'static str {
    match miss {
        Miss::NoRoute => "no_route",
        Miss::EphemeralUnknown => "ephemeral_unknown",
        Miss::EphemeralExpired => "ephemeral_expired",
    }
}
