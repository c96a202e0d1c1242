//! A route that two versions share for a while: who gets which, and the cookie that keeps it so.

use std::sync::Arc;

use lockgate::routing::Backend;
use lockgate::routing::split::Split;
use lockgate::routing::table::PathRoute;

use crate::support::{OK, Plane, Upstream, field, pattern, status};

const OLD: &str = OK;
const NEW: &str = "HTTP/1.1 201 New\r\nContent-Length: 0\r\n\r\n";
const SPLIT: &str = "op_1";

struct Bed {
    plane: Plane,
    old: Upstream,
    new: Upstream,
}

impl Bed {
    async fn with(plane: Plane) -> Self {
        Self { plane, old: Upstream::answering(OLD).await, new: Upstream::answering(NEW).await }
    }

    async fn new() -> Self {
        Self::with(Plane::start()).await
    }

    /// So many in a hundred get the new version at `path`.
    fn share(&self, path: &str, share: u8) {
        let split = Arc::new(Split::new(SPLIT, Arc::clone(&self.new.backend), share));
        let route = |backend: &Arc<Backend>| PathRoute::new(path.parse().unwrap(), Arc::clone(backend));
        let route = route(&self.old.backend).with_split(Some(split));
        self.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![route.clone()]));
    }

    /// The answer to a request with these fields.
    async fn ask(&self, path: &str, fields: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{fields}\r\n");
        self.plane.exchange(request).await
    }

    async fn at(&self, place: u8) -> u16 {
        status(&self.ask("/", &format!("Cookie: a=b; __lockgate_split={SPLIT}.{place}\r\n")).await)
    }
}

#[tokio::test]
async fn a_visitor_with_a_cookie_stays_where_it_is_and_moves_only_forward() {
    let bed = Bed::new().await;
    for (share, expected) in [(5, [201, 200, 200]), (50, [201, 201, 200]), (100, [201, 201, 201])] {
        bed.share("/", share);
        for _ in 0..3 {
            assert_eq!([bed.at(4).await, bed.at(49).await, bed.at(99).await], expected, "{share} %");
        }
        assert_eq!(field(&bed.ask("/", "Cookie: __lockgate_split=op_1.4\r\n").await, "set-cookie"), None);
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_visitor_without_a_cookie_gets_one_that_brings_it_back_to_its_version() {
    let bed = Bed::new().await;
    bed.share("/", 50);
    let mut seen = [false; 2];
    // By chance one of the two is never seen once in 2^99 runs.
    for _ in 0..100 {
        let first = bed.ask("/", "Cookie: __lockgate_split=op_0.1\r\n").await;
        let cookie = field(&first, "set-cookie").unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        let again = bed.ask("/", &format!("Cookie: {pair}\r\n")).await;
        assert_eq!((status(&again), field(&again, "set-cookie")), (status(&first), None));
        seen[usize::from(status(&first) == 201)] = true;
    }
    assert_eq!(seen, [true, true]);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_share_of_none_or_all_leaves_nothing_to_chance() {
    let bed = Bed::new().await;
    for (share, expected) in [(0, 200), (100, 201)] {
        bed.share("/", share);
        for _ in 0..50 {
            assert_eq!(status(&bed.ask("/", "").await), expected);
        }
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn the_cookie_is_of_the_routes_path_and_secure_where_the_client_came_by_https() {
    let plane = Plane::with(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
    let bed = Bed::with(plane).await;
    bed.share("/shop", 100);
    let answer = bed.ask("/shop/cart", "X-Forwarded-Proto: https\r\n").await;
    let cookie = field(&answer, "set-cookie").unwrap();
    assert!(cookie.ends_with("; Path=/shop; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn an_upgrade_takes_part_and_once_the_split_is_over_nothing_of_it_is_left() {
    let bed = Bed::new().await;
    bed.share("/", 100);
    bed.new.answer("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
    let mut client = bed.plane.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(status(&head), 101);
    assert!(field(&head, "set-cookie").is_some());
    drop(client);
    // Aborted: the old version again, on a connection that knew the new one.
    bed.new.answer(NEW);
    let mut kept = bed.plane.connect().await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nCookie: __lockgate_split=op_1.0\r\n\r\n";
    kept.send(request).await;
    assert_eq!(status(&kept.head().await), 201);
    bed.plane.route("a.test", &bed.old);
    kept.send(request).await;
    let head = kept.head().await;
    assert_eq!((status(&head), field(&head, "set-cookie")), (200, None));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_new_version_whose_gate_closes_sends_its_visitors_back_unnoticed() {
    let bed = Bed::new().await;
    bed.share("/", 100);
    assert_eq!(bed.at(0).await, 201);
    bed.plane.route("a.test", &bed.old);
    bed.new.target.gate.close();
    assert_eq!(bed.at(0).await, 200);
    bed.plane.shutdown().await;
}
