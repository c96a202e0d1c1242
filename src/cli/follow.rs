//! Following an operation or a log: server-sent events as lines.

use std::ops::ControlFlow;
use std::time::Duration;

use console::style;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::client::{Client, ClientError, Streamed, refused};
use super::output::word;
use super::{Followed, Global, output};
use crate::api::{Counts, Event, EventKind, LogBroken, LogLine, Operation};
use crate::clock::{Clock, SystemClock};
use crate::ids::{DeploymentId, OperationId};

/// How often a stream that broke off is taken up again before it is given up.
const TRIES: u32 = 60;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often, and how long apart, an operation is looked at whose end is about to come.
const LOOKS: u32 = 200;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How far an operation is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It has cut over and holds, so that only the old version's drain is left; or it has ended.
    Held,
    Ended,
}

/// Tells what happens until the operation has come that far.
pub(super) async fn follow(client: &Client, operation: OperationId, until: Until) -> Result<(), ClientError> {
    each(client, &format!("/v1/operations/{operation}/events"), |event| {
        show(event);
        // Not the end of the watch: where nothing has to drain, the operation's own end is about to come.
        let drains = event.kind == EventKind::StepBegan && event.text == "drain";
        if drains && until == Until::Held { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await
}

/// Prints what happened and what happens, until the operation has ended or nobody reads it.
pub(super) async fn print_events(global: &Global, client: &Client, of: Followed) -> Result<(), ClientError> {
    let path = match of {
        Followed::Operation(operation) => format!("/v1/operations/{operation}/events"),
        Followed::Deployment(deployment) => format!("/v1/deployments/{deployment}/events"),
    };
    each(client, &path, |event| {
        if global.json {
            return output::try_line(serde_json::json!(event));
        }
        output::try_line(format!("{} {} {}", event.at, word(&event.kind), event.text).trim_end())
    })
    .await
}

/// Gives each event to `told` until that breaks off or the operation has ended. A stream that breaks off, as when
/// lockgate restarts, is taken up where it was left.
async fn each(
    client: &Client,
    path: &str,
    mut told: impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let mut last = None;
    let mut tries = 0;
    loop {
        let before = last.clone();
        let broke = match each_on(client, path, &mut last, &mut told).await {
            Ok(true) => return Ok(()),
            Ok(false) => ClientError::Broken { detail: "the events ended before the operation".to_owned() },
            Err(error) if error.may_pass() => error,
            Err(error) => return Err(error),
        };
        tries = if last == before { tries + 1 } else { 0 };
        if tries >= TRIES {
            return Err(broke);
        }
        SystemClock.sleep(TRY_AGAIN_AFTER).await;
    }
}

/// How an operation stands that was followed. Where the old version has nothing to drain its end comes at once, and is
/// waited for: whoever reads that it runs would look for what it still does.
pub(super) async fn settled(client: &Client, operation: OperationId) -> Result<Operation, ClientError> {
    let path = format!("/v1/operations/{operation}");
    let mut shown: Operation = client.get(&path).await?;
    for _ in 0..LOOKS {
        let drains = shown.receipt.as_ref().is_some_and(|it| it.in_flight_at_cutover != Counts::default());
        if drains || shown.state.is_end() {
            break;
        }
        SystemClock.sleep(LOOK_EVERY).await;
        shown = client.get(&path).await?;
    }
    Ok(shown)
}

/// Whether it came to its end.
async fn each_on(
    client: &Client,
    path: &str,
    last: &mut Option<String>,
    told: &mut impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<bool, ClientError> {
    let mut events = Events::open(client, path, last.as_deref()).await?;
    while let Some(block) = events.next().await? {
        let Some(event) = data::<Event>(&block) else { continue };
        if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id:")) {
            *last = Some(id.trim().to_owned());
        }
        if told(&event).is_break() || event.kind == EventKind::Ended {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Prints what a deployment's instances write until all have ended, or nobody reads it.
pub(super) async fn follow_logs(
    global: &Global,
    client: &Client,
    deployment: DeploymentId,
    lines: usize,
) -> Result<(), ClientError> {
    let path = format!("/v1/deployments/{deployment}/logs?lines={lines}&follow=true");
    let mut events = Events::open(client, &path, None).await?;
    while let Some(block) = events.next().await? {
        let printed = match data::<LogLine>(&block) {
            Some(written) if global.json => output::try_line(serde_json::json!(written)),
            Some(written) => output::try_line(format_args!("{} {}", written.instance.short(), written.line)),
            None => {
                if let Some(broken) = data::<LogBroken>(&block) {
                    output::progress(format_args!("{}: {}", broken.instance.short(), broken.detail));
                }
                continue;
            }
        };
        if printed.is_break() {
            break;
        }
    }
    Ok(())
}

/// The blocks of a stream of server-sent events.
struct Events {
    streamed: Streamed,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(client: &Client, path: &str, last: Option<&str>) -> Result<Self, ClientError> {
        let streamed = client.events(path, last).await?;
        if !streamed.response.status().is_success() {
            let status = streamed.response.status().as_u16();
            let body = streamed.response.into_body().collect().await.map(http_body_util::Collected::to_bytes);
            return Err(refused(status, &body.unwrap_or_default()));
        }
        Ok(Self { streamed, buffer: Vec::new() })
    }

    /// The next one; `None` at the stream's own end.
    async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(Some(String::from_utf8_lossy(&block).into_owned()));
            }
            let Some(frame) = self.streamed.response.body_mut().frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| ClientError::Broken { detail: crate::error::chain(&error) })?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

fn data<T: DeserializeOwned>(block: &str) -> Option<T> {
    let data = block.lines().find_map(|line| line.strip_prefix("data:"))?;
    serde_json::from_str(data.trim_start()).ok()
}

fn show(event: &Event) {
    match event.kind {
        EventKind::StepBegan => output::progress(format!("{} {}", style("·").dim(), event.text)),
        EventKind::StepEnded if event.text.ends_with("failed") => {
            output::progress(format!("{} {}", style("✗").red(), event.text));
        }
        EventKind::StepEnded => output::progress(format!("{} {}", style("✓").green(), event.text)),
        EventKind::Cutover => output::progress(format!("{} {}", style("⇄").cyan().bold(), event.text)),
        EventKind::Warning => output::progress(format!("{} {}", style("!").yellow(), event.text)),
        EventKind::Progress => output::progress(format!("  {}", event.text)),
        EventKind::Ended => {}
    }
}
