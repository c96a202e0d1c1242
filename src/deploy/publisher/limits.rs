//! How many requests the instances of a deployment serve at once: their places, the same for both of its backends, and
//! the queue of those that wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Owner;
use super::state::Unit;
use crate::ids::InstanceId;
use crate::routing::queue::{Places, Queue};

/// What a deployment's targets are limited to, while they are made.
#[derive(Debug, Default)]
pub(super) struct Limits {
    of_each: Option<u32>,
    places: HashMap<(InstanceId, SocketAddr), Arc<Places>>,
    pub(super) queue: Option<Arc<Queue>>,
}

impl Limits {
    /// What is known of the deployment stays the same: the places that requests have, and the queue that they wait in.
    pub(super) fn of(owner: &Owner, known: Option<&Unit>) -> Self {
        let Some((of_each, queue)) = owner.limit else { return Self::default() };
        let targets = known.into_iter().flat_map(Unit::targets);
        let places = targets
            .filter_map(|target| Some(((target.id, target.address), Arc::clone(target.places.as_ref()?))));
        let known_queue = known.and_then(|unit| unit.live.queue.clone());
        Self {
            of_each: Some(of_each),
            places: places.collect(),
            queue: Some(known_queue.unwrap_or_else(|| Arc::new(Queue::of(queue)))),
        }
    }

    /// The places of an instance.
    pub(super) fn places(&mut self, id: InstanceId, address: SocketAddr) -> Option<Arc<Places>> {
        let of_each = self.of_each?;
        let places = self.places.entry((id, address)).or_insert_with(|| Arc::new(Places::new(of_each)));
        Some(Arc::clone(places))
    }
}
