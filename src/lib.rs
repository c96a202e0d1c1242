//! Lockgate: a reverse-proxy ingress that deploys what it serves, and spills no request in between.
//!
//! Two stories, each arrow one call:
//!
//! * **A request**: `proxy::worker → proxy::server → proxy::handle → routing::resolve → Gate::enter → upstream::send →
//!   proxy::body`. The guard that the gate gave out lives in the response's body; its drop is the end of the request.
//! * **A swap**: `admin::handlers::apps::swap → deploy::Orchestrator::submit → executor → live → cutover → drain →
//!   receipt`. The order `commit → publish → close gates → answer → drain` is kept by types in `deploy::cutover`.
//!
//! The modules below stand by name; ARCHITECTURE.md says which may use which, and why.

pub mod acme;
pub mod admin;
pub mod api;
pub mod certs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod deploy;
pub mod error;
pub mod fault;
pub mod gate;
#[cfg(test)]
#[path = "gate/tests.rs"]
mod gate_tests; // not inside gate.rs, which tests/gate_model.rs compiles with loom's atomics
pub mod ids;
mod outbound;
pub mod probe;
pub mod proxy;
mod proxy_header;
mod retry_after;
pub mod routing;
pub mod runtime;
pub mod sample;
pub mod serve;
pub mod settings;
pub mod store;
pub(crate) mod sync;
pub mod telemetry;
pub mod traces;
mod unverified;
mod upstream;
pub mod verify;
