//! What a receipt tells of a swap: what was asked meanwhile, and how long the drain alone took.

use lockgate::deploy::Receipt;

use super::plane::Plane;
use super::*;

fn receipt(operation: Operation) -> Receipt {
    serde_json::from_str(&operation.receipt.unwrap()).unwrap()
}

#[tokio::test]
async fn a_receipt_counts_what_was_asked_of_both_versions_from_the_cutover_to_the_end_of_the_drain() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(60)).await;
    let plane = Plane::before(&bed);
    bed.deploy_held(&["serve", "1"]).await;
    plane.get_often(3).await;
    // In flight at the cutover: it is answered by the old version, while that drains.
    let held = bed.request(HOST);
    let mut second = bed.submit(&["serve", "2"]).await;
    let new = second.deployment.unwrap().to_string();
    eventually("it is live", async || bed.serves(HOST) == Ok(new.clone())).await;
    plane.get_often(2).await;
    let instance = bed.backend(HOST).unwrap().targets[0].id;
    bed.clock.leap(Duration::from_secs(60));
    within(second.reached(Progress::CutOver)).await;
    bed.runtime.set_sick(instance, true);
    plane.get_often(1).await;
    bed.runtime.set_sick(instance, false);
    drop(held);
    let during = receipt(bed.ended(&mut second).await).requests_during;
    assert_eq!((during.total, during.failed), (3, 1));
    plane.shutdown().await;
}

#[tokio::test]
async fn a_drain_with_nothing_in_flight_takes_no_time_however_long_the_watch() {
    let bed = Bed::with(|settings| settings.deploy.watch = Delay::seconds(60)).await;
    bed.deploy_held(&["serve", "1"]).await;
    let mut second = bed.submit(&["serve", "2"]).await;
    bed.watched_to_the_end(&second).await;
    // By the machine's clock: no leap counts for the drain.
    let operation = bed.ended(&mut second).await;
    let drain_ms = receipt(operation).drain_ms.unwrap();
    assert!(drain_ms < 30_000, "it counts the watch: {drain_ms} ms");
}

impl Bed {
    /// Deploys, and lets the watch pass as soon as the version is live.
    pub(crate) async fn deploy_held(&self, command: &[&str]) -> (DeploymentId, Operation) {
        let mut submitted = self.submit(command).await;
        let operation = self.held(&mut submitted).await;
        (submitted.deployment.unwrap(), operation)
    }

    /// Lets the watch of an operation pass as soon as it has begun: what was asked until then is looked at once more.
    pub(crate) async fn held(&self, submitted: &mut Submitted) -> Operation {
        self.watched_to_the_end(submitted).await;
        self.ended_in_time(submitted).await
    }

    async fn watched_to_the_end(&self, submitted: &Submitted) {
        eventually("it is watched", async || {
            let steps = self.store.steps(&submitted.operation).await.unwrap();
            steps.iter().any(|step| step.name == "watch")
        })
        .await;
        // It counts from the cutover, so that one leap is enough.
        let deployment = self.store.deployment(&submitted.deployment.unwrap()).await.unwrap().unwrap();
        self.clock.leap(deployment.settings.deploy.watch.0);
    }
}
