//! The release command: once for each deploy, before its instances start, and of what it leaves nothing stays.

use lockgate::runtime::InstanceSpec;

use super::*;

fn releasing(command: &'static [&'static str]) -> impl FnOnce(&mut AppSettings) {
    move |settings| settings.release_command = command.iter().map(|word| (*word).to_owned()).collect()
}

/// The release commands that were begun.
fn releases(bed: &Bed) -> Vec<InstanceSpec> {
    let is_release = |spec: &InstanceSpec| matches!(spec.command[1..], [ref word] if word == "migrate");
    bed.runtime.specs().into_iter().filter(is_release).collect()
}

#[tokio::test]
async fn it_runs_once_before_the_instances_start_in_their_environment_and_is_removed() {
    let bed = Bed::with(|settings| {
        settings.env.insert("DATABASE".into(), lockgate::settings::Secret::new("db"));
        releasing(&["done", "migrate"])(settings);
    })
    .await;
    let (deployment, operation) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    let specs = bed.runtime.specs();
    assert_eq!(specs.iter().map(|spec| spec.command[0].as_str()).collect::<Vec<_>>(), ["done", "serve"]);
    let [release, serving] = &specs[..] else { panic!("{specs:?}") };
    assert_eq!(release.env, serving.env);
    assert_eq!(release.env.get("DATABASE").map(String::as_str), Some("db"));
    assert_eq!(release.env.get("LOCKGATE_URL").map(String::as_str), Some("http://web.test"));
    assert_eq!((release.deployment, release.operation), (deployment, operation.id), "it is labelled");
    assert!(bed.runtime.told().contains(&Told::Remove(release.id)));
    assert_eq!((bed.runtime.known(), bed.store.instances(None).await.unwrap().len()), (1, 1));
    let steps = bed.store.steps(&operation.id).await.unwrap();
    let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["image", "release", "start", "check", "gate", "swap", "watch"]);
    assert_eq!(steps[1].detail.as_deref(), Some("exit code 0\nlog: the last line it wrote"));
}

#[tokio::test]
async fn it_fails_the_deploy_with_what_it_said_and_nothing_is_started() {
    let bed = Bed::with(releasing(&["exit", "migrate"])).await;
    let (failed, operation) = bed.deploy(&["serve", "1"]).await;
    let failure = operation.failure.unwrap();
    assert_eq!((operation.state, failure.code.as_str()), (OperationState::Failed, "release_failed"));
    assert!(failure.cause.contains("exited with code 3"), "{failure:?}");
    assert!(failure.evidence.iter().any(|line| line.contains("the last line it wrote")), "{failure:?}");
    assert_eq!(bed.status(failed).await.0, DeploymentStatus::Failed);
    let starts = bed.runtime.told().iter().filter(|told| matches!(told, Told::Start(_))).count();
    assert_eq!((starts, bed.runtime.known()), (1, 0));
    assert_eq!(bed.store.instances(None).await.unwrap(), []);
}

#[tokio::test]
async fn one_that_does_not_end_in_its_own_time_is_stopped_and_fails_the_deploy() {
    let bed = Bed::with(|settings| {
        settings.deploy.release_timeout = Delay::seconds(100);
        releasing(&["deaf", "migrate"])(settings);
    })
    .await;
    let mut submitted = bed.submit(&["serve", "1"]).await;
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    // Past the limit of readiness, which is not its own.
    bed.clock.leap(Duration::from_secs(30));
    eventually("it is looked at again", async || releases(&bed).len() == 1).await;
    let running = bed.store.operation(&submitted.operation).await.unwrap().unwrap();
    assert_eq!(running.state, OperationState::Running, "{running:?}");
    bed.clock.leap(Duration::from_secs(71));
    let operation = bed.ended(&mut submitted).await;
    assert_eq!(operation.failure.map(|failure| failure.code).as_deref(), Some("release_timed_out"));
    let release = releases(&bed)[0].id;
    let told = bed.runtime.told();
    assert_eq!(told, [Told::Start(release), Told::Stop(release), Told::Remove(release)]);
}

#[tokio::test]
async fn a_deploy_that_is_cancelled_while_it_runs_stops_it() {
    let bed = Bed::with(releasing(&["deaf", "migrate"])).await;
    let mut submitted = bed.submit(&["serve", "1"]).await;
    eventually("it runs", async || !bed.runtime.running().is_empty()).await;
    bed.engine.cancel(submitted.operation).await.unwrap();
    assert_eq!(bed.ended(&mut submitted).await.state, OperationState::Cancelled);
    assert_eq!((bed.runtime.known(), releases(&bed).len()), (0, 1));
    assert_eq!(bed.store.instances(None).await.unwrap(), []);
}

#[tokio::test]
async fn only_a_deploy_runs_it_not_a_swap_a_rollback_or_an_equal_deploy() {
    let bed = Bed::with(releasing(&["done", "migrate"])).await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    assert_eq!(releases(&bed).len(), 2);
    let mut swap = bed.swap(one).await.unwrap();
    assert_eq!(bed.ended(&mut swap).await.state, OperationState::Succeeded);
    let (_, again) = bed.deploy(&["serve", "1"]).await;
    assert_eq!(again.failure.map(|failure| failure.code).as_deref(), Some("noop"));
    assert_eq!(releases(&bed).len(), 2);
}
