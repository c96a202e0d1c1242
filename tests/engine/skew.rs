//! Skew protection: which versions the requests of a page may go to, and from when on not any more.

use lockgate::deploy::{MaintenanceRequest, RollbackRequest};
use lockgate::settings::{SkewProtection, Strategy};

use super::plane::Plane;
use super::*;

struct Protected {
    bed: Bed,
    plane: Plane,
}

impl Protected {
    async fn new() -> Self {
        let bed = Bed::with(|settings| settings.skew_protection = Some(SkewProtection::default())).await;
        let plane = Plane::before(&bed);
        Self { bed, plane }
    }

    /// The version that a part of a page of `deployment` comes from.
    async fn part_of(&self, deployment: DeploymentId) -> String {
        version(&self.plane.get(&format!("Cookie: __lockgate_deployment={deployment}\r\n")).await)
    }

    async fn parts_of<const N: usize>(&self, deployments: [DeploymentId; N]) -> [String; N] {
        let mut versions = [const { String::new() }; N];
        for (version, deployment) in versions.iter_mut().zip(deployments) {
            *version = self.part_of(deployment).await;
        }
        versions
    }

    async fn everybody(&self) -> String {
        version(&self.plane.get("").await)
    }
}

fn version(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("x-version: "));
    line.unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

#[tokio::test]
async fn pages_stay_with_earlier_versions_of_their_environment_and_with_no_other() {
    let it = Protected::new().await;
    let (one, _) = it.bed.deploy(&["serve", "1"]).await;
    let (two, _) = it.bed.deploy(&["serve", "2"]).await;
    let old = it.bed.backend(HOST).unwrap();
    let (three, _) = it.bed.deploy(&["serve", "3"]).await;
    assert!(old.targets[0].gate.is_closed());
    assert_eq!(it.parts_of([one, two, three]).await, ["1", "2", "3"]);
    assert_eq!(it.everybody().await, "3");
    // Never live, a preview, and of another environment.
    let mut beside =
        it.bed.try_submit(DeployRequest { cutover: false, ..request(&["serve", "4"]) }).await.unwrap();
    it.bed.ended(&mut beside).await;
    let label = Some("feat".parse().unwrap());
    let mut preview = it.bed.try_submit(DeployRequest { label, ..request(&["serve", "5"]) }).await.unwrap();
    it.bed.ended(&mut preview).await;
    let environment = Some("staging".parse().unwrap());
    let mut staging =
        it.bed.try_submit(DeployRequest { environment, ..request(&["serve", "6"]) }).await.unwrap();
    it.bed.ended(&mut staging).await;
    let others = [&beside, &preview, &staging].map(|submitted| submitted.deployment.unwrap());
    assert_eq!(it.parts_of(others).await, ["3", "3", "3"]);
    // What was never live is not reached either once another version is.
    let (_seven, _) = it.bed.deploy(&["serve", "7"]).await;
    assert_eq!(it.parts_of([one, three, others[0]]).await, ["1", "3", "7"]);
    // A start serves pages as before.
    let Protected { bed, plane } = it;
    plane.shutdown().await;
    let bed = bed.restart().await;
    let it = Protected { plane: Plane::before(&bed), bed };
    assert_eq!(it.parts_of([one, three, others[0]]).await, ["1", "3", "7"]);
    it.plane.shutdown().await;
}

#[tokio::test]
async fn a_page_leaves_its_version_unnoticed_when_that_goes_to_rest_at_its_time() {
    let it = Protected::new().await;
    let (one, _) = it.bed.deploy(&["serve", "1"]).await;
    let instance = it.bed.backend(HOST).unwrap().targets[0].id;
    it.bed.deploy(&["serve", "2"]).await;
    let stream = it.plane.ask(&format!("Cookie: __lockgate_deployment={one}\r\n")).await;
    assert_eq!(version(&Plane::rest(stream).await), "1");
    let request = lockgate::deploy::ScheduleRequest {
        state: lockgate::deploy::ScheduledState::Standby,
        delay: Delay::seconds(0),
        overwrite: true,
    };
    it.bed.engine.schedule(one, &request).await.unwrap();
    let stopped = Told::Stop(instance);
    eventually("it is stopped", async || {
        let version = it.part_of(one).await;
        assert!(version == "1" || version == "2", "{version}");
        it.bed.runtime.told().contains(&stopped)
    })
    .await;
    assert_eq!(it.part_of(one).await, "2");
    let starts = it.bed.runtime.told().iter().filter(|told| matches!(told, Told::Start(_))).count();
    assert_eq!(starts, 2, "it was woken");
    it.plane.shutdown().await;
}

#[tokio::test]
async fn who_went_back_from_a_version_has_its_pages_leave_it_too() {
    let it = Protected::new().await;
    let (_one, _) = it.bed.deploy(&["serve", "1"]).await;
    let (two, _) = it.bed.deploy(&["serve", "2"]).await;
    let back = RollbackRequest { app: Some(app()), ..RollbackRequest::default() };
    let mut back = it.bed.engine.submit(Command::Rollback(back), caller()).await.unwrap();
    it.bed.ended(&mut back).await;
    assert_eq!((it.everybody().await, it.part_of(two).await), ("1".to_owned(), "1".to_owned()));
    assert_eq!(it.bed.status(two).await.1, DesiredState::Running, "it runs until a promote");
    it.plane.shutdown().await;
}

#[tokio::test]
async fn a_version_that_did_not_hold_keeps_none_of_its_pages() {
    let it = Protected::new().await;
    let (one, _) = it.bed.deploy(&["serve", "1"]).await;
    let mut web = it.bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.deploy.watch = Delay::seconds(60);
    it.bed.engine.put_apps(std::slice::from_ref(&web)).await.unwrap();
    let mut two = it.bed.submit(&["serve", "2"]).await;
    let id = two.deployment.unwrap();
    eventually("it is live", async || it.bed.serves(HOST) == Ok(id.to_string())).await;
    assert_eq!(it.parts_of([one, id]).await, ["1", "2"]);
    let in_flight = it.bed.request(HOST);
    it.bed.runtime.set_sick(it.bed.runtime.of(id)[0], true);
    assert_eq!(it.bed.ended(&mut two).await.state, OperationState::RolledBack);
    assert_eq!(it.bed.runtime.of(id).len(), 1, "it drains");
    assert_eq!(it.parts_of([one, id]).await, ["1", "1"]);
    drop(in_flight);
    it.plane.shutdown().await;
}

#[tokio::test]
async fn while_the_app_is_in_maintenance_nobody_gets_by_with_a_page_of_an_earlier_version() {
    let it = Protected::new().await;
    let (one, _) = it.bed.deploy(&["serve", "1"]).await;
    it.bed.deploy(&["serve", "2"]).await;
    let request = MaintenanceRequest { on: true, ..MaintenanceRequest::default() };
    it.bed.engine.maintain(&app(), &request).await.unwrap();
    let answer = it.plane.get(&format!("Cookie: __lockgate_deployment={one}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    it.plane.shutdown().await;
}

#[tokio::test]
async fn pages_are_marked_only_where_the_live_version_asks_for_it() {
    let it = Protected::new().await;
    let (one, _) = it.bed.deploy(&["serve", "1"]).await;
    let mut web = it.bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.skew_protection = None;
    it.bed.engine.put_apps(std::slice::from_ref(&web)).await.unwrap();
    it.bed.deploy(&["serve", "2"]).await;
    assert_eq!(it.part_of(one).await, "2");
    web.settings.skew_protection = Some(SkewProtection::default());
    web.settings.deploy.strategy = Strategy::Hold;
    let denied = it.bed.engine.put_apps(&[web]).await.unwrap_err();
    assert!(matches!(&denied, Denied::Invalid { field, .. } if field == "skew_protection"), "{denied:?}");
    it.plane.shutdown().await;
}
