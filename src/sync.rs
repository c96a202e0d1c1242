//! The atomics and locks of what is model-checked. `tests/gate_model.rs` compiles the same source with loom's.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};
