//! Skew protection: whose requests go to an earlier version, what pages are told, and when everybody gets the live one.

use std::sync::Arc;

use lockgate::ids::DeploymentId;
use lockgate::routing::Backend;
use lockgate::routing::skew::Skew;
use lockgate::routing::split::Split;
use lockgate::routing::table::PathRoute;

use crate::support::{OK, Plane, Upstream, backend, field, pattern, status, unreachable};

const LIVE: &str = "HTTP/1.1 201 Live\r\nContent-Length: 0\r\n\r\n";
const PAGE: &str = "HTTP/1.1 201 Live\r\nContent-Type: Text/HTML; charset=utf-8\r\nContent-Length: 0\r\n\r\n";
const GO_TO_PAGE: &str = "Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n";

/// A route to a live version beside which an earlier one runs.
struct Bed {
    plane: Plane,
    old: Upstream,
    live: Upstream,
    ids: [DeploymentId; 2],
}

impl Bed {
    async fn new() -> Self {
        let bed = Self::with(Plane::start()).await;
        bed.lead(&bed.old.backend, None);
        bed
    }

    async fn with(plane: Plane) -> Self {
        let (old, live) = (Upstream::answering(OK).await, Upstream::answering(LIVE).await);
        Self { plane, old, live, ids: std::array::from_fn(|_| DeploymentId::generate()) }
    }

    fn lead(&self, old: &Arc<Backend>, split: Option<Split>) {
        let skew = Skew::new(self.ids[1], [(self.ids[0], Arc::clone(old))].into(), 60);
        let route = PathRoute::new("/".parse().unwrap(), Arc::clone(&self.live.backend))
            .with_split(split.map(Arc::new))
            .with_skew(Some(Arc::new(skew)));
        self.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![route.clone()]));
    }

    async fn send(&self, method: &str, fields: &str) -> String {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n"
        );
        self.plane.exchange(request).await
    }

    async fn ask(&self, fields: &str) -> String {
        self.send("GET", fields).await
    }

    /// What the page of a version sends with each of its requests.
    fn cookie(&self, which: usize) -> String {
        format!("Cookie: a=b; __lockgate_deployment={}\r\n", self.ids[which])
    }

    fn named(&self, which: usize) -> String {
        format!("Lockgate-Deployment: {}\r\n", self.ids[which])
    }
}

#[tokio::test]
async fn a_page_goes_on_with_its_version_and_the_next_one_comes_from_the_live_one() {
    let bed = Bed::new().await;
    let old = bed.cookie(0);
    for part in [
        "",
        "Accept: */*\r\n",
        "Sec-Fetch-Dest: script\r\nSec-Fetch-Mode: no-cors\r\n",
        "Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nAccept: text/html\r\n",
        "Sec-Fetch-Dest: iframe\r\nSec-Fetch-Mode: navigate\r\n",
        "Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Purpose: prefetch;prerender\r\n",
    ] {
        assert_eq!(status(&bed.ask(&format!("{old}{part}")).await), 200, "{part:?}");
    }
    assert_eq!(status(&bed.send("POST", &format!("{old}{GO_TO_PAGE}")).await), 200, "a form of the page");
    for page in [GO_TO_PAGE, "Sec-Fetch-Mode: navigate\r\n", "Accept: text/html,*/*;q=0.8\r\n"] {
        assert_eq!(status(&bed.ask(&format!("{old}{page}")).await), 201, "{page:?}");
        assert_eq!(status(&bed.send("HEAD", &format!("{old}{page}")).await), 201, "{page:?}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_page_has_a_cookie_of_the_version_that_served_it_and_nothing_else_has() {
    let bed = Bed::new().await;
    let live = format!("__lockgate_deployment={}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax", bed.ids[1]);
    assert_eq!(field(&bed.ask(GO_TO_PAGE).await, "set-cookie"), None, "no page");
    bed.live.answer(PAGE);
    for known in [String::new(), bed.cookie(0), bed.cookie(1)] {
        let answer = bed.ask(&format!("{known}{GO_TO_PAGE}")).await;
        assert_eq!(field(&answer, "set-cookie"), Some(live.as_str()));
        assert_eq!(field(&answer, "cache-control"), Some("private"));
        let part = bed.ask(&format!("{known}Sec-Fetch-Dest: empty\r\n")).await;
        assert_eq!(field(&part, "set-cookie"), None);
    }
    bed.live.answer("HTTP/1.1 304 Same\r\n\r\n");
    assert_eq!(
        field(&bed.ask(GO_TO_PAGE).await, "set-cookie"),
        Some(live.as_str()),
        "the cached page is its"
    );
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn the_cookie_is_secure_where_the_client_came_by_https() {
    let plane = Plane::with(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
    let bed = Bed::with(plane).await;
    bed.lead(&bed.old.backend, None);
    bed.live.answer(PAGE);
    let answer = bed.ask(&format!("X-Forwarded-Proto: https\r\n{GO_TO_PAGE}")).await;
    assert!(field(&answer, "set-cookie").unwrap().ends_with("; SameSite=Lax; Secure"), "{answer}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_field_counts_before_the_cookie_and_goes_no_further() {
    let bed = Bed::new().await;
    for (which, expected) in [(0, 200), (1, 201)] {
        let other = bed.cookie(1 - which);
        assert_eq!(status(&bed.ask(&format!("{other}{}", bed.named(which))).await), expected);
        let page = format!("{other}{GO_TO_PAGE}{}", bed.named(which));
        assert_eq!(status(&bed.ask(&page).await), expected, "scripts alone can send it");
    }
    for head in bed.old.heads().iter().chain(&bed.live.heads()) {
        assert_eq!(field(head, "lockgate-deployment"), None, "{head}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn what_names_no_version_that_runs_gets_the_live_one_and_learns_nothing() {
    let bed = Bed::new().await;
    let without = bed.ask("X-Request-Id: 1\r\n").await;
    let other = DeploymentId::generate();
    for name in [other.to_string(), "x".to_owned(), String::new(), format!("{}0", bed.ids[0])] {
        for fields in
            [format!("Cookie: __lockgate_deployment={name}\r\n"), format!("Lockgate-Deployment: {name}\r\n")]
        {
            let answer = bed.ask(&fields).await;
            assert_eq!(answer.lines().count(), without.lines().count(), "{answer}");
            assert_eq!(status(&answer), 201, "{fields:?}");
        }
    }
    // Where the app does not ask for it, neither means anything.
    bed.plane.route("a.test", &bed.live);
    assert_eq!(status(&bed.ask(&bed.cookie(0)).await), 201);
    assert_eq!(status(&bed.ask(&bed.named(0)).await), 201);
    bed.live.answer(PAGE);
    assert_eq!(field(&bed.ask(GO_TO_PAGE).await, "set-cookie"), None);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn an_earlier_version_that_does_not_take_a_request_leaves_it_to_the_live_one() {
    let bed = Bed::new().await;
    bed.old.target.gate.close();
    assert_eq!(status(&bed.ask(&bed.cookie(0)).await), 201, "its gate is closed");
    bed.lead(&backend(&[&unreachable()]), None);
    assert_eq!(status(&bed.ask(&bed.cookie(0)).await), 201, "it refuses connections");
    bed.lead(&backend(&[]), None);
    assert_eq!(status(&bed.ask(&bed.cookie(0)).await), 201, "it has no target");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn one_of_several_targets_that_fails_is_no_reason_to_leave_the_version() {
    let bed = Bed::new().await;
    bed.lead(&backend(&[&unreachable(), &bed.old.target]), None);
    for _ in 0..20 {
        assert_eq!(status(&bed.ask(&bed.cookie(0)).await), 200);
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn what_an_earlier_version_answers_is_not_for_shared_caches() {
    let bed = Bed::new().await;
    let caching = [
        ("", "private"),
        ("Cache-Control: public, s-maxage=60\r\n", "public, s-maxage=60"),
        ("Cache-Control: max-age=60, Private\r\n", "max-age=60, Private"),
        ("Cache-Control: no-store\r\n", "no-store"),
    ];
    for (given, expected) in caching {
        let answer = format!("HTTP/1.1 200 OK\r\n{given}Content-Length: 0\r\n\r\n");
        bed.old.answer(Box::leak(answer.into_boxed_str()));
        let head = bed.ask(&bed.cookie(0)).await.to_ascii_lowercase();
        assert!(head.contains(&format!("cache-control: {}", expected.to_ascii_lowercase())), "{head}");
        let is_private = head.contains("private") || head.contains("no-store");
        assert!(is_private, "{head}");
        assert_eq!(
            head.matches("cache-control").count(),
            1 + usize::from(given.contains("public")),
            "{head}"
        );
    }
    bed.live.answer("HTTP/1.1 201 Live\r\nCache-Control: public\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(field(&bed.ask(&bed.cookie(1)).await, "cache-control"), Some("public"));
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn while_a_route_is_split_pages_stay_with_either_version_and_new_ones_follow_the_share() {
    let bed = Bed::new().await;
    let new =
        Upstream::answering("HTTP/1.1 202 New\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n").await;
    bed.lead(&new.backend, Some(Split::new("op_1", Arc::clone(&new.backend), 50)));
    let place = |cookie: &str, place: u8| format!("{}; __lockgate_split=op_1.{place}\r\n", cookie.trim_end());
    assert_eq!(status(&bed.ask(&place(&bed.cookie(1), 0)).await), 201, "a page of the live one");
    assert_eq!(status(&bed.ask(&place(&bed.cookie(0), 99)).await), 202, "a page of the new one");
    let page = bed.ask(&format!("{}{GO_TO_PAGE}", place(&bed.cookie(1), 0))).await;
    let expected = format!("__lockgate_deployment={}; Path=/", bed.ids[0]);
    assert!(status(&page) == 202 && field(&page, "set-cookie").unwrap().starts_with(&expected), "{page}");
    let first = bed.ask(GO_TO_PAGE).await;
    let is_new = status(&first) == 202;
    assert_eq!(first.matches("set-cookie: __lockgate_split=op_1.").count(), 1, "{first}");
    assert_eq!(first.contains(&expected), is_new, "{first}");
    bed.plane.shutdown().await;
}
