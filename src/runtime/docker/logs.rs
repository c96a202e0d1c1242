//! A container's output: its last lines, or all that it writes; its two streams told apart so that their lines stay whole.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::{StreamExt, stream};

use super::engine::{Engine, EngineError};
use crate::ids::InstanceId;
use crate::runtime::Follow;
use crate::runtime::lines::Lines;

const LIMIT: Duration = Duration::from_secs(10);

/// The last `count` lines of both streams, oldest first.
pub(super) async fn last(engine: &Engine, container: &str, count: usize) -> Result<Vec<String>, EngineError> {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&count.to_string()).build();
    let mut output = Box::pin(engine.client()?.logs(container, Some(options)));
    let read = async {
        let mut lines = Lines::last(count);
        while let Some(piece) = output.next().await {
            push(&mut lines, &piece.map_err(|cause| EngineError::from_bollard("logs", cause))?);
        }
        Ok(lines.finish())
    };
    engine.within(LIMIT, "logs", read).await
}

/// The last `count` lines, and those that are written until the container ends.
pub(super) fn follow(
    engine: &Engine,
    container: &str,
    instance: InstanceId,
    count: usize,
) -> Result<Follow, EngineError> {
    let options = LogsOptionsBuilder::default();
    let options = options.stdout(true).stderr(true).follow(true).tail(&count.to_string()).build();
    let output = engine.client()?.logs(container, Some(options));
    // The engine counts the last lines; of what it sends none is dropped.
    let begin = (Some((Box::pin(output), Lines::last(usize::MAX))), VecDeque::new());
    Ok(Box::pin(stream::unfold(begin, move |(mut reading, mut read)| async move {
        loop {
            if let Some(line) = read.pop_front() {
                return Some((Ok(line), (reading, read)));
            }
            let (mut output, mut lines) = reading.take()?;
            match output.next().await {
                Some(Ok(piece)) => {
                    push(&mut lines, &piece);
                    read = lines.take().into();
                    reading = Some((output, lines));
                }
                Some(Err(cause)) => {
                    let refused = EngineError::from_bollard("logs", cause).refused("read logs of", instance);
                    return Some((Err(refused), (None, read)));
                }
                None => read = lines.finish().into(),
            }
        }
    })))
}

fn push(lines: &mut Lines, piece: &LogOutput) {
    match piece {
        LogOutput::StdErr { message } => lines.push(1, message),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            lines.push(0, message);
        }
    }
}
