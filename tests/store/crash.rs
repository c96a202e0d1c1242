//! `kill -9` at random instants: what was acknowledged is there afterwards.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lockgate::ids::{EnvironmentName, OperationId};
use lockgate::store::{Accepted, Store, SwapPlan};

use crate::support::{Scratch, app, deployment, open, operation, plan, web};

const DIR: &str = "LOCKGATE_TEST_STORE_DIR";
const ROUNDS: u64 = 10;

/// Not a test of its own: what the child process of the next one does.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    runtime.block_on(async {
        let store = open(dir.as_ref()).unwrap();
        store.put_apps(&[app("web", &["www.example.com"])]).await.unwrap();
        loop {
            let (operation, deployment) = (operation("web"), deployment());
            let accepted = store.begin_operation(&operation, Some(&deployment)).await.unwrap();
            assert_eq!(accepted, Accepted::New);
            let environment =
                store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap();
            let plan =
                SwapPlan { expected_generation: environment.generation, ..plan(operation.id, deployment.id) };
            let committed = store.commit_swap(&plan).await.unwrap();
            // Straight to the pipe: the test harness would keep what `println!` prints.
            writeln!(std::io::stderr(), "ack {} {}", committed.generation, operation.id).unwrap();
        }
    });
}

#[tokio::test]
async fn every_acknowledged_write_is_there_after_kill_9() {
    let dir = Scratch::new().reopen();
    let Scratch { store, dir } = dir;
    drop(store);
    let mut acknowledged: Vec<(u64, OperationId)> = Vec::new();
    for round in 0..ROUNDS {
        let mut child = start(dir.path());
        // The delay only chooses where the kill lands: anywhere is right. A multiple of a prime spreads it.
        let after = 1 + usize::try_from(round * 7 % 11).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = 0;
        while seen < after {
            let line = lines.next().expect("the child ended by itself").unwrap();
            seen += usize::from(note(&line, &mut acknowledged));
        }
        tokio::time::sleep(Duration::from_micros(round * 1_300)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            note(&line.unwrap(), &mut acknowledged);
        }

        let store = open(dir.path()).unwrap();
        let environment = store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap();
        let (last, _) = *acknowledged.last().unwrap();
        assert!((last..=last + 1).contains(&environment.generation), "round {round}: {last} {environment:?}");
        for (generation, id) in &acknowledged {
            let operation = store.operation(id).await.unwrap();
            let operation = operation.unwrap_or_else(|| panic!("round {round}: {id} ({generation}) is lost"));
            assert_eq!(operation.cutover.as_deref(), Some("{}"), "round {round}");
        }
        let routes = store.routes().await.unwrap();
        assert_eq!(
            routes[0].deployment, environment.live,
            "round {round}: the route is not the live pointer's"
        );
        assert_eq!(store.steps(&acknowledged.last().unwrap().1).await.unwrap().len(), 1);
    }
    println!("{} acknowledged writes, {ROUNDS} kills, none lost", acknowledged.len());
}

fn start(dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_writes_until_it_is_killed", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn note(line: &str, acknowledged: &mut Vec<(u64, OperationId)>) -> bool {
    let mut words = line.split_whitespace();
    // A line that the kill cut short was never said.
    let (Some("ack"), Some(generation), Some(id)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let (Ok(generation), Ok(id)) = (generation.parse(), id.parse()) else { return false };
    acknowledged.push((generation, id));
    true
}
