//! Which target gets a request: in turn, by what the request has, and by a cookie.

use std::sync::Arc;

use lockgate::ids::InstanceId;
use lockgate::routing::balance::{Balance, HashBy, StickyKey};
use lockgate::routing::skew::Skew;
use lockgate::routing::split::Split;
use lockgate::routing::table::PathRoute;
use lockgate::routing::{Backend, Target};

use crate::support::{OK, Plane, Upstream, WORKERS, backend, field, pattern, status, unreachable};

/// A plane whose one route leads to so many upstreams, spread in that way.
struct Bed {
    plane: Plane,
    upstreams: Vec<Upstream>,
    balance: Balance,
}

impl Bed {
    async fn new(count: usize, balance: Balance) -> Self {
        let plane = Plane::with(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
        let bed = Self { plane, upstreams: upstreams(count).await, balance };
        let targets: Vec<_> = bed.upstreams.iter().map(|upstream| &upstream.target).collect();
        bed.lead_to(&targets);
        bed
    }

    fn backend(&self, targets: &[&Arc<Target>]) -> Arc<Backend> {
        Arc::new(Backend::clone(&backend(targets)).balanced(self.balance.clone()))
    }

    fn lead_to(&self, targets: &[&Arc<Target>]) {
        let backend = self.backend(targets);
        self.plane.routing.publish(|edit| edit.route(&pattern("a.test"), "/", &backend));
    }

    /// The answer to a request with these fields, and which upstream gave it.
    async fn ask(&self, path: &str, fields: &str) -> (usize, String) {
        let before: Vec<usize> = self.served();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{fields}\r\n");
        let answer = self.plane.exchange(request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let served = self.served().iter().zip(before).position(|(now, before)| *now > before);
        (served.expect("an upstream served it"), answer)
    }

    async fn at(&self, path: &str, fields: &str) -> usize {
        self.ask(path, fields).await.0
    }

    fn served(&self) -> Vec<usize> {
        self.upstreams.iter().map(|upstream| upstream.heads().len()).collect()
    }
}

async fn upstreams(count: usize) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for _ in 0..count {
        upstreams.push(Upstream::answering(OK).await);
    }
    upstreams
}

fn sticky() -> Balance {
    Balance::Sticky(StickyKey::new(&[7; 32]))
}

/// The cookie that an answer sets, as it is sent back, and its attributes.
fn cookie(answer: &str) -> Option<(&str, &str)> {
    let set = answer.lines().filter_map(|line| line.strip_prefix("set-cookie: "));
    let mut ours = set.filter(|value| value.starts_with("__lockgate_target="));
    let only = ours.next()?.split_once("; ");
    assert_eq!(ours.next(), None, "set twice: {answer}");
    only
}

#[tokio::test]
async fn round_robin_goes_through_all_and_leaves_out_what_is_not_well() {
    let bed = Bed::new(3, Balance::RoundRobin).await;
    let mut order = Vec::new();
    for _ in 0..6 {
        order.push(bed.at("/", "").await);
    }
    assert_eq!(order[..3], order[3..], "the same order again");
    assert_eq!(bed.served(), [2, 2, 2]);
    bed.upstreams[1].target.set_healthy(false);
    for _ in 0..6 {
        bed.at("/", "").await;
    }
    assert_eq!(bed.served(), [5, 2, 5]);
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn the_same_client_path_field_or_cookie_leads_to_the_same_target() {
    let header = HashBy::Header("x-user".parse().unwrap());
    for (by, request) in [
        (HashBy::Client, (|at| ("/".to_owned(), format!("X-Forwarded-For: 10.0.0.{at}\r\n"))) as fn(u8) -> _),
        (HashBy::Path, |at| (format!("/{at}"), String::new())),
        (header, |at| ("/".to_owned(), format!("X-User: {at}\r\n"))),
        (HashBy::Cookie("sid".into()), |at| {
            ("/".to_owned(), format!("Cookie: a=b; sid={at}\r\nCookie: c=d\r\n"))
        }),
    ] {
        let bed = Bed::new(4, Balance::Hash(by.clone())).await;
        for key in 0..40 {
            let (path, fields) = request(key);
            let first = bed.at(&path, &fields).await;
            let again = bed.at(&format!("{path}?other"), &format!("X-Other: 1\r\n{fields}")).await;
            assert_eq!(again, first, "{by:?} {key}");
        }
        // By chance two of the four have all of the 40 once in forty billion runs.
        let used = bed.served().iter().filter(|served| **served > 0).count();
        assert!(used >= 3, "{by:?}: {:?}", bed.served());
        bed.plane.shutdown().await;
    }
}

#[tokio::test]
async fn what_has_no_key_is_spread_all_the_same() {
    let bed = Bed::new(2, Balance::Hash(HashBy::Header("x-user".parse().unwrap()))).await;
    for _ in 0..60 {
        bed.at("/", "").await;
    }
    // By chance one of them has none once in 2^59 runs.
    assert!(bed.served().iter().all(|served| *served > 0), "{:?}", bed.served());
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_target_that_goes_moves_only_what_was_its_own_and_gets_it_back() {
    let bed = Bed::new(3, Balance::Hash(HashBy::Path)).await;
    let paths: Vec<String> = (0..24).map(|key| format!("/{key}")).collect();
    let mut before = Vec::new();
    for path in &paths {
        before.push(bed.at(path, "").await);
    }
    let gone = before[0];
    let others = bed.upstreams.iter().map(|one| &one.target).enumerate();
    let others: Vec<_> = others.filter(|(at, _)| *at != gone).map(|(_, target)| target).collect();
    // Out of rotation, and out of the backend.
    bed.upstreams[gone].target.set_healthy(false);
    for is_left_out in [false, true] {
        if is_left_out {
            bed.lead_to(&others);
        }
        for (path, before) in paths.iter().zip(&before) {
            let now = bed.at(path, "").await;
            assert!(now != gone && (*before == gone || now == *before), "{path}: {before} to {now}");
        }
    }
    bed.upstreams[gone].target.set_healthy(true);
    bed.lead_to(&bed.upstreams.iter().map(|upstream| &upstream.target).collect::<Vec<_>>());
    for (path, before) in paths.iter().zip(&before) {
        assert_eq!(bed.at(path, "").await, *before, "{path}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_request_that_its_target_cannot_take_goes_to_another() {
    for balance in [Balance::RoundRobin, Balance::Hash(HashBy::Path), sticky()] {
        let bed = Bed::new(1, balance).await;
        let dead = unreachable();
        bed.lead_to(&[&dead, &bed.upstreams[0].target]);
        for key in 0..16 {
            let (_, answer) = bed.ask(&format!("/{key}"), "").await;
            assert_eq!(cookie(&answer).is_some(), bed.balance == sticky());
        }
        bed.plane.shutdown().await;
    }
}

#[tokio::test]
async fn a_visitor_goes_on_with_the_same_target_while_that_serves() {
    let bed = Bed::new(4, sticky()).await;
    for _ in 0..20 {
        let (first, answer) = bed.ask("/", "").await;
        let (pair, attributes) = cookie(&answer).expect("a visitor gets one");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        for _ in 0..2 {
            let (again, answer) = bed.ask("/other", &format!("Cookie: a=b; {pair}\r\n")).await;
            assert_eq!((again, cookie(&answer)), (first, None));
        }
    }
    // By chance once in 4^19 runs.
    let used = bed.served().iter().filter(|served| **served > 0).count();
    assert!(used > 1, "all visitors went to the same one");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_visitor_whose_target_is_gone_or_unwell_is_pinned_anew() {
    let bed = Bed::new(2, sticky()).await;
    let (first, answer) = bed.ask("/", "").await;
    let pinned = format!("Cookie: {}\r\n", cookie(&answer).unwrap().0);
    bed.upstreams[first].target.set_healthy(false);
    let (second, answer) = bed.ask("/", &pinned).await;
    assert_ne!(second, first);
    let again = format!("Cookie: {}\r\n", cookie(&answer).unwrap().0);
    assert_ne!(again, pinned);
    bed.upstreams[first].target.set_healthy(true);
    for _ in 0..8 {
        assert_eq!(bed.ask("/", &again).await.0, second, "it does not go back");
    }
    // One that is forged, and those of another version, mean nothing.
    for unknown in ["", "x", "127.0.0.1", &"0".repeat(24)] {
        let (_, answer) = bed.ask("/", &format!("Cookie: __lockgate_target={unknown}\r\n")).await;
        assert!(cookie(&answer).is_some(), "{unknown:?}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn the_cookie_tells_nothing_of_its_target_and_is_secure_over_tls() {
    let bed = Bed::new(2, sticky()).await;
    let (first, answer) = bed.ask("/", "X-Forwarded-Proto: https\r\n").await;
    let (pair, attributes) = cookie(&answer).unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Secure");
    let value = pair.strip_prefix("__lockgate_target=").unwrap();
    let target = &bed.upstreams[first].target;
    assert!(value.len() == 24 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
    // Whoever does not have the key cannot find out by trying.
    for of in [target.address.to_string(), target.id.to_string()] {
        assert!(!blake3::hash(of.as_bytes()).to_hex().contains(value), "{value} is made of {of} alone");
        let other = StickyKey::new(&[8; 32]).name_of(of.as_bytes());
        assert_ne!(&*other, value);
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn after_a_swap_visitors_are_pinned_anew_and_stay_there() {
    let bed = Bed::new(4, sticky()).await;
    let targets: Vec<_> = bed.upstreams.iter().map(|upstream| &upstream.target).collect();
    bed.lead_to(&targets[..2]);
    let (_, answer) = bed.ask("/", "").await;
    let old = format!("Cookie: {}\r\n", cookie(&answer).unwrap().0);
    bed.lead_to(&targets[2..]);
    targets[..2].iter().for_each(|target| target.gate.close());
    let (new, answer) = bed.ask("/", &old).await;
    assert!(new >= 2);
    let pinned = format!("Cookie: {}\r\n", cookie(&answer).unwrap().0);
    for _ in 0..8 {
        let (again, answer) = bed.ask("/", &pinned).await;
        assert_eq!((again, cookie(&answer)), (new, None));
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_visitor_of_a_split_keeps_its_version_and_its_target() {
    let bed = Bed::new(4, sticky()).await;
    let targets: Vec<_> = bed.upstreams.iter().map(|upstream| &upstream.target).collect();
    let split = Arc::new(Split::new("op_1", bed.backend(&targets[2..]), 50));
    let route = PathRoute::new("/".parse().unwrap(), bed.backend(&targets[..2])).with_split(Some(split));
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![route.clone()]));
    for (place, versions) in [(10, 2..4), (90, 0..2)] {
        let place = format!("__lockgate_split=op_1.{place}");
        let (first, answer) = bed.ask("/", &format!("Cookie: {place}\r\n")).await;
        assert!(versions.contains(&first), "{first}");
        let pinned = format!("Cookie: {}; {place}\r\n", cookie(&answer).unwrap().0);
        for _ in 0..8 {
            let (again, answer) = bed.ask("/", &pinned).await;
            assert_eq!((again, field(&answer, "set-cookie")), (first, None));
        }
        // The name of a target of the other version does not lead there.
        let foreign = format!("Cookie: {}; __lockgate_split=op_1.{}\r\n", cookie(&answer).unwrap().0, 50);
        let (other, answer) =
            bed.ask("/", &foreign.replace("op_1.50", if first < 2 { "op_1.0" } else { "op_1.99" })).await;
        assert!(!versions.contains(&other) && cookie(&answer).is_some());
    }
    let (_, answer) = bed.ask("/", "").await;
    assert!(cookie(&answer).is_some() && answer.contains("set-cookie: __lockgate_split="), "{answer}");
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn a_page_of_an_earlier_version_stays_together_and_leaves_the_cookie_alone() {
    let bed = Bed::new(6, sticky()).await;
    let targets: Vec<_> = bed.upstreams.iter().map(|upstream| &upstream.target).collect();
    let [live, old] = std::array::from_fn(|_| lockgate::ids::DeploymentId::generate());
    let skew = Skew::new(live, [(old, bed.backend(&targets[3..]))].into(), 60);
    let route =
        PathRoute::new("/".parse().unwrap(), bed.backend(&targets[..3])).with_skew(Some(Arc::new(skew)));
    bed.plane.routing.publish(|edit| edit.set(&pattern("a.test"), vec![route.clone()]));
    let (_, answer) = bed.ask("/", "").await;
    let pinned = format!("Lockgate-Deployment: {old}\r\nCookie: {}\r\n", cookie(&answer).unwrap().0);
    let (first, answer) = bed.ask("/", &pinned).await;
    assert!(first >= 3 && cookie(&answer).is_none(), "{answer}");
    for _ in 0..8 {
        let (again, answer) = bed.ask("/", &pinned).await;
        assert_eq!((again, cookie(&answer)), (first, None));
    }
    bed.plane.shutdown().await;
}

#[tokio::test]
async fn an_upstream_gets_requests_by_its_weight_in_each_way() {
    for balance in [Balance::TwoChoices, Balance::RoundRobin, Balance::Hash(HashBy::Path)] {
        let bed = Bed::new(0, balance).await;
        let (light, heavy) = (Upstream::answering(OK).await, Upstream::answering(OK).await);
        let address = heavy.target.address;
        let weighted = Arc::new(Target::new(InstanceId::generate(), address, WORKERS).weighing(4));
        bed.lead_to(&[&light.target, &weighted]);
        for key in 0..500 {
            let request = format!("GET /{key} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
            assert_eq!(status(&bed.plane.exchange(request).await), 200);
        }
        // 100 of 500 on average; the bounds are more than six standard deviations away.
        let part = light.heads().len();
        let expected = if bed.balance == Balance::RoundRobin { 100..101 } else { 40..160 };
        assert!(expected.contains(&part), "{:?}: {part} of 500", bed.balance);
        bed.plane.shutdown().await;
    }
}
