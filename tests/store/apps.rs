use lockgate::clock::Timestamp;
use lockgate::ids::{EnvironmentName, TokenId};
use lockgate::settings::{AppSettings, Replicas, Secret};
use lockgate::store::{
    App, AuditEntry, EnvironmentKind, HostRow, Page, RouteRow, Sticky, Store, StoreError, Token,
};

use crate::support::{Scratch, app, host, open, route, web};

#[tokio::test]
async fn an_app_is_read_as_it_was_written_and_has_production_and_routes_that_lead_nowhere() {
    let scratch = Scratch::with_web().await;
    let store = &scratch.store;
    assert_eq!(store.app(&web()).await.unwrap().unwrap(), app("web", &["www.example.com"]));
    assert_eq!(store.app(&"api".parse().unwrap()).await.unwrap(), None);
    let [environment] = <[_; 1]>::try_from(store.environments(&web()).await.unwrap()).unwrap();
    assert_eq!(environment.name, EnvironmentName::production());
    assert_eq!(environment.kind, EnvironmentKind::Production);
    assert_eq!((environment.live, environment.rolled_back, environment.generation), (None, false, 0));
    assert_eq!(store.routes().await.unwrap(), [route("www.example.com", Sticky::Live, None)]);
}

#[tokio::test]
async fn replacing_an_app_moves_its_live_routes_with_its_hosts_and_outdates_plans() {
    let scratch = Scratch::with_web().await;
    let live = scratch.live().await;
    let generated = route("web-live.apps.example.com", Sticky::Live, None);
    scratch.store.put_routes(&[generated]).await.unwrap();
    let before = scratch.generation().await;

    scratch.store.put_apps(&[app("web", &["shop.example.com"])]).await.unwrap();
    let expected = ["shop.example.com", "web-live.apps.example.com"];
    let routes = scratch.store.routes().await.unwrap();
    assert_eq!(routes, expected.map(|name| route(name, Sticky::Live, Some(live))));
    assert_eq!(scratch.generation().await, before + 1);

    let mut same_hosts = app("web", &["shop.example.com"]);
    same_hosts.settings.replicas = Replicas::new(2).unwrap();
    scratch.store.put_apps(std::slice::from_ref(&same_hosts)).await.unwrap();
    assert_eq!(scratch.generation().await, before + 1);
    assert_eq!(scratch.store.apps().await.unwrap(), [same_hosts]);
}

#[tokio::test]
async fn a_host_of_another_app_is_refused_and_nothing_changes() {
    let scratch = Scratch::with_web().await;
    let error =
        scratch.store.put_apps(&[app("api", &["api.example.com", "www.example.com"])]).await.unwrap_err();
    assert_eq!(error.to_string(), "host www.example.com belongs to app web");
    assert!(matches!(error, StoreError::HostTaken { .. }));
    assert_eq!(scratch.store.apps().await.unwrap().len(), 1);
    assert_eq!(scratch.store.routes().await.unwrap().len(), 1);

    scratch.store.put_apps(&[app("api", &["api.example.com"])]).await.unwrap();
    let stolen = RouteRow { app: "api".parse().unwrap(), ..route("www.example.com", Sticky::Commit, None) };
    let other = RouteRow { host: host("new.example.com"), ..stolen.clone() };
    let before = scratch.store.routes().await.unwrap();
    assert!(matches!(
        scratch.store.put_routes(&[other, stolen]).await,
        Err(StoreError::HostTaken { owner, .. }) if owner == web()
    ));
    assert_eq!(scratch.store.routes().await.unwrap(), before);
}

#[tokio::test]
async fn the_same_host_may_have_other_paths_but_not_twice_the_same() {
    let scratch = Scratch::new();
    let docs = HostRow { path: "/docs".to_owned(), strip: true, ..host("www.example.com") };
    let mut web = app("web", &["www.example.com"]);
    web.hosts.push(docs.clone());
    scratch.store.put_apps(std::slice::from_ref(&web)).await.unwrap();
    web.hosts.push(HostRow { strip: false, ..docs });
    let error = scratch.store.put_apps(std::slice::from_ref(&web)).await.unwrap_err();
    assert_eq!(error.to_string(), "host www.example.com/docs belongs to app web");
}

#[tokio::test]
async fn a_generated_name_cannot_take_a_host_from_the_live_deployment() {
    let scratch = Scratch::with_web().await;
    let live = scratch.live().await;
    let taken = route("www.example.com", Sticky::Commit, Some(live));
    assert!(matches!(scratch.store.put_routes(&[taken]).await, Err(StoreError::HostTaken { .. })));
}

#[tokio::test]
async fn no_file_of_the_data_directory_holds_an_env_var() {
    let scratch = Scratch::new();
    let canary = "canary-5f1b9d0e";
    let mut settings = AppSettings::default();
    settings.env.insert("CANARY_NAME".to_owned(), Secret::new(canary));
    let secret = App { settings: settings.clone(), ..app("web", &["www.example.com"]) };
    scratch.store.put_apps(std::slice::from_ref(&secret)).await.unwrap();
    let deployment = lockgate::store::NewDeployment { settings, ..crate::support::deployment() };
    scratch.store.begin_operation(&crate::support::operation("web"), Some(&deployment)).await.unwrap();
    let read = scratch.store.deployment(&deployment.id).await.unwrap().unwrap();
    assert_eq!(read.settings.env["CANARY_NAME"].expose(), canary);

    let files = |dir: &std::path::Path| -> Vec<_> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let look = |when: &str| {
        for file in files(scratch.dir.path()) {
            let bytes = std::fs::read(&file).unwrap();
            for text in [canary.as_bytes(), b"CANARY_NAME"] {
                assert!(!bytes.windows(text.len()).any(|part| part == text), "{when}: {}", file.display());
            }
        }
    };
    assert!(files(scratch.dir.path()).iter().any(|file| file.ends_with("lockgate.db-wal")));
    look("open");
    drop(scratch.store);
    look("closed");
    assert_eq!(open(scratch.dir.path()).unwrap().app(&web()).await.unwrap().unwrap(), secret);
}

#[tokio::test]
async fn tokens_and_the_audit_trail_are_kept() {
    let scratch = Scratch::new();
    let token = Token {
        id: TokenId::generate(),
        name: "ci".to_owned(),
        hash: vec![0, 1, 255],
        scopes: vec!["deploy:web".to_owned()],
        created_at: Timestamp::now(),
        expires_at: None,
    };
    scratch.store.put_token(&token).await.unwrap();
    for status in [201, 409, 202] {
        let entry = AuditEntry {
            id: 0,
            at: Timestamp::now(),
            actor: "ci".to_owned(),
            action: "POST /v1/apps".to_owned(),
            target: "web".to_owned(),
            status,
            operation: None,
        };
        scratch.store.append_audit(&entry).await.unwrap();
    }
    let scratch = scratch.reopen();
    assert_eq!(scratch.store.tokens().await.unwrap(), std::slice::from_ref(&token));
    let newest = scratch.store.audit(Page { offset: 0, limit: 2 }).await.unwrap();
    assert_eq!(newest.iter().map(|entry| (entry.id, entry.status)).collect::<Vec<_>>(), [(3, 202), (2, 409)]);
    assert!(scratch.store.delete_token(&token.id).await.unwrap());
    assert!(!scratch.store.delete_token(&token.id).await.unwrap());
    assert_eq!(scratch.store.tokens().await.unwrap(), []);
}
