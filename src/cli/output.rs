//! What people read: plain lines, and failures with cause, evidence, what still serves and the next step.

#![expect(clippy::print_stderr, reason = "printing is what this module is for")]

use std::io::Write;
use std::ops::ControlFlow;

use console::style;
use serde::Serialize;

use super::exit;
use crate::api::{Counts, Operation, Problem, Receipt, ScaleReceipt};
use crate::cli::ClientError;

/// What a command ends with when it does not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: u8,
    pub(super) problem: Box<Problem>,
    /// As JSON, on the standard output.
    pub(super) json: bool,
    /// What is said as JSON instead of the problem.
    pub(super) report: Option<serde_json::Value>,
}

impl Failure {
    pub(super) fn new(exit: u8, title: impl Into<String>) -> Self {
        let code = match exit {
            exit::USAGE => "usage",
            exit::UNREACHABLE => "unreachable",
            _ => "failed",
        };
        let problem = Problem { code: code.to_owned(), title: title.into(), ..Problem::default() };
        Self { exit, problem: Box::new(problem), json: false, report: None }
    }

    /// With what a program gets to read, whole.
    pub(super) fn report(mut self, report: serde_json::Value) -> Self {
        self.report = Some(report);
        self
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.problem.remedy = Some(remedy.into());
        self
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Self::new(exit::UNREACHABLE, error.to_string())
                .remedy("start it with `lockgate serve`, or name its socket with --socket"),
            ClientError::Broken { .. } => Self::new(exit::UNREACHABLE, error.to_string())
                .remedy("see whether it runs with `lockgate status`"),
            ClientError::Unexpected { .. } => Self::new(exit::FAILED, error.to_string()),
            ClientError::Refused(problem) => {
                let did_not_hold = problem.title.starts_with("the new version did not hold");
                let exit = match problem.status {
                    424 if did_not_hold => exit::ROLLED_BACK,
                    424 => exit::FAILED,
                    _ => exit::REFUSED,
                };
                Self { exit, problem, json: false, report: None }
            }
        }
    }
}

pub(super) fn failure(failure: &Failure) {
    let problem = &failure.problem;
    if failure.json {
        return failure.report.as_ref().map_or_else(|| json(problem), json);
    }
    eprintln!("{} {}", style("error:").red().bold().for_stderr(), problem.title);
    for line in &problem.evidence {
        eprintln!("  {line}");
    }
    if let Some(serving) = &problem.serving {
        eprintln!("{} {serving}", style("serving:").green().for_stderr());
    }
    if let Some(remedy) = &problem.remedy {
        eprintln!("{} {remedy}", style("try:").cyan().for_stderr());
    }
}

/// Prints a line of the result. Whoever reads it may stop reading, as `head` does.
pub(super) fn line(text: impl std::fmt::Display) {
    // Further lines would not be read either; the command ends soon.
    let _read_on = try_line(text);
}

/// Prints a line of a result that may never end; `Break` if nobody reads it.
pub(super) fn try_line(text: impl std::fmt::Display) -> ControlFlow<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                eprintln!("error: cannot print: {error}");
            }
            ControlFlow::Break(())
        }
    }
}

/// Progress goes beside the result, so that the result can be piped.
pub(super) fn progress(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

pub(super) fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(format_args!("{text}")),
        Err(error) => eprintln!("error: cannot be shown as JSON: {error}"),
    }
}

/// A table with its columns as wide as they need to be.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let shown = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    line(format_args!("{}", style(shown(&mut head.iter().copied())).bold()));
    for row in rows {
        line(format_args!("{}", shown(&mut row.iter().map(String::as_str))));
    }
}

pub(super) fn operation(operation: &Operation) {
    let state = word(&operation.state);
    if operation.noop {
        line(format_args!("nothing to do: an equal deployment is live"));
    }
    line(format_args!(
        "{} {} {}/{}: {state}",
        operation.id,
        word(&operation.kind),
        operation.app,
        operation.environment
    ));
    if let Some(deployment) = operation.deployment {
        line(format_args!("  deployment {deployment}"));
    }
    if let Some(failure) = operation.failure.as_ref().filter(|_| !operation.noop) {
        line(format_args!("  {}: {}", failure.code, failure.cause));
        failure.evidence.iter().for_each(|text| line(format_args!("    {text}")));
    }
    if let Some(receipt) = &operation.receipt {
        line(format_args!("{}", receipt_text(receipt)));
    }
    if let Some(receipt) = &operation.scaled {
        line(format_args!("{}", scaled_text(receipt)));
    }
    if let Some(receipt) = &operation.rested {
        line(format_args!("  {}: {}", word(&receipt.desired_state), receipt.reason));
        for cut in &receipt.cut {
            line(format_args!("    cut {} {} after {} ms", cut.method, cut.host, cut.age_ms));
        }
    }
}

fn scaled_text(receipt: &ScaleReceipt) -> String {
    let mut text = match receipt.deployment {
        None => format!("  nothing is live: the next deploy has {} instances", receipt.replicas),
        Some(of) => format!("  {of}: {} -> {} instances", receipt.before, receipt.replicas),
    };
    let let_go = receipt.in_flight;
    if let_go != Counts::default() {
        let (requests, streams) = (let_go.requests, let_go.streams);
        text.push_str(&format!("\n  in flight at those that go: {requests} requests, {streams} streams"));
    }
    for cut in &receipt.cut {
        text.push_str(&format!("\n    cut {} {} after {} ms", cut.method, cut.host, cut.age_ms));
    }
    for note in &receipt.notes {
        text.push_str(&format!("\n  {note}"));
    }
    text
}

/// The receipt in a few lines.
pub(crate) fn receipt_text(receipt: &Receipt) -> String {
    let from = receipt.from.map_or_else(|| "nothing".to_owned(), |from| from.to_string());
    let at = receipt.in_flight_at_cutover;
    let mut text = format!(
        "  {from} -> {} at {} (generation {})\n  published in {} us; in flight at the cutover: {} requests, {} streams",
        receipt.to, receipt.cutover_at, receipt.generation, receipt.publish_us, at.requests, at.streams
    );
    let drained = receipt.drained;
    match receipt.drain_ms {
        _ if receipt.from.is_none() => {}
        None => text.push_str("\n  the old version drains"),
        Some(ms) => text.push_str(&format!(
            "\n  drained {} requests and {} streams in {ms} ms, cut {}",
            drained.requests,
            drained.streams,
            receipt.cut.len()
        )),
    }
    let asked = receipt.requests_during;
    text.push_str(&format!("\n  asked meanwhile: {} requests, {} failed", asked.total, asked.failed));
    if let Some(evidence) = &receipt.evidence {
        text.push_str(&format!("\n  watched: {}\n  before:  {}", evidence.new, evidence.old));
    }
    for cut in &receipt.cut {
        text.push_str(&format!("\n    cut {} {} after {} ms", cut.method, cut.host, cut.age_ms));
    }
    if let Some(held) = receipt.held {
        text.push_str(&format!(
            "\n  requests were held for {} ms; {} waited at the end",
            held.ms, held.requests
        ));
    }
    for note in &receipt.notes {
        text.push_str(&format!("\n  {note}"));
    }
    text
}

/// The word that the API uses for it.
pub(super) fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
