//! The engine's events of our containers, as hints.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptions, EventsOptionsBuilder};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::container::{INSTANCE, LOCKGATE};
use super::engine::{Engine, EngineError};
use super::network;
use crate::ids::LockgateId;
use crate::runtime::Changed;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The engine replays what it remembers since then, so that nothing falls between asking and listening.
const OVERLAP: Duration = Duration::from_secs(5);

/// Sends hints until nobody listens.
pub(super) async fn watch(engine: Arc<Engine>, lockgate: LockgateId, hints: mpsc::Sender<Changed>) {
    tokio::select! {
        () = hints.closed() => {}
        () = follow(&engine, lockgate, &hints) => {}
    }
}

/// Ends only with the listener.
async fn follow(engine: &Engine, lockgate: LockgateId, hints: &mpsc::Sender<Changed>) {
    let mut pause = FIRST_PAUSE;
    let mut lost = false;
    loop {
        // Also agrees on the version anew: another engine may have come back.
        if let Ok(told) = engine.ping().await {
            if lost {
                tracing::info!(engine = told, "docker events resume");
                // It remembers 256 events only: whoever listens has to look at all.
                if hints.send(Changed::All).await.is_err() {
                    return;
                }
            }
            let began = engine.clock().now();
            match stream(engine, lockgate, hints).await {
                Ok(()) => return,
                Err(cause) => tracing::warn!(error = %cause, "docker events ended"),
            }
            if engine.clock().now() - began > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
        }
        lost = true;
        engine.clock().sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// `Ok` once nobody listens.
async fn stream(
    engine: &Engine,
    lockgate: LockgateId,
    hints: &mpsc::Sender<Changed>,
) -> Result<(), EngineError> {
    let since = engine.clock().wall() - OVERLAP;
    let mut events = Box::pin(engine.client()?.events(Some(options(since.as_second()))));
    let mut overflowed = false;
    loop {
        tokio::select! {
            biased;
            // A slow listener loses names, never the fact that something changed.
            room = hints.reserve(), if overflowed => match room {
                Ok(room) => {
                    room.send(Changed::All);
                    overflowed = false;
                }
                Err(_closed) => return Ok(()),
            },
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if let Some(changed) = changed(&event, lockgate) {
                        overflowed |= hints.try_send(changed).is_err();
                    }
                }
                Some(Err(cause)) => return Err(EngineError::from_bollard("events", cause)),
                None => return Err(EngineError::Unavailable("the engine closed the stream of events".to_owned())),
            },
        }
    }
}

/// What changes how an instance is served. Not `exec_…`: an engine tells of each run of each health check.
const ACTIONS: [&str; 7] = ["start", "die", "oom", "destroy", "health_status", "connect", "disconnect"];

/// Not by label: events of networks do not carry the labels.
fn options(since: i64) -> EventsOptions {
    let filters = HashMap::from([
        ("type", vec!["container".to_owned(), "network".to_owned()]),
        ("event", ACTIONS.map(str::to_owned).to_vec()),
    ]);
    EventsOptionsBuilder::default().since(&since.to_string()).filters(&filters).build()
}

fn changed(event: &EventMessage, lockgate: LockgateId) -> Option<Changed> {
    let action = event.action.as_deref()?;
    let attributes = event.actor.as_ref()?.attributes.as_ref()?;
    match action {
        "start" | "die" | "oom" | "destroy" | "health_status: healthy" | "health_status: unhealthy" => {
            let is_ours = attributes.get(LOCKGATE).is_some_and(|label| *label == lockgate.to_string());
            Some(Changed::One(attributes.get(INSTANCE).filter(|_| is_ours)?.parse().ok()?))
        }
        // The container is named by an id that only the engine knows.
        "connect" | "disconnect" => {
            network::is_named_by(attributes.get("name")?, lockgate).then_some(Changed::All)
        }
        _ => None,
    }
}
