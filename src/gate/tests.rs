//! What a gate does in one thread; what it does in several is in `tests/gate_model.rs`.

use std::sync::Arc;

use crate::gate::*;

#[test]
fn a_closed_gate_refuses_and_a_reopened_one_admits() {
    let gate = Arc::new(Gate::new(2));
    let held = gate.enter(0).unwrap();
    gate.close();
    assert_eq!(gate.enter(0).unwrap_err(), Refused);
    assert_eq!(gate.enter(1).unwrap_err(), Refused);
    assert_eq!(gate.in_flight(), InFlight { requests: 1, streams: 0 });
    gate.reopen();
    let second = gate.enter(1).unwrap();
    assert_eq!(gate.in_flight().requests, 2);
    drop((held, second));
    assert_eq!(gate.in_flight(), InFlight::default());
}

#[test]
fn a_stream_is_counted_apart_from_requests() {
    let gate = Arc::new(Gate::new(1));
    let stream = gate.enter(0).unwrap().into_stream().into_stream();
    let request = gate.enter(0).unwrap();
    assert_eq!(gate.in_flight(), InFlight { requests: 1, streams: 1 });
    assert_eq!(gate.load_of(0), 2);
    drop(request);
    assert_eq!(gate.in_flight(), InFlight { requests: 0, streams: 1 });
    drop(stream);
    assert_eq!(gate.in_flight(), InFlight::default());
}

#[tokio::test]
async fn a_drain_of_requests_ends_while_a_stream_goes_on() {
    let gate = Arc::new(Gate::new(1));
    let stream = gate.enter(0).unwrap().into_stream();
    let request = gate.enter(0).unwrap();
    gate.close();
    let (waiting, ()) = tokio::join!(
        async {
            gate.drained(Awaited::Requests).await;
            gate.in_flight()
        },
        async { drop(request) }
    );
    assert_eq!(waiting, InFlight { requests: 0, streams: 1 });
    let ((), ()) = tokio::join!(gate.drained(Awaited::Everything), async { drop(stream) });
    assert_eq!(gate.in_flight(), InFlight::default());
}

#[tokio::test]
async fn becoming_a_stream_ends_a_drain_of_requests() {
    let gate = Arc::new(Gate::new(1));
    let request = gate.enter(0).unwrap();
    gate.close();
    let ((), stream) = tokio::join!(gate.drained(Awaited::Requests), async { request.into_stream() });
    assert_eq!(gate.in_flight(), InFlight { requests: 0, streams: 1 });
    drop(stream);
}
