//! The contract of `trait Runtime`, held by both of its implementations, and what is particular to each.
//!
//! Without an engine the tests of `docker` print `SKIPPED: docker: …`; with `LOCKGATE_TEST_DOCKER=require` they fail.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the lints spare test functions only, not what they call"
)]

mod contract;
#[cfg(feature = "fault")]
mod crash;
mod docker;
mod fake_engine;
mod process;
mod support;
