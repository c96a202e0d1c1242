//! P5 Crash-safe: killed before any of the writes of the commands that are no deploy or swap, an app is as it was or as
//! it was to be, nothing is amiss, and the same command asked for again does what it is for.

use serde_json::json;

use crate::crash::seed_of_run;
use crate::support::{BINARY, HOST, Lockgate, eventually};

/// No command writes so often.
const FAR: u32 = 150;
const SHOP: &str = "shop.test";
const STAGING: &str = "web-staging.apps.test";

struct Command {
    /// Makes it as it is before, from whatever a command left.
    before: &'static [&'static [&'static str]],
    /// `ONE` is the version before the live one, `PREVIEW` the preview.
    asked: &'static [&'static str],
    /// Where it shows, and what is answered before and after: a version, or the code of a refusal.
    host: &'static str,
    answers: [&'static str; 2],
}

const fn command(
    asked: &'static [&'static str],
    host: &'static str,
    answers: [&'static str; 2],
    before: &'static [&'static [&'static str]],
) -> Command {
    Command { before, asked, host, answers }
}

const DEPLOY_ONE: &[&str] = &["deploy", "web", "--env", "VERSION=one", "--force"];
const DEPLOY_TWO: &[&str] = &["deploy", "web", "--env", "VERSION=two", "--force"];
const DEPLOY_STAGING: &[&str] =
    &["deploy", "web", "--environment", "staging", "--env", "VERSION=staging", "--force"];
const DEPLOY_LATER: &[&str] =
    &["deploy", "web", "--ephemeral", "later", "--ttl", "2h", "--env", "VERSION=later", "--force"];
const DEPLOY_PREVIEW: &[&str] =
    &["deploy", "web", "--ephemeral", "x", "--ttl", "1h", "--env", "VERSION=preview", "--force"];

impl Lockgate {
    /// What a client is answered.
    async fn seen(&self, host: &str) -> String {
        let answer = self.raw(host).await;
        let field = |name: &str| {
            answer.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        let seen =
            field("x-version:").or_else(|| field("lockgate-reason:")).unwrap_or_else(|| answer.clone());
        // Whether a label was there once, is not what is looked at here.
        if seen.starts_with("ephemeral_") { "ephemeral".to_owned() } else { seen }
    }

    /// An app of the API's, with a volume, that serves its name.
    fn open_shop(&self) {
        let settings = json!({
            "health": { "path": "/health" },
            "deploy": { "watch": "50ms", "stop_grace": "5s" },
            "volumes": [{ "name": "data", "path": "/data", "shared": true }],
        });
        let folder = format!("TEST_FOLDER={}", self.folder.path().display());
        let set =
            ["app", "set", "shop", "--host", SHOP, "--settings", &settings.to_string(), "--env", &folder];
        self.done(&[&set[..], &["--env", "VERSION=shop", "--", BINARY, "sample-app"]].concat());
        self.done(&["deploy", "shop"]);
    }

    fn done(&self, arguments: &[&str]) {
        let output = self.cli(arguments);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// All that was begun has ended, and nothing is amiss.
    async fn is_well(&self, told: &str) {
        eventually(&format!("{told}: nothing is amiss"), async || {
            self.operations().await.iter().all(|operation| operation.state.is_end())
                && self.cli(&["doctor"]).status.success()
        })
        .await;
    }
}

/// The arguments with the deployments that are meant by `ONE` and `PREVIEW`.
async fn words(lockgate: &Lockgate, arguments: &[&str]) -> Vec<String> {
    let deployments = lockgate.deployments().await;
    let of_preview = deployments.iter().find(|one| one.label.is_some());
    let one = deployments.iter().find(|one| one.label.is_none() && !one.live);
    let word = |word: &&str| match (*word, one, of_preview) {
        ("ONE", Some(deployment), _) | ("PREVIEW", _, Some(deployment)) => deployment.id.to_string(),
        (other, _, _) => other.to_owned(),
    };
    arguments.iter().map(word).collect()
}

/// Whether the command came as far as its n-th write.
async fn round(lockgate: &mut Lockgate, command: &Command, n: u32) -> bool {
    let told = format!("{:?} at {n}", command.asked);
    for arguments in command.before {
        // Some of them have nothing to do, and say so.
        lockgate.cli(&words(lockgate, arguments).await.iter().map(String::as_str).collect::<Vec<_>>());
    }
    eventually(&format!("{told}: it is as before"), async || {
        lockgate.seen(command.host).await == command.answers[0]
    })
    .await;
    lockgate.is_well(&told).await;
    let words = words(lockgate, command.asked).await;
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    lockgate.kill();
    lockgate.launch(&format!("store.write=kill@{n}"));
    if !lockgate.comes_up().await {
        lockgate.spawn("").await;
        return true;
    }
    let answered = lockgate.cli(&words).status.success();
    let mut died = lockgate.has_ended();
    if !died && answered {
        // It may still be at what comes after the answer.
        eventually(&format!("{told}: it is done or dies"), async || {
            died = lockgate.has_ended();
            died || lockgate.cli(&["doctor"]).status.success()
        })
        .await;
    } else if !died {
        eventually(&format!("{told}: it dies"), async || lockgate.has_ended()).await;
        died = true;
    }
    if !died {
        lockgate.kill();
    }
    lockgate.spawn("").await;
    let seen = lockgate.seen(command.host).await;
    assert!(command.answers.contains(&seen.as_str()), "{told}: {seen}");
    assert!(!answered || seen == command.answers[1], "{told}: it was answered, and {seen}");
    eventually(&format!("{told}: every operation has ended"), async || {
        lockgate.operations().await.iter().all(|operation| operation.state.is_end())
    })
    .await;
    let again = lockgate.cli(&words);
    assert!([Some(0), Some(3)].contains(&again.status.code()), "{told}: {again:?}");
    eventually(&format!("{told}: asked for again it is done"), async || {
        lockgate.seen(command.host).await == command.answers[1]
    })
    .await;
    lockgate.is_well(&told).await;
    died
}

/// At every write with `LOCKGATE_EVERY_POINT`; else at each sixth, from one that the seed says (`LOCKGATE_SEED` repeats a
/// run).
async fn at_each(commands: &[Command]) {
    let (seed, step) =
        if std::env::var_os("LOCKGATE_EVERY_POINT").is_some() { (0, 1) } else { (seed_of_run(), 6) };
    println!("seed {seed}");
    let mut lockgate = Lockgate::prepare(|config| {
        config["apex"] = json!("apps.test");
        config["ephemeral"] = json!({ "max_per_app": 2 });
    });
    lockgate.spawn("").await;
    lockgate.open_shop();
    lockgate.done(DEPLOY_ONE);
    for command in commands {
        let mut n = 1 + u32::try_from(seed % u64::from(step)).unwrap();
        while round(&mut lockgate, command, n).await {
            n += step;
            assert!(n < FAR, "{:?} writes for ever", command.asked);
        }
        println!("{:?}: up to {n} writes with those of the start", command.asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_change_of_host_names_they_are_the_old_ones_or_the_new_ones() {
    at_each(&[
        command(
            &["hosts", "add", "shop", "new.test"],
            "new.test",
            ["no_route", "shop"],
            &[&["hosts", "remove", "shop", "new.test"]],
        ),
        command(
            &["hosts", "remove", "shop", "new.test"],
            "new.test",
            ["shop", "no_route"],
            &[&["hosts", "add", "shop", "new.test"]],
        ),
        command(
            &["hosts", "rename", "shop", SHOP, "other.test"],
            "other.test",
            ["no_route", "shop"],
            &[&["hosts", "rename", "shop", "other.test", SHOP]],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_app_is_renamed_it_has_the_old_name_or_the_new_one() {
    at_each(&[command(
        &["app", "rename", "shop", "store"],
        "store.apps.test",
        ["no_route", "shop"],
        &[&["app", "rename", "store", "shop"]],
    )])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_environment_is_made_or_removed_it_is_there_or_not() {
    at_each(&[
        command(
            DEPLOY_STAGING,
            STAGING,
            ["no_route", "staging"],
            &[&["environment", "remove", "web", "staging"]],
        ),
        command(
            &["environment", "remove", "web", "staging"],
            STAGING,
            ["staging", "no_route"],
            &[DEPLOY_STAGING],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_version_is_deployed_again_or_in_steps_one_of_both_serves_in_the_end() {
    at_each(&[
        command(
            &["deploy", "web", "--version", "ONE", "--force"],
            HOST,
            ["two", "one"],
            &[DEPLOY_ONE, DEPLOY_TWO],
        ),
        command(
            &["deploy", "web", "--version", "ONE", "--ephemeral", "y"],
            "y.web.test",
            ["ephemeral", "one"],
            &[&["schedule", "PREVIEW", "archived"], DEPLOY_ONE, DEPLOY_TWO],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_preview_is_promoted_or_expires_what_was_live_is_or_it_is() {
    at_each(&[
        command(
            &["promote", "web", "--from-preview", "x"],
            HOST,
            ["one", "none"],
            &[DEPLOY_PREVIEW, DEPLOY_ONE],
        ),
        command(
            &["schedule", "PREVIEW", "archived"],
            "x.web.test",
            ["preview", "ephemeral"],
            &[DEPLOY_PREVIEW],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_preview_is_extended_or_evicts_another_there_are_as_many_as_may_be() {
    at_each(&[
        command(
            &["extend", "PREVIEW", "--ttl", "3h"],
            "x.web.test",
            ["preview", "preview"],
            &[DEPLOY_PREVIEW],
        ),
        command(
            &["deploy", "web", "--ephemeral", "new", "--ttl", "3h", "--env", "VERSION=new"],
            "new.web.test",
            ["ephemeral", "new"],
            &[&["schedule", "PREVIEW", "archived"], DEPLOY_PREVIEW, DEPLOY_LATER],
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_app_is_paused_or_switched_off_it_is_open_or_not() {
    at_each(&[
        command(
            &["pause", "web", "--for", "10m", "--queue", "0"],
            HOST,
            ["one", "app_paused"],
            &[&["resume", "web"], DEPLOY_ONE],
        ),
        command(
            &["resume", "web"],
            HOST,
            ["app_paused", "one"],
            &[&["pause", "web", "--for", "10m", "--queue", "0"]],
        ),
        command(
            &["maintenance", "web", "on"],
            HOST,
            ["one", "app_maintenance"],
            &[&["maintenance", "web", "off"]],
        ),
        command(
            &["maintenance", "web", "off"],
            HOST,
            ["app_maintenance", "one"],
            &[&["maintenance", "web", "on"]],
        ),
        command(&["disable", "web"], HOST, ["one", "app_disabled"], &[&["enable", "web"]]),
        command(&["enable", "web"], HOST, ["app_disabled", "one"], &[&["disable", "web"]]),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_an_app_is_removed_with_its_volumes_both_are_there_or_neither_in_the_end() {
    let mut lockgate = Lockgate::start("").await;
    let volume = lockgate.folder.path().join("data/volumes/shop/production/data");
    let removal = command(&["app", "remove", "shop", "--volumes"], SHOP, ["shop", "no_route"], &[]);
    let step = if std::env::var_os("LOCKGATE_EVERY_POINT").is_some() { 1 } else { 4 };
    for n in (1..FAR).step_by(step) {
        lockgate.open_shop();
        std::fs::write(volume.join("kept"), "").unwrap();
        let died = round(&mut lockgate, &removal, n).await;
        if died && lockgate.cli(&["show", "shop"]).status.success() {
            lockgate.cli(removal.asked);
        }
        assert!(
            !volume.exists() || lockgate.cli(&["show", "shop"]).status.success(),
            "{n}: a volume of nobody's"
        );
        if !died {
            return;
        }
    }
    panic!("it writes for ever");
}
