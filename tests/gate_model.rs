//! All interleavings of the cutover protocol, by loom: the gate's own source, compiled with loom's atomics.

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU64 as Word, Ordering};
use loom::thread;

use gate::{Awaited, Gate, Guard, InFlight, Refused};

#[expect(
    dead_code,
    unreachable_pub,
    reason = "the source of a public module, of which the models do not use all"
)]
#[path = "../src/gate.rs"]
mod gate;

/// What `src/gate.rs` finds as `crate::sync` here: loom's atomics instead of the standard library's.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

/// Every schedule with at most three switches away from a thread that could go on: that finds nearly every fault
/// (and the one that is kept below), in seconds instead of hours.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A request as the proxy does it: read the table, enter the gate, and on refusal read again.
/// Tables are numbered: 0 leads to the old gate, 1 to the new one.
fn serve(table: &Word, gates: &[Arc<Gate>; 2]) -> (u64, Guard) {
    loop {
        let version = table.load(Ordering::Acquire);
        match gates[usize::from(version == 1)].enter(0) {
            Ok(guard) => return (version, guard),
            Err(Refused) => assert_eq!(table.load(Ordering::Acquire), 1, "refused before publish"),
        }
    }
}

#[test]
fn publish_close_drain_never_stops_a_target_in_use() {
    explore(|| {
        let table = Arc::new(Word::new(0));
        let gates = [Arc::new(Gate::new(1)), Arc::new(Gate::new(1))];
        let stopped = Arc::new(AtomicBool::new(false));
        let request = {
            let (table, gates, stopped) = (table.clone(), gates.clone(), stopped.clone());
            thread::spawn(move || {
                let (version, guard) = serve(&table, &gates);
                if version == 0 {
                    assert!(!stopped.load(Ordering::Acquire), "the old target was stopped under a request");
                }
                drop(guard);
            })
        };
        table.store(1, Ordering::Release);
        gates[0].close();
        // The swap has answered; whoever asks from here on is served by the new version.
        let (version, guard) = serve(&table, &gates);
        assert_eq!(version, 1);
        drop(guard);
        loom::future::block_on(gates[0].drained(Awaited::Everything));
        stopped.store(true, Ordering::Release);
        request.join().unwrap();
        assert_eq!(gates[0].in_flight(), InFlight::default());
    });
}

#[test]
fn a_refused_enter_never_leaves_a_drain_asleep() {
    explore(|| {
        let gate = Arc::new(Gate::new(1));
        let guard = gate.enter(0).unwrap();
        gate.close();
        let late = {
            let gate = gate.clone();
            thread::spawn(move || assert!(gate.enter(0).is_err()))
        };
        let holder = thread::spawn(move || drop(guard.into_stream()));
        loom::future::block_on(gate.drained(Awaited::Everything));
        late.join().unwrap();
        holder.join().unwrap();
        assert_eq!(gate.in_flight(), InFlight::default());
    });
}

#[test]
fn a_reopened_gate_counts_what_never_left() {
    explore(|| {
        let gate = Arc::new(Gate::new(1));
        let guard = gate.enter(0).unwrap();
        gate.close();
        let other = {
            let gate = gate.clone();
            thread::spawn(move || gate.enter(0).is_ok())
        };
        gate.reopen();
        assert_eq!(gate.in_flight().requests.min(1), 1);
        drop(guard);
        other.join().unwrap();
        assert_eq!(gate.in_flight(), InFlight::default());
    });
}

/// The naive order, kept to show that the models bite: look at a flag, then count.
#[test]
#[should_panic(expected = "the old target was stopped under a request")]
fn flag_beside_count_spills() {
    explore(|| {
        let closed = Arc::new(AtomicBool::new(false));
        let count = Arc::new(Word::new(0));
        let stopped = Arc::new(AtomicBool::new(false));
        let request = {
            let (closed, count, stopped) = (closed.clone(), count.clone(), stopped.clone());
            thread::spawn(move || {
                if !closed.load(Ordering::SeqCst) {
                    count.fetch_add(1, Ordering::SeqCst);
                    assert!(!stopped.load(Ordering::SeqCst), "the old target was stopped under a request");
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            })
        };
        closed.store(true, Ordering::SeqCst);
        if count.load(Ordering::SeqCst) == 0 {
            stopped.store(true, Ordering::SeqCst);
        }
        request.join().unwrap();
    });
}
