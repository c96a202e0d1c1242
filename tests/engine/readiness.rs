//! What each readiness mode waits for and refuses, what the watch after the cutover looks at, and a drain that only
//! waits.

use lockgate::settings::{DrainMode, ReadinessMode};
use lockgate::store::{Failure, Step};

use super::*;

/// The app with readiness `mode`, watched for no time: what the watch would find is not what is tested.
async fn judged(mode: ReadinessMode, path: Option<&str>, change: impl FnOnce(&mut AppSettings)) -> Bed {
    Bed::with(|settings| {
        settings.deploy.readiness_mode = mode;
        settings.health.path = path.map(str::to_owned);
        settings.deploy.health_timeout = Delay::seconds(60);
        settings.deploy.watch = Delay::seconds(0);
        change(settings);
    })
    .await
}

impl Bed {
    /// Deploys what is ready in time on however busy a machine, or never is, for which its time passes.
    async fn deploy_judged(&self, command: &[&str], is_ready: bool) -> Operation {
        let mut submitted = self.submit(command).await;
        if is_ready { self.ended(&mut submitted).await } else { self.ended_in_time(&mut submitted).await }
    }
}

fn failed_by(operation: Operation) -> Failure {
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    operation.failure.unwrap()
}

impl Bed {
    async fn step_of(&self, operation: &Operation, name: &str) -> Step {
        let steps = self.store.steps(&operation.id).await.unwrap();
        steps.into_iter().find(|step| step.name == name).unwrap()
    }

    /// The clock, which is stopped, goes on in small pieces until the operation has ended.
    async fn passes(&self, submitted: &mut Submitted) -> Operation {
        let going_on = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.clock.leap(Duration::from_millis(500));
            }
        };
        tokio::select! {
            operation = self.ended(submitted) => operation,
            () = going_on => unreachable!(),
        }
    }
}

fn lasted(step: &Step) -> Duration {
    Duration::try_from(step.ended_at.unwrap().duration_since(step.began_at)).unwrap()
}

#[tokio::test]
async fn a_mode_that_asks_for_what_is_not_there_fails_and_says_what_to_do() {
    for (mode, command, code, remedy) in [
        (ReadinessMode::Http, ["serve", ""], "no_health_path", "health.path"),
        (ReadinessMode::DockerHealth, ["serve", ""], "no_health_check", "HEALTHCHECK"),
    ] {
        let bed = judged(mode, None, |_| {}).await;
        let (deployment, operation) = bed.deploy(&command).await;
        let failure = failed_by(operation);
        assert_eq!(failure.code, code);
        assert!(failure.remedy.unwrap().contains(remedy));
        assert_eq!((bed.status(deployment).await.0, bed.runtime.known()), (DeploymentStatus::Failed, 0));
    }
}

/// Each of them is well by one measure and ill by the others.
#[tokio::test]
async fn each_mode_looks_at_its_own_measure() {
    let answers_500 = ["sick", ""];
    let says_healthy = ["container", "healthy"];
    let says_starting = ["container", "starting"];
    let path = Some("/up");
    for (mode, path, command, is_ready) in [
        (ReadinessMode::Tcp, path, answers_500, true),
        (ReadinessMode::Tcp, path, ["deaf", ""], false),
        (ReadinessMode::Http, path, answers_500, false),
        (ReadinessMode::Http, path, says_healthy, false),
        (ReadinessMode::DockerHealth, path, says_healthy, true),
        (ReadinessMode::DockerHealth, path, says_starting, false),
        // The image's own check before the path, the path before the port.
        (ReadinessMode::Auto, path, says_healthy, true),
        (ReadinessMode::Auto, path, says_starting, false),
        (ReadinessMode::Auto, path, answers_500, false),
        (ReadinessMode::Auto, None, answers_500, true),
        (ReadinessMode::Auto, None, ["deaf", ""], false),
    ] {
        let bed = judged(mode, path, |_| {}).await;
        let operation = bed.deploy_judged(&command, is_ready).await;
        assert_eq!(operation.state.is_success(), is_ready, "{mode:?}, {path:?}, {command:?}: {operation:?}");
        if !is_ready {
            assert_eq!(failed_by(operation).code, "not_ready", "{mode:?}, {path:?}, {command:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_is_a_success_if_the_app_says_so() {
    for (status, answers, is_ready) in
        [("200-299", "302", false), ("200-399", "302", true), ("302", "302", true), ("302", "200", false)]
    {
        let bed = judged(ReadinessMode::Http, Some("/up"), |settings| {
            settings.health.status = status.parse().unwrap();
        })
        .await;
        let operation = bed.deploy_judged(&["answers", answers], is_ready).await;
        assert_eq!(operation.state.is_success(), is_ready, "{answers} of {status}: {operation:?}");
    }
}

#[tokio::test]
async fn a_health_command_is_refused_where_nobody_would_run_it() {
    let bed = judged(ReadinessMode::Auto, Some("/up"), |_| {}).await;
    let mut changed = bed.store.app(&app()).await.unwrap().unwrap();
    changed.settings.health.command = vec!["/check".to_owned()];
    bed.engine.put_apps(&[changed]).await.unwrap();
    let denied = bed.try_submit(request(&["serve", "1"])).await.unwrap_err();
    assert!(matches!(&denied, Denied::Invalid { field, .. } if field == "health.command"), "{denied:?}");
}

#[tokio::test]
async fn a_refused_connection_is_told_with_the_port_that_is_listened_on() {
    let bed = judged(ReadinessMode::Tcp, None, |_| {}).await;
    let failure = failed_by(bed.deploy_judged(&["deaf", ""], false).await);
    let told = failure.evidence.join(" ");
    assert!(told.contains("but it listens on 9"), "{told}");
    assert!(failure.remedy.unwrap().contains("PORT"));
}

#[tokio::test]
async fn a_container_that_says_unhealthy_is_not_waited_for() {
    let bed = judged(ReadinessMode::Auto, None, |_| {}).await;
    bed.clock.stop();
    let (_, operation) = bed.deploy(&["container", "unhealthy"]).await;
    let failure = failed_by(operation);
    assert_eq!(failure.code, "unhealthy");
    assert!(failure.evidence.iter().any(|line| line.contains("the last line it wrote")), "{failure:?}");
}

#[tokio::test]
async fn an_instance_is_ready_after_so_many_successes_in_a_row() {
    let bed = judged(ReadinessMode::Http, Some("/up"), |settings| {
        settings.health.successes = 3;
    })
    .await;
    let (_, operation) = bed.deploy(&["answers", "500", "200", "200", "500", "200"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(bed.runtime.answered(bed.runtime.running()[0]), 7);
}

/// `delay` by name, and `auto` where there is neither a health check nor a port.
#[tokio::test]
async fn a_delay_is_waited_for_and_then_enough() {
    for (mode, command, timeout) in [
        (ReadinessMode::Delay, ["deaf", ""], 60),
        (ReadinessMode::Auto, ["portless", ""], 60),
        // The limit is for those that may never be ready.
        (ReadinessMode::Delay, ["deaf", ""], 1),
    ] {
        let bed = judged(mode, Some("/up"), |settings| {
            settings.deploy.readiness_delay = Delay::seconds(5);
            settings.deploy.health_timeout = Delay::seconds(timeout);
        })
        .await;
        bed.clock.stop();
        // Without a port it cannot take the traffic.
        let mut submitted =
            bed.try_submit(DeployRequest { cutover: false, ..request(&command) }).await.unwrap();
        let operation = bed.passes(&mut submitted).await;
        assert_eq!(operation.state, OperationState::Succeeded, "{mode:?}, {timeout}: {operation:?}");
        let lasted = lasted(&bed.step_of(&operation, "check").await);
        assert!(lasted >= Duration::from_secs(5), "{mode:?}: ready after {lasted:?}");
    }
}

#[tokio::test]
async fn an_exit_during_the_delay_fails() {
    let bed = judged(ReadinessMode::Delay, None, |settings| {
        settings.deploy.readiness_delay = Delay::seconds(3600);
    })
    .await;
    let mut submitted = bed.submit(&["serve", "1"]).await;
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    bed.runtime.end(bed.runtime.running()[0]);
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(failed_by(operation).code, "instance_exited");
    assert_eq!(bed.runtime.known(), 0);
}

#[tokio::test]
async fn a_check_that_fails_in_the_watch_takes_the_traffic_back() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(60)).await;
    let mut submitted = bed.submit(&["serve", "1"]).await;
    let first = submitted.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(first.to_string())).await;
    bed.clock.leap(Duration::from_secs(60));
    bed.ended(&mut submitted).await;
    let old = bed.backend(HOST).unwrap().targets[0].clone();
    let (second, operation) = bed.deploy(&["answers", "200", "500"]).await;
    assert_eq!(operation.state, OperationState::RolledBack, "{operation:?}");
    let failure = operation.failure.unwrap();
    assert_eq!(failure.code, "unhealthy");
    assert!(failure.cause.contains("answered 500"), "{failure:?}");
    assert_eq!((bed.serves(HOST), old.gate.is_closed()), (Ok(first.to_string()), false));
    assert_eq!(bed.status(second).await.0, DeploymentStatus::Failed);
    eventually("the new instance is gone", async || bed.runtime.known() == 1).await;
}

#[tokio::test]
async fn a_check_that_fails_less_often_than_the_limit_in_a_row_holds() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(2)).await;
    let (_, operation) = bed.deploy(&["answers", "200", "500", "500", "200", "500", "500", "200"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
}

#[tokio::test]
async fn a_version_drains_by_its_own_settings_not_by_its_successors() {
    let bed = Bed::with(|settings| {
        settings.deploy.watch = Delay::seconds(0);
        settings.deploy.drain_mode = DrainMode::Delay;
        settings.deploy.drain_delay = Delay::seconds(5);
    })
    .await;
    bed.deploy(&["serve", "1"]).await;
    let mut changed = bed.store.app(&app()).await.unwrap().unwrap();
    changed.settings.deploy.drain_mode = DrainMode::Inflight;
    bed.engine.put_apps(&[changed]).await.unwrap();
    bed.clock.stop();
    let mut second = bed.submit(&["serve", "2"]).await;
    let operation = bed.passes(&mut second).await;
    let receipt: lockgate::deploy::Receipt = serde_json::from_str(&operation.receipt.unwrap()).unwrap();
    assert!(receipt.drain_ms >= Some(5000), "{:?}", receipt.drain_ms);
}

#[tokio::test]
async fn a_drain_by_delay_lasts_that_long_though_nothing_is_in_flight() {
    let bed = Bed::with(|settings| {
        settings.deploy.watch = Delay::seconds(0);
        settings.deploy.drain_mode = DrainMode::Delay;
        settings.deploy.drain_delay = Delay::seconds(5);
    })
    .await;
    bed.deploy(&["serve", "1"]).await;
    bed.clock.stop();
    let mut second = bed.submit(&["serve", "2"]).await;
    within(second.reached(Progress::CutOver)).await;
    bed.clock.leap(Duration::from_secs(1));
    bed.looked().await;
    let operation = bed.store.operation(&second.operation).await.unwrap().unwrap();
    assert!(!operation.state.is_end(), "it ended before its delay: {operation:?}");
    let operation = bed.passes(&mut second).await;
    let receipt: lockgate::deploy::Receipt = serde_json::from_str(&operation.receipt.unwrap()).unwrap();
    assert!(receipt.drain_ms >= Some(5000), "{:?}", receipt.drain_ms);
}

#[tokio::test]
async fn what_an_instance_writes_of_its_env_vars_is_told_by_their_names() {
    let env = || [("HIDDEN".to_owned(), lockgate::settings::Secret::new("the last line it"))].into();
    let told = |failure: Failure| format!("{} {:?} {:?}", failure.cause, failure.evidence, failure.remedy);
    for command in [["exit", ""], ["deaf", ""]] {
        let bed = Bed::new().await;
        let mut failing = bed.try_submit(DeployRequest { env: env(), ..request(&command) }).await.unwrap();
        let told = told(bed.ended_in_time(&mut failing).await.failure.unwrap());
        assert!(told.contains("log: [HIDDEN] wrote") && !told.contains("the last line"), "{told}");
    }
    let bed = Bed::with(|settings| settings.deploy.watch = WATCH).await;
    bed.deploy_held(&["serve", "1"]).await;
    let mut ending = bed.try_submit(DeployRequest { env: env(), ..request(&["serve", "2"]) }).await.unwrap();
    let second = ending.deployment.unwrap();
    eventually("it is live", async || bed.serves(HOST) == Ok(second.to_string())).await;
    bed.runtime.end(bed.runtime.of(second)[0]);
    let told = told(bed.ended(&mut ending).await.failure.unwrap());
    assert!(told.contains("log: [HIDDEN] wrote") && !told.contains("the last line"), "{told}");
}
