//! How many requests an instance serves at once, and how many wait for a place.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Delay;

/// The requests that wait for a place where `max_concurrent_requests` has none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSettings {
    /// How many wait at most, whatever number of instances there is; more are answered 503 `queue_full` at once, and with
    /// 0 all are that find no place.
    pub size: u32,
    /// How long one waits at most; then it is answered 503 `queue_full`.
    pub timeout: Delay,
}

/// What is wrong with the two: the field, why, and what to write.
type Fault = (&'static str, &'static str, &'static str);

impl Default for QueueSettings {
    fn default() -> Self {
        Self { size: 1000, timeout: Delay::seconds(10) }
    }
}

/// What is wrong with a limit and its queue, of an app or of a service.
#[must_use]
pub fn queue_faults(limit: Option<u32>, queue: Option<QueueSettings>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if limit == Some(0) {
        faults.push(("max_concurrent_requests", "is 0", "write at least 1; or null for no limit"));
    }
    if queue.is_some_and(|queue| queue.timeout.0.is_zero()) {
        faults.push(("queue.timeout", "is not positive", "write for example 10s; size: 0 has nobody wait"));
    }
    if queue.is_some() && limit.is_none() {
        let detail = "is given, and without max_concurrent_requests nobody waits";
        faults.push(("queue", detail, "write max_concurrent_requests, or leave it out"));
    }
    faults
}
