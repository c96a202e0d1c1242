//! The whole program: the real binary, real sockets, real processes and containers. One module for each promise.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking"
)]

mod access;
mod acme;
mod admin;
mod app_tls;
#[path = "../tls/ca.rs"]
mod ca;
mod commands;
#[cfg(feature = "fault")]
mod crash;
#[cfg(feature = "fault")]
mod crash_commands;
#[cfg(feature = "fault")]
mod crash_hours;
#[cfg(feature = "fault")]
mod crash_idle;
#[cfg(feature = "fault")]
mod crash_moves;
#[cfg(feature = "fault")]
mod crash_steps;
#[cfg(feature = "fault")]
mod disk;
mod engine;
mod evidence;
mod hold;
mod metrics;
mod operator;
mod outage;
mod policies;
mod previews;
mod proxied;
mod release;
mod reload;
mod renaming;
mod rollback;
#[cfg(feature = "fault")]
mod sabotage;
mod scale;
mod scale_to_zero;
mod skew;
mod spill;
mod start;
mod support;
mod tls;
mod traces;
mod verify;
mod volumes;
mod wake;
