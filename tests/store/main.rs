//! The contract of `trait Store`, on SQLite: what each method promises, who wins a race, what survives, what is refused.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod answers;
mod apps;
mod crash;
mod deployments;
mod history;
mod journal;
mod opening;
mod support;
mod swap;
