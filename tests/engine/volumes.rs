//! When volumes are removed: with the last deployment of a preview, and with an app only where that is asked for.

use lockgate::deploy::{FindingKind, Volumes};
use lockgate::runtime::VolumeScope;
use lockgate::settings::VolumeSettings;

use super::*;

async fn with_volume() -> Bed {
    Bed::with(|settings| {
        settings.volumes = vec![VolumeSettings {
            name: "data".to_owned(),
            path: "/data".to_owned(),
            shared: true,
            ..VolumeSettings::default()
        }];
        settings.deploy.standby_after = Delay::seconds(0);
        settings.deploy.archive_after = Delay::seconds(0);
    })
    .await
}

impl Bed {
    async fn feat(&self, version: &str) -> DeploymentId {
        let request = DeployRequest { label: Some("feat".parse().unwrap()), ..request(&["serve", version]) };
        let mut submitted = self.try_submit(request).await.unwrap();
        assert_eq!(self.ended(&mut submitted).await.state, OperationState::Succeeded);
        submitted.deployment.unwrap()
    }

    fn removed(&self) -> Vec<VolumeScope> {
        let removed = |told| if let Told::RemoveVolumes(scope) = told { Some(scope) } else { None };
        self.runtime.told().into_iter().filter_map(removed).collect()
    }
}

#[tokio::test]
async fn every_instance_has_the_apps_volumes_and_a_previews_are_its_own() {
    let bed = with_volume().await;
    bed.deploy(&["serve", "1"]).await;
    bed.feat("2").await;
    let specs = bed.runtime.specs();
    assert!(specs.iter().all(|spec| spec.volumes.len() == 1 && spec.volumes[0].path == "/data"));
    let labels: Vec<_> = specs.iter().map(|spec| spec.label.as_ref().map(ToString::to_string)).collect();
    assert_eq!(labels, [None, Some("feat".to_owned())]);
    assert_eq!(bed.runtime.volumes.lock().unwrap().len(), 2);
    let findings = bed.engine.doctor().await.unwrap();
    assert!(findings.iter().all(|finding| finding.kind != FindingKind::StrayVolume), "{findings:?}");
}

#[tokio::test]
async fn a_previews_volumes_go_with_its_last_deployment_and_the_apps_stay() {
    let bed = with_volume().await;
    bed.deploy(&["serve", "1"]).await;
    bed.deploy(&["serve", "2"]).await;
    let first = bed.feat("3").await;
    bed.feat("4").await;
    eventually("the first one is gone", async || bed.runtime.of(first).is_empty()).await;
    assert_eq!(bed.removed(), [], "another deployment has them");
    bed.clock.leap(Duration::from_secs(25 * 60 * 60));
    eventually("they go with the preview", async || !bed.removed().is_empty()).await;
    let of = Some((EnvironmentName::production(), Some("feat".parse().unwrap())));
    assert_eq!(bed.removed(), [VolumeScope { app: app(), of }]);
}

#[tokio::test]
async fn a_removal_that_a_restart_interrupted_goes_on_with_the_volumes_unless_the_app_is_put_again() {
    for is_put_again in [false, true] {
        let bed = with_volume().await;
        bed.deploy(&["serve", "1"]).await;
        let web = bed.store.app(&app()).await.unwrap().unwrap();
        bed.runtime.set_away(true);
        bed.engine.remove_app(&app(), Volumes::Remove).await.unwrap();
        if is_put_again {
            bed.store.put_apps(&[web]).await.unwrap();
        }
        let bed = bed.restart().await;
        assert_eq!(bed.removed(), []);
        bed.runtime.set_away(false);
        eventually("its instance is gone", async || bed.runtime.known() == 0).await;
        if is_put_again {
            assert!(bed.store.removals().await.unwrap().is_empty());
            assert_eq!(bed.removed(), []);
        } else {
            eventually("it is gone", async || bed.store.app(&app()).await.unwrap().is_none()).await;
            assert_eq!(bed.removed(), [VolumeScope { app: app(), of: None }]);
        }
    }
}

#[tokio::test]
async fn an_apps_volumes_go_with_it_only_if_that_is_asked_for() {
    for (volumes, removed) in
        [(Volumes::Keep, vec![]), (Volumes::Remove, vec![VolumeScope { app: app(), of: None }])]
    {
        let bed = with_volume().await;
        bed.deploy(&["serve", "1"]).await;
        bed.engine.remove_app(&app(), volumes).await.unwrap();
        eventually("it is gone", async || bed.store.app(&app()).await.unwrap().is_none()).await;
        assert_eq!(bed.removed(), removed);
        let told = bed.runtime.told();
        let last = told.iter().rposition(|told| matches!(told, Told::Remove(_))).unwrap();
        let volumes = told.iter().position(|told| matches!(told, Told::RemoveVolumes(_)));
        assert!(volumes.is_none_or(|at| at > last), "removed under an instance: {told:?}");
    }
}
