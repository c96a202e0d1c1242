//! Another name for an app: what changes with it, and that nothing else does.

use lockgate::deploy::Volumes;
use lockgate::runtime::VolumeScope;
use lockgate::settings::Secret;

use super::*;

fn shop() -> AppName {
    "shop".parse().unwrap()
}

async fn with_apex() -> Bed {
    let options = Options { apex: Some("apps.test".parse().unwrap()), ..Options::default() };
    Bed::with_options(options, |settings| {
        settings.env.insert("TOKEN".to_owned(), Secret::new("canary"));
    })
    .await
}

#[tokio::test]
async fn a_renamed_app_goes_on_as_it_was_and_its_generated_names_change() {
    let bed = with_apex().await;
    let (one, _) = bed.deploy(&["serve", "1"]).await;
    let label = Some("feat".parse().unwrap());
    let mut preview = bed.try_submit(DeployRequest { label, ..request(&["serve", "2"]) }).await.unwrap();
    bed.ended(&mut preview).await;
    let target = bed.backend(HOST).unwrap().targets[0].clone();
    let (held, told) = (bed.request(HOST), bed.runtime.told().len());
    bed.engine.rename_app(&app(), &shop()).await.unwrap();
    assert!(Arc::ptr_eq(&bed.backend(HOST).unwrap().targets[0], &target) && !target.gate.is_closed());
    assert_eq!(target.gate.in_flight().requests, 1);
    drop(held);
    assert_eq!(bed.runtime.told().len(), told, "an instance was touched");
    let own = format!("shop-{}.apps.test", one.short());
    for host in [HOST, "shop.apps.test", own.as_str()] {
        assert_eq!(bed.serves(host), Ok(one.to_string()), "{host}");
        let labels = bed.backend(host).unwrap().stats.labels.clone().unwrap();
        assert_eq!(labels.app, "shop", "{host}");
    }
    assert_eq!(bed.serves("feat.web.test"), Ok(preview.deployment.unwrap().to_string()));
    assert_eq!(bed.backend("web.apps.test").unwrap_err(), Miss::NoRoute);
    assert!(bed.store.app(&app()).await.unwrap().is_none());
    let env = bed.store.app(&shop()).await.unwrap().unwrap().settings.env;
    assert_eq!(env["TOKEN"].expose(), "canary");

    let bed = bed.restart().await;
    assert_eq!(bed.serves(HOST), Ok(one.to_string()));
    assert_eq!(bed.runtime.told().len(), told, "an instance was touched");
    let again = DeployRequest { app: Some(shop()), ..request(&["serve", "3"]) };
    let mut two = bed.try_submit(again).await.unwrap();
    assert_eq!(bed.ended(&mut two).await.state, OperationState::Succeeded);
    assert_eq!(bed.serves("shop.apps.test"), Ok(two.deployment.unwrap().to_string()));
    let specs = bed.runtime.specs();
    assert!(specs.iter().all(|spec| spec.app == app()), "the runtime knows it by another name");
}

#[tokio::test]
async fn an_app_with_the_name_that_another_one_had_shares_nothing_with_it() {
    let bed = with_apex().await;
    bed.deploy(&["serve", "1"]).await;
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    bed.engine.rename_app(&app(), &shop()).await.unwrap();
    web.hosts.clear();
    bed.engine.put_apps(&[web]).await.unwrap();
    let (two, _) = bed.deploy(&["serve", "2"]).await;
    assert_eq!(bed.serves("web.apps.test"), Ok(two.to_string()));
    let names: Vec<_> = bed.runtime.specs().iter().map(|spec| spec.app.to_string()).collect();
    assert_eq!(names, ["web", "web-2"]);
    bed.engine.remove_app(&app(), Volumes::Remove).await.unwrap();
    eventually("it is gone", async || bed.store.app(&app()).await.unwrap().is_none()).await;
    let scope = VolumeScope { app: "web-2".parse().unwrap(), of: None };
    assert!(bed.runtime.told().contains(&Told::RemoveVolumes(scope)));
    assert!(bed.store.app(&shop()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_name_that_is_taken_and_an_app_that_is_busy_or_not_there_change_nothing() {
    let bed = with_apex().await;
    bed.deploy(&["serve", "1"]).await;
    let mut other = bed.store.app(&app()).await.unwrap().unwrap();
    (other.name, other.hosts) = (shop(), Vec::new());
    bed.engine.put_apps(&[other]).await.unwrap();
    let denied = bed.engine.rename_app(&app(), &shop()).await.unwrap_err();
    assert_eq!(denied.code(), "app_exists");
    let nobody: AppName = "nobody".parse().unwrap();
    assert_eq!(bed.engine.rename_app(&nobody, &shop()).await.unwrap_err().code(), "app_not_found");
    let held = bed.request(HOST);
    let mut second = bed.submit(&["serve", "2"]).await;
    within(second.reached(Progress::CutOver)).await;
    let denied = bed.engine.rename_app(&app(), &nobody).await.unwrap_err();
    assert_eq!(denied.code(), "operation_in_progress", "it drains");
    drop(held);
    bed.ended(&mut second).await;
    assert_eq!(bed.serves("web.apps.test"), Ok(second.deployment.unwrap().to_string()));
    bed.engine.rename_app(&app(), &nobody).await.unwrap();
    assert_eq!(bed.serves("nobody.apps.test"), Ok(second.deployment.unwrap().to_string()));
}
