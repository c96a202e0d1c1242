//! A store in a directory of its own, with an app in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lockgate::clock::{SystemClock, Timestamp};
use lockgate::ids::{AppName, DeploymentId, EnvironmentName, OperationId, WorkspaceName};
use lockgate::settings::{AppSettings, Secret};
use lockgate::store::sqlite::SqliteStore;
use lockgate::store::{
    App, DesiredState, GitFacts, HostRow, NewDeployment, NewOperation, OperationKind, Origin, RouteRow,
    Sticky, Store, StoreError, SwapPlan, Timer,
};
use tempfile::TempDir;

/// A store that is removed with its directory.
pub(crate) struct Scratch {
    pub(crate) store: Arc<SqliteStore>,
    pub(crate) dir: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(open(dir.path()).unwrap());
        Self { store, dir }
    }

    /// With the app `web`, which asks for `www.example.com`.
    pub(crate) async fn with_web() -> Self {
        let scratch = Self::new();
        scratch.store.put_apps(&[app("web", &["www.example.com"])]).await.unwrap();
        scratch
    }

    /// Closes the store and opens it again.
    pub(crate) fn reopen(self) -> Self {
        let Self { store, dir } = self;
        drop(Arc::into_inner(store).expect("nobody else has the store"));
        Self { store: Arc::new(open(dir.path()).unwrap()), dir }
    }

    /// A new deployment of `web` in production.
    pub(crate) async fn deployment(&self) -> (OperationId, DeploymentId) {
        let (operation, deployment) = (operation("web"), deployment());
        self.store.begin_operation(&operation, Some(&deployment)).await.unwrap();
        (operation.id, deployment.id)
    }

    /// A new deployment of `web`, which is live afterwards.
    pub(crate) async fn live(&self) -> DeploymentId {
        let (operation, to) = self.deployment().await;
        let plan = SwapPlan { expected_generation: self.generation().await, ..plan(operation, to) };
        self.store.commit_swap(&plan).await.unwrap();
        to
    }

    pub(crate) async fn generation(&self) -> u64 {
        self.store.environment(&web(), &EnvironmentName::production()).await.unwrap().unwrap().generation
    }
}

pub(crate) fn open(dir: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(dir, Arc::new(SystemClock))
}

pub(crate) fn web() -> AppName {
    "web".parse().unwrap()
}

pub(crate) fn host(name: &str) -> HostRow {
    HostRow { host: name.to_owned(), path: "/".to_owned(), strip: false }
}

pub(crate) fn app(name: &str, hosts: &[&str]) -> App {
    let mut settings = AppSettings { port: Some(3000), ..AppSettings::default() };
    settings.env.insert("GREETING".to_owned(), Secret::new("good morning"));
    App {
        workspace: WorkspaceName::default_workspace(),
        name: name.parse().unwrap(),
        hosts: hosts.iter().map(|name| host(name)).collect(),
        settings,
        origin: Origin::Api,
    }
}

pub(crate) fn operation(app: &str) -> NewOperation {
    NewOperation {
        id: OperationId::generate(),
        kind: OperationKind::Deploy,
        app: app.parse().unwrap(),
        environment: EnvironmentName::production(),
        deployment: None,
        request: "{}".to_owned(),
        actor: "tester".to_owned(),
        idempotency: None,
        at: Timestamp::now(),
    }
}

pub(crate) fn deployment() -> NewDeployment {
    NewDeployment {
        id: DeploymentId::generate(),
        settings: app("web", &[]).settings,
        git: GitFacts::default(),
        pinned: None,
        label: None,
        expires_at: None,
    }
}

/// A first swap of `web`, without routes of its own.
pub(crate) fn plan(operation: OperationId, to: DeploymentId) -> SwapPlan {
    SwapPlan {
        operation,
        app: web(),
        environment: EnvironmentName::production(),
        to,
        expected_generation: 0,
        rolled_back: false,
        routes: Vec::new(),
        retire: None,
        stopped: None,
        left_over: None,
        cutover: "{}".to_owned(),
        at: Timestamp::now(),
    }
}

pub(crate) fn route(name: &str, sticky: Sticky, deployment: Option<DeploymentId>) -> RouteRow {
    RouteRow { host: host(name), sticky, app: web(), environment: EnvironmentName::production(), deployment }
}

pub(crate) fn standby(deployment: DeploymentId, nonce: &str) -> Timer {
    let due = Timestamp::now() + Duration::from_secs(60);
    Timer { deployment, nonce: nonce.to_owned(), state: DesiredState::Standby, due }
}
