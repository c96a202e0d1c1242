//! The events of an operation as server-sent events: in order, to the end, and for a reader that comes back
//! neither lost nor told twice.

use lockgate::api::Operation;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::wire::{Ask, unchunked};
use super::{Admin, problem};
use crate::support::PATIENCE;

#[derive(Clone, Debug, PartialEq)]
struct Told {
    id: i64,
    event: String,
    data: serde_json::Value,
}

/// The whole events of a body that may end in the middle of one.
fn told(body: &str) -> Vec<Told> {
    let whole = body.rfind("\n\n").map_or("", |end| &body[..end]);
    let field = |block: &str, name: &str| {
        let mut lines = block.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(given, _)| *given == name).map(|(_, value)| value.trim().to_owned())
    };
    // Blocks without an id keep the connection alive.
    let blocks = whole.split("\n\n").filter_map(|block| Some((field(block, "id")?, block)));
    let event = |(id, block): (String, &str)| Told {
        id: id.parse().unwrap(),
        event: field(block, "event").unwrap(),
        data: serde_json::from_str(&field(block, "data").unwrap()).unwrap(),
    };
    blocks.map(event).collect()
}

/// Follows until `at_most` events are there or the stream has ended; says whether it has, in order.
async fn follow(admin: &Admin, path: &str, after: Option<i64>, at_most: usize) -> (Vec<Told>, bool) {
    let mut ask = Ask::get(path);
    if let Some(id) = after {
        ask = ask.header("last-event-id", &id.to_string());
    }
    let mut stream = UnixStream::connect(admin.lockgate.socket()).await.unwrap();
    stream.write_all(&ask.bytes()).await.unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.contains("200 OK") && head.contains("text/event-stream"), "{head}");
        let events = told(&unchunked(body));
        if read == 0 || events.len() >= at_most {
            return (events, read == 0 && body.ends_with("0\r\n\r\n"));
        }
    }
}

async fn deploy(admin: &Admin, env: serde_json::Value) -> Operation {
    let ask = Ask::post("/v1/apps/web/deployments", &json!({ "env": env, "force": true }));
    admin.socket(&ask).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_end_with_the_operation() {
    let admin = Admin::start().await;
    deploy(&admin, json!({ "VERSION": "one" })).await;
    let operation = deploy(&admin, json!({ "VERSION": "two" })).await;
    let path = format!("/v1/operations/{}/events", operation.id);
    let (events, has_ended) = follow(&admin, &path, None, usize::MAX).await;
    assert!(has_ended, "the stream was cut");
    assert!(events.is_sorted_by(|one, other| one.id < other.id), "{events:?}");
    let kinds: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "cutover").count(), 1, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "ended").count(), 1, "{kinds:?}");
    assert_eq!(kinds.last(), Some(&"ended"), "{kinds:?}");
    assert!(events.iter().all(|event| event.data["operation"] == json!(operation.id)), "{events:?}");
    let shown: Operation = admin.socket(&Ask::get(format!("/v1/operations/{}", operation.id))).await.json();
    assert!(shown.state.is_success(), "{shown:?}");
    // The same by the deployment's name.
    let path = format!("/v1/deployments/{}/events", operation.deployment.unwrap());
    assert_eq!(follow(&admin, &path, None, usize::MAX).await, (events, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_comes_back_goes_on_where_it_was() {
    let admin = Admin::start().await;
    let operation = deploy(&admin, json!({ "VERSION": "one", "HEALTH_AFTER_MS": "500" })).await;
    let path = format!("/v1/operations/{}/events", operation.id);
    // While it runs: a reader whose connection breaks after every event.
    let mut pieces: Vec<Told> = Vec::new();
    loop {
        let last = pieces.last().map(|event| event.id);
        let (events, has_ended) = follow(&admin, &path, last, 1).await;
        pieces.extend(events);
        if has_ended {
            break;
        }
    }
    let (whole, has_ended) = follow(&admin, &path, None, usize::MAX).await;
    assert!(has_ended && whole.len() > 5, "{whole:?}");
    assert_eq!(pieces, whole);
    // And afterwards, from each place.
    for (at, event) in whole.iter().enumerate() {
        let (rest, has_ended) = follow(&admin, &path, Some(event.id), usize::MAX).await;
        assert!(has_ended);
        assert_eq!(rest, whole[at + 1..], "after event {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_over_tcp_need_a_token() {
    let admin = Admin::start().await;
    let operation = deploy(&admin, json!({ "VERSION": "one" })).await;
    let ask = Ask::get(format!("/v1/operations/{}/events", operation.id));
    problem(&admin.tcp(&ask).await, 401, "unauthorized");
    let secret = admin.secret("read");
    let answer = admin.tcp(&ask.token(&secret)).await;
    assert_eq!(told(&answer.body).last().map(|event| event.event.as_str()), Some("ended"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_a_deployment_over_tcp_need_a_token() {
    let admin = Admin::start().await;
    let deployment = admin.lockgate.deploy("one").await.unwrap().deployment.unwrap();
    let ask = Ask::get(format!("/v1/deployments/{deployment}/logs?follow=true&lines=1"));
    problem(&admin.tcp(&ask).await, 401, "unauthorized");
    let nobody = "/v1/deployments/dep_00000000000000000000000000000000/logs?follow=true";
    problem(&admin.socket(&Ask::get(nobody)).await, 404, "deployment_not_found");
    let unclear = Ask::get(format!("/v1/deployments/{deployment}/logs?follow=perhaps"));
    problem(&admin.socket(&unclear).await, 400, "query_invalid");
    let secret = admin.secret("read");
    let following = async { admin.tcp(&ask.token(&secret)).await };
    // It ends when the next version has replaced this one.
    let (answer, replaced) = tokio::join!(following, admin.lockgate.deploy("two"));
    replaced.unwrap();
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("text/event-stream")),
        "{answer:?}"
    );
    assert!(answer.body.contains("event: line"), "{answer:?}");
    assert!(!answer.body.contains("event: broken"), "{answer:?}");
}
