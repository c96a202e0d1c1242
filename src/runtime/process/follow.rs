//! A process's output as a stream, until the process has ended.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio::task::spawn_blocking;

use super::instances::{Instances, Now};
use super::output::Follower;
use super::unread;
use crate::clock::Clock;
use crate::ids::InstanceId;
use crate::runtime::Follow;

/// Between two looks for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The lines that `follower` finds, and the last one even if it has no end.
pub(super) fn lines(
    instances: Arc<Instances>,
    clock: Arc<dyn Clock>,
    instance: InstanceId,
    follower: Follower,
) -> Follow {
    let begin = (Some(follower), VecDeque::new());
    Box::pin(stream::unfold(begin, move |(mut follower, mut read)| {
        let (instances, clock) = (Arc::clone(&instances), Arc::clone(&clock));
        async move {
            loop {
                if let Some(line) = read.pop_front() {
                    return Some((Ok(line), (follower, read)));
                }
                let reader = follower.take()?;
                let looked = {
                    let instances = Arc::clone(&instances);
                    spawn_blocking(move || look(&instances, instance, reader)).await
                };
                match looked.unwrap_or_else(|broken| Err(io::Error::other(broken))) {
                    Ok((left, lines)) => {
                        (follower, read) = (left, lines.into());
                        if read.is_empty() && follower.is_some() {
                            clock.sleep(LOOK_EVERY).await;
                        }
                    }
                    // Without a follower it ends.
                    Err(cause) => return Some((Err(unread(instance, &cause)), (None, read))),
                }
            }
        }
    }))
}

/// What is new, and the follower as long as there may be more.
fn look(
    instances: &Instances,
    instance: InstanceId,
    mut follower: Follower,
) -> io::Result<(Option<Follower>, Vec<String>)> {
    // Asked before the file is read: what is written before the end is read after it.
    let runs = instances.find(instance)?.is_some_and(|found| matches!(found.now, Now::Runs(_)));
    let lines = match follower.more() {
        // It was removed in the meantime.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && !runs => Vec::new(),
        read => read?,
    };
    if runs || !lines.is_empty() {
        return Ok((Some(follower), lines));
    }
    Ok((None, follower.finish()))
}
