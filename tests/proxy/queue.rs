//! Targets that serve only so many requests at once, and those that wait for a place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockgate::gate::InFlight;
use lockgate::routing::balance::{Balance, HashBy, StickyKey};
use lockgate::routing::queue::{Places, Queue};
use lockgate::routing::{Backend, Target};
use tokio::task::JoinSet;

use crate::holds::told;
use crate::support::{
    GET, OK, Plane, Upstream, WORKERS, Wire, all_of, backend, pattern, status, unreachable, within,
};

const CLOSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

fn queue(size: usize) -> Arc<Queue> {
    Arc::new(Queue::new(size, LONG))
}

fn limit(target: Target, places: u32) -> Target {
    target.limited_to(Some(Arc::new(Places::new(places))))
}

/// An upstream that is sent so many requests at once, and is answered for by the test.
async fn limited(places: u32) -> Upstream {
    Upstream::start().await.with_target(|target| limit(target, places))
}

fn queueing(targets: &[&Arc<Target>], queue: &Arc<Queue>, balance: Balance) -> Arc<Backend> {
    Arc::new(Backend::clone(&backend(targets)).queueing(Some(Arc::clone(queue))).balanced(balance))
}

fn lead_to(plane: &Plane, targets: &[&Arc<Target>], queue: &Arc<Queue>) {
    let backend = queueing(targets, queue, Balance::TwoChoices);
    plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
}

fn get(path: impl std::fmt::Display) -> String {
    format!("GET /{path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

async fn ask(plane: &Plane, path: impl std::fmt::Display) -> Wire {
    let mut client = plane.connect().await;
    client.send(get(path)).await;
    client
}

/// A client whose request is at the upstream, and the upstream's side of it.
async fn served(plane: &Plane, upstream: &Upstream, path: impl std::fmt::Display) -> (Wire, Wire) {
    let client = ask(plane, &path).await;
    let mut app = upstream.accept().await;
    assert!(app.head().await.starts_with(&format!("GET /{path} ")));
    (client, app)
}

/// A client whose request waits.
async fn waiting(plane: &Plane, queue: &Queue, path: impl std::fmt::Display) -> Wire {
    let before = queue.waiting();
    let client = ask(plane, path).await;
    plane.settle(|| queue.waiting() > before).await;
    client
}

#[tokio::test]
async fn no_more_are_served_than_may_and_the_others_in_the_order_in_which_they_came() {
    let plane = Plane::of_workers(WORKERS, |_| {}).unwrap();
    let (upstream, queue, other) = (limited(2).await, queue(100), Upstream::answering(OK).await);
    lead_to(&plane, &[&upstream.target], &queue);
    let (mut clients, mut apps) = (Vec::new(), VecDeque::new());
    for at in 0..2 {
        let (client, app) = served(&plane, &upstream, at).await;
        clients.push(client);
        apps.push_back(app);
    }
    for at in 2..24 {
        clients.push(waiting(&plane, &queue, at).await);
    }
    let gauge = "lockgate_queued_requests{app=\"test\",environment=\"\",deployment=\"\"} 22";
    assert!(plane.metrics().contains(gauge), "{}", plane.metrics());
    for at in 2..24 {
        // What is published for others is nothing to them.
        plane.route("other.test", &other);
        apps.pop_front().unwrap().send(CLOSE).await;
        let mut next = upstream.accept().await;
        let head = next.head().await;
        assert!(head.starts_with(&format!("GET /{at} ")), "{at}: {head}");
        assert_eq!(upstream.target.gate.in_flight(), InFlight { requests: 2, streams: 0 });
        apps.push_back(next);
    }
    for mut app in apps {
        app.send(CLOSE).await;
    }
    for mut client in clients {
        assert_eq!(status(&client.head().await), 200);
    }
    let metrics = plane.metrics();
    for line in [
        "lockgate_queued_requests{app=\"test\",environment=\"\",deployment=\"\"} 0",
        "lockgate_queue_waits_total{app=\"test\",environment=\"\",deployment=\"\",result=\"served\"} 22",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert_eq!(queue.waiting(), 0);
    plane.shutdown().await;
}

/// Clients of all workers, some of which leave in the middle: never more than may, and nobody is forgotten.
#[tokio::test]
async fn under_load_no_target_has_more_than_may_and_everybody_is_served() {
    const LIMIT: usize = 3;
    let plane = Plane::of_workers(WORKERS, |_| {}).unwrap();
    let queue = queue(1000);
    let (mut upstreams, most) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let upstream = limited(3).await;
        let (listener, held, most) = (upstream.listener(), Arc::new(AtomicUsize::new(0)), Arc::clone(&most));
        upstream.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (held, most, mut wire) = (Arc::clone(&held), Arc::clone(&most), Wire::new(stream));
                wires.spawn(async move {
                    while let Some(head) = wire.try_head().await {
                        // Whose client has left is not sent to it any more, whether or not it has noticed.
                        let counts = usize::from(!head.starts_with("GET /leaver "));
                        most.fetch_max(held.fetch_add(counts, Ordering::SeqCst) + counts, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        held.fetch_sub(counts, Ordering::SeqCst);
                        wire.send(OK).await;
                    }
                });
            }
        });
        upstreams.push(upstream);
    }
    lead_to(&plane, &[&upstreams[0].target, &upstreams[1].target], &queue);
    let mut load = JoinSet::new();
    for at in 0..40_u64 {
        let mut client = plane.connect().await;
        let address = plane.address;
        load.spawn(async move {
            for round in 0..30 {
                if (at + round) % 7 == 0 {
                    client.send(get("leaver")).await;
                    client.reset();
                    client = Wire::new(tokio::net::TcpStream::connect(address).await.unwrap());
                }
                client.send(get(round)).await;
                assert_eq!(status(&client.head().await), 200);
            }
            30
        });
    }
    assert_eq!(all_of(load).await, 40 * 30);
    let most = most.load(Ordering::SeqCst);
    assert!((1..=LIMIT).contains(&most), "{most} at once");
    plane.settle(|| queue.waiting() == 0).await;
    for upstream in &upstreams {
        let places = upstream.target.places.as_ref().unwrap();
        plane.settle(|| upstream.target.gate.in_flight().is_zero()).await;
        // The last one is given back a moment later; so this waits in vain if one was lost.
        let all = || (0..LIMIT).filter_map(|_| places.take()).collect::<Vec<_>>();
        plane.settle(|| all().len() == LIMIT).await;
        let _all = all();
        assert!(!places.has_free(), "one too many was given back");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn g4_who_finds_no_room_or_waits_too_long_is_told_queue_full_and_when_to_come_back() {
    let plane = Plane::start();
    let upstream = limited(1).await;
    // Longer than it takes until the next one has been refused, on however busy a machine.
    let queue = Arc::new(Queue::new(1, Duration::from_millis(4500)));
    lead_to(&plane, &[&upstream.target], &queue);
    let (mut first, mut app) = served(&plane, &upstream, "first").await;
    let mut late = waiting(&plane, &queue, "late").await;
    let mut refused = ask(&plane, "refused").await;
    assert_eq!(told(&refused.head().await), (503, Some("queue_full"), Some("5")));
    assert_eq!(told(&late.head().await), (503, Some("queue_full"), Some("5")));
    late.until("}\n").await;
    assert_eq!(queue.waiting(), 0);
    // The one that is served goes on, and so do the connections.
    app.send(CLOSE).await;
    assert_eq!(status(&first.head().await), 200);
    late.send(get("again")).await;
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(CLOSE).await;
    assert_eq!(status(&late.head().await), 200);
    let metrics = plane.metrics();
    for result in ["result=\"refused\"} 1", "result=\"timed_out\"} 1", "result=\"served\"} 0"] {
        let line =
            format!("lockgate_queue_waits_total{{app=\"test\",environment=\"\",deployment=\"\",{result}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn who_leaves_while_waiting_makes_room_and_holds_up_nobody() {
    let plane = Plane::with(|settings| settings.limits.half_closed = Duration::from_millis(30));
    let (upstream, queue) = (limited(1).await, queue(2));
    lead_to(&plane, &[&upstream.target], &queue);
    let (mut first, mut app) = served(&plane, &upstream, "first").await;
    for is_reset in [true, false] {
        let mut leaver = waiting(&plane, &queue, "leaver").await;
        let patient = waiting(&plane, &queue, "patient").await;
        if is_reset {
            leaver.reset();
        } else {
            leaver.finish().await;
        }
        plane.settle(|| queue.waiting() == 1).await;
        app.send(CLOSE).await;
        assert_eq!(status(&first.head().await), 200);
        app = upstream.accept().await;
        assert!(app.head().await.starts_with("GET /patient "));
        first = patient;
    }
    plane.shutdown().await;
}

#[tokio::test]
async fn a_swap_while_requests_wait_has_the_new_version_serve_them_all() {
    let plane = Plane::of_workers(WORKERS, |_| {}).unwrap();
    let (old, queue, new) = (limited(1).await, queue(100), limited(2).await);
    lead_to(&plane, &[&old.target], &queue);
    let (mut first, mut app) = served(&plane, &old, "first").await;
    let mut clients = Vec::new();
    for at in 0..20 {
        clients.push(waiting(&plane, &queue, at).await);
    }
    lead_to(&plane, &[&new.target], &self::queue(100));
    old.target.gate.close();
    // Nobody of them waits for the old version any more, which still serves.
    plane.settle(|| queue.waiting() == 0).await;
    let mut apps = VecDeque::new();
    for _ in 0..20 {
        let mut one = new.accept().await;
        one.head().await;
        apps.push_back(one);
        if apps.len() == 2 {
            apps.pop_front().unwrap().send(CLOSE).await;
        }
    }
    apps.pop_front().unwrap().send(CLOSE).await;
    for mut client in clients {
        assert_eq!(status(&client.head().await), 200);
    }
    app.send(CLOSE).await;
    assert_eq!(status(&first.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_target_that_joins_or_comes_back_serves_those_who_wait() {
    let plane = Plane::start();
    let (one, queue, other, third) = (limited(1).await, queue(100), limited(1).await, limited(1).await);
    other.target.set_healthy(false);
    lead_to(&plane, &[&one.target, &other.target], &queue);
    let (_first, _app) = served(&plane, &one, "first").await;
    let _others = [waiting(&plane, &queue, 2).await, waiting(&plane, &queue, 3).await];
    other.target.set_healthy(true);
    let mut second = other.accept().await;
    let at_second = second.head().await;
    plane.settle(|| queue.waiting() == 1).await;
    lead_to(&plane, &[&one.target, &other.target, &third.target], &queue);
    let mut third = third.accept().await;
    assert_ne!(third.head().await.lines().next(), at_second.lines().next());
    assert_eq!(queue.waiting(), 0);
    plane.shutdown().await;
}

#[tokio::test]
async fn what_hashes_to_a_full_target_goes_to_the_next_and_a_pinned_visitor_waits_for_its_own() {
    let key = StickyKey::new(&[7; 32]);
    for balance in [Balance::Hash(HashBy::Path), Balance::Sticky(key.clone())] {
        let is_sticky = matches!(balance, Balance::Sticky(_));
        let plane = Plane::start();
        let (one, other, queue) = (limited(1).await, limited(1).await, queue(100));
        let backend = queueing(&[&one.target, &other.target], &queue, balance);
        plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
        let name = key.name_of(one.target.address.to_string().as_bytes());
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nCookie: __lockgate_target={name}\r\n\r\n");
        let mut first = plane.connect().await;
        first.send(&request).await;
        let (mut app, is_one) = tokio::select! {
            app = one.accept() => (app, true),
            app = other.accept() => (app, false),
        };
        app.head().await;
        assert!(is_one || !is_sticky);
        let mut second = plane.connect().await;
        second.send(&request).await;
        if is_sticky {
            plane.settle(|| queue.waiting() == 1).await;
            app.send(CLOSE).await;
            app = one.accept().await;
        } else {
            app = if is_one { other.accept().await } else { one.accept().await };
        }
        app.head().await;
        app.send(CLOSE).await;
        assert_eq!(status(&second.head().await), 200);
        plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_place_is_held_for_as_long_as_a_stream_and_by_all_backends_of_an_instance_together() {
    let plane = Plane::start();
    let (live, queue) = (limited(1).await, queue(100));
    let own = live.target.places.clone();
    let own = Target::new(live.target.id, live.target.address, WORKERS).limited_to(own);
    lead_to(&plane, &[&live.target], &queue);
    let own = queueing(&[&Arc::new(own)], &queue, Balance::TwoChoices);
    plane.routing.publish(|edit| edit.route(&pattern("own.test"), "/", &own));
    let mut client = plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let mut app = live.accept().await;
    app.head().await;
    app.send("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n").await;
    assert_eq!(status(&client.head().await), 101);
    let mut second = plane.connect().await;
    second.send(GET.replace("a.test", "own.test")).await;
    plane.settle(|| queue.waiting() == 1).await;
    drop((client, app));
    let mut app = live.accept().await;
    app.head().await;
    app.send(CLOSE).await;
    assert_eq!(status(&second.head().await), 200);
    plane.shutdown().await;
}

#[tokio::test]
async fn a_target_that_fails_a_request_does_not_keep_its_place() {
    let plane = Plane::start();
    let dead = unreachable();
    let dead = Arc::new(limit(Target::new(dead.id, dead.address, WORKERS), 1));
    let (well, queue) = (limited(1).await, queue(100));
    lead_to(&plane, &[&dead, &well.target], &queue);
    let (mut first, mut app) = served(&plane, &well, "first").await;
    // It tries the dead one, and waits for the other.
    let mut second = waiting(&plane, &queue, "second").await;
    assert!(dead.places.as_ref().unwrap().has_free());
    app.send(CLOSE).await;
    assert_eq!(status(&first.head().await), 200);
    let mut app = well.accept().await;
    app.head().await;
    app.send(CLOSE).await;
    assert_eq!(status(&second.head().await), 200);
    plane.shutdown().await;
}

/// What a request waited for is not the application's time.
#[tokio::test]
async fn j1_a_wait_for_a_place_is_no_part_of_what_the_upstream_took() {
    const WAIT: Duration = Duration::from_millis(300);
    let plane = Plane::start();
    let (upstream, queue) = (limited(1).await, queue(100));
    let holds = upstream.target.places.as_ref().unwrap().take();
    lead_to(&plane, &[&upstream.target], &queue);
    let mut client = waiting(&plane, &queue, "").await;
    tokio::time::sleep(WAIT).await;
    drop(holds);
    let mut app = upstream.accept().await;
    app.head().await;
    app.send(CLOSE).await;
    assert_eq!(status(&client.head().await), 200);
    drop(client);
    let waited = plane.waited();
    assert!(waited >= WAIT, "{waited:?}");
    plane.shutdown().await;
}

#[tokio::test]
async fn at_the_end_those_who_wait_get_their_answer_at_once() {
    let plane = Plane::start();
    let (upstream, queue) = (limited(1).await, queue(100));
    let _holds = upstream.target.places.as_ref().unwrap().take();
    lead_to(&plane, &[&upstream.target], &queue);
    let mut client = waiting(&plane, &queue, "").await;
    let mut ending = JoinSet::new();
    ending.spawn(plane.shutdown());
    assert_eq!(told(&client.rest().await), (503, Some("shutdown"), Some("1")));
    within(ending.join_next()).await.unwrap().unwrap();
}
