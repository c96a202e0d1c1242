//! What a swap reports: the proof of how it went.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::drain::Drained;
use super::evidence::Evidence;
use crate::clock::Timestamp;
use crate::gate::InFlight;
use crate::ids::{AppName, DeploymentId, EnvironmentName, OperationId};
use crate::routing::backend::Cut;
use crate::settings::Replicas;
use crate::store::{DesiredState, Operation};

/// The proof of one swap. Stored with its operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    pub operation: OperationId,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// What was live until the cutover.
    pub from: Option<DeploymentId>,
    pub to: DeploymentId,
    /// The environment's, after the swap.
    pub generation: u64,
    /// Of the route table, after the swap.
    pub table_generation: u64,
    #[schema(value_type = String, format = DateTime)]
    pub cutover_at: Timestamp,
    /// From the commit to the new table being what every worker reads, in microseconds.
    pub publish_us: u64,
    /// At the old version, when its gates had closed.
    pub in_flight_at_cutover: Counts,
    /// Of those, what came to its end.
    pub drained: Counts,
    /// Of those, what was cut at its deadline.
    pub cut: Vec<CutLine>,
    /// From the moment when the old gates had closed to the last end; `None` while the drain goes on.
    pub drain_ms: Option<u64>,
    /// What was asked of both versions by the host names that moved, from before the commit to the end of the drain.
    #[serde(default)]
    pub requests_during: RequestsDuring,
    /// What clients got from both versions while the new one was watched; `None` where there was none before it.
    #[serde(default)]
    pub evidence: Option<Evidence>,
    /// From the operation's begin to its end, or to now.
    pub total_ms: u64,
    /// The host names that moved, all at one instant.
    pub hosts: Vec<String>,
    /// Of strategy `hold`: the requests that waited when the new version served, and for how long requests were held.
    #[serde(default)]
    pub held: Option<HeldReceipt>,
    /// What else the caller should know.
    pub notes: Vec<String>,
}

/// How requests were held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldReceipt {
    pub requests: u64,
    pub ms: u64,
}

/// Requests and streams that ended in that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RequestsDuring {
    pub total: u64,
    /// Answered 5xx, by the app or by Lockgate, or cut short. Clients that left are not among them.
    pub failed: u64,
}

/// The proof of one scaling. Stored with its operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScaleReceipt {
    pub operation: OperationId,
    pub app: AppName,
    pub environment: EnvironmentName,
    /// The version that was scaled; `None` where nothing was live: the number is for the next deploy.
    pub deployment: Option<DeploymentId>,
    /// Instances before it.
    pub before: u16,
    /// And from then on.
    pub replicas: u16,
    /// At the instances that were let go, when their gates had closed.
    pub in_flight: Counts,
    /// Of those, what came to its end.
    pub drained: Counts,
    /// Of those, what was cut at its deadline.
    pub cut: Vec<CutLine>,
    /// From the operation's begin to its end, or to now.
    pub total_ms: u64,
    /// What else the caller should know.
    pub notes: Vec<String>,
}

/// What became of a version outside a cutover. Stored with the operation that notes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestReceipt {
    /// What it is since then.
    pub desired_state: DesiredState,
    /// Why.
    pub reason: String,
    /// At it, when its gates had closed, and came to its end.
    pub drained: Counts,
    /// What was cut at its deadline.
    pub cut: Vec<CutLine>,
}

/// Requests and streams, counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    pub requests: u64,
    pub streams: u64,
}

impl Counts {
    pub(super) fn of(in_flight: InFlight) -> Self {
        Self { requests: in_flight.requests, streams: in_flight.streams }
    }

    /// Of what was in flight `before`, what came to its end by itself.
    pub(super) fn drained(before: Self, drained: &Drained) -> Self {
        let streams = drained.cut.iter().filter(|cut| cut.stream).count() as u64;
        let requests = drained.cut.len() as u64 - streams;
        Self {
            requests: before.requests.saturating_sub(requests + drained.left.requests),
            streams: before.streams.saturating_sub(streams + drained.left.streams),
        }
    }
}

impl CutLine {
    pub(super) fn all(drained: &Drained) -> Vec<Self> {
        let line = |cut: &Cut| Self {
            stream: cut.stream,
            method: cut.method.clone(),
            host: cut.host.clone(),
            age_ms: u64::try_from(cut.age.as_millis()).unwrap_or(u64::MAX),
        };
        drained.cut.iter().map(line).collect()
    }
}

impl ScaleReceipt {
    pub(super) fn of(operation: &Operation, replicas: Replicas) -> Self {
        Self {
            operation: operation.id,
            app: operation.app.clone(),
            environment: operation.environment.clone(),
            deployment: None,
            before: 0,
            replicas: replicas.count(),
            in_flight: Counts::default(),
            drained: Counts::default(),
            cut: Vec::new(),
            total_ms: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn drained(&mut self, drained: &Drained) {
        self.cut = CutLine::all(drained);
        self.drained = Counts::drained(self.in_flight, drained);
    }
}

/// One request or stream that outlived its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CutLine {
    pub stream: bool,
    pub method: String,
    pub host: String,
    pub age_ms: u64,
}
