//! When volumes are removed: with the last deployment of a preview, with an app only where that is asked for, and one by
//! one what nothing has and nothing names.

use lockgate::deploy::{FindingKind, VolumeView, Volumes};
use lockgate::runtime::{StoredVolume, VolumeScope};
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

fn stored(app: &str, environment: &str, label: Option<&str>, name: &str) -> StoredVolume {
    StoredVolume {
        place: format!("{app}.{environment}.{}.{name}", label.unwrap_or("-")),
        app: app.parse().unwrap(),
        environment: environment.parse().unwrap(),
        label: label.map(|label| label.parse().unwrap()),
        name: name.to_owned(),
    }
}

impl Bed {
    async fn at(&self, place: &str) -> VolumeView {
        let all = self.engine.volumes().await.unwrap();
        all.into_iter().find(|view| view.place == place).unwrap()
    }

    /// Why it is not removed, which it is not.
    async fn refusal(&self, place: &str) -> &'static str {
        let before = self.runtime.volumes.lock().unwrap().clone();
        let code = self.engine.remove_volume(place).await.unwrap_err().code();
        assert_eq!(*self.runtime.volumes.lock().unwrap(), before, "{place}: {code}");
        code
    }
}

const OWN: &str = "web.production.-.data";
const OF_FEAT: &str = "web.production.feat.data";

#[tokio::test]
async fn the_list_says_who_has_a_volume_whether_it_is_declared_and_whether_it_is_stray() {
    let bed = with_volume().await;
    // One left out of the settings, and those of an environment, of a preview and of an app that are gone.
    let undeclared = stored("web", "production", None, "old");
    let strays = [
        stored("web", "staging", None, "data"),
        stored("web", "production", Some("gone"), "data"),
        stored("nobody", "production", None, "data"),
    ];
    bed.runtime.volumes.lock().unwrap().extend(strays.clone().into_iter().chain([undeclared.clone()]));
    let (live, _) = bed.deploy(&["serve", "1"]).await;
    let feat = bed.feat("2").await;
    for (place, of) in [(OWN, live), (OF_FEAT, feat)] {
        let view = bed.at(place).await;
        assert_eq!((view.declared, view.stray), (true, false), "{view:?}");
        assert_eq!((&view.used_by, &view.instances), (&vec![of], &bed.runtime.of(of)), "{view:?}");
    }
    for (volume, is_stray) in strays.iter().map(|stray| (stray, true)).chain([(&undeclared, false)]) {
        let view = bed.at(&volume.place).await;
        assert_eq!((view.declared, view.stray), (false, is_stray), "{view:?}");
        assert!(view.used_by.is_empty() && view.instances.is_empty(), "{view:?}");
        assert_eq!((&view.app, &view.label, &view.name), (&volume.app, &volume.label, &volume.name));
    }
    // By the name that the app has now, though the runtime knows it by its first.
    bed.engine.rename_app(&app(), &"shop".parse().unwrap()).await.unwrap();
    let view = bed.at(OWN).await;
    assert_eq!((view.app.as_str(), view.declared, view.stray), ("shop", true, false));
}

#[tokio::test]
async fn only_what_nothing_has_and_nothing_names_is_removed() {
    let bed = with_volume().await;
    let stray = stored("nobody", "production", None, "data");
    let undeclared = stored("web", "production", None, "old");
    let next = stored("web", "production", None, "data");
    bed.runtime.volumes.lock().unwrap().extend([stray.clone(), undeclared.clone(), next]);
    assert_eq!(bed.refusal("nowhere").await, "volume_not_found");
    // Nothing has it yet: a deploy would find it.
    assert_eq!(bed.refusal(OWN).await, "volume_declared");
    bed.deploy(&["serve", "1"]).await;
    bed.feat("2").await;
    assert_eq!(bed.refusal(OF_FEAT).await, "volume_in_use");
    for volume in [&stray, &undeclared] {
        bed.engine.remove_volume(&volume.place).await.unwrap();
        assert_eq!(bed.refusal(&volume.place).await, "volume_not_found");
    }
    // Out of the settings, and still of what can be gone back to.
    let mut web = bed.store.app(&app()).await.unwrap().unwrap();
    web.settings.volumes.clear();
    bed.engine.put_apps(&[web]).await.unwrap();
    bed.deploy(&["serve", "3"]).await;
    assert!(!bed.at(OWN).await.declared);
    assert_eq!(bed.refusal(OWN).await, "volume_in_use");
    let removed = |told| if let Told::RemoveVolume(place) = told { Some(place) } else { None };
    let removed: Vec<_> = bed.runtime.told().into_iter().filter_map(removed).collect();
    assert_eq!(removed, [stray.place, undeclared.place]);
    bed.runtime.set_away(true);
    assert_eq!(bed.engine.volumes().await.unwrap_err().code(), "runtime_unavailable");
    assert_eq!(bed.refusal(OWN).await, "runtime_unavailable");
}
