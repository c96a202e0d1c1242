//! The store on SQLite: `lockgate.db` in the data directory, with a write-ahead log and every commit synced.
//!
//! One thread writes (`writer`); reads go over connections of their own (`readers`). Both wait on blocking
//! threads of the runtime, so that an answer that is on its way keeps a test's paused time from running on.
//!
//! What a method writes is in the file named by its subject; each is one transaction, and all it touches is there.

mod accesses;
mod answers;
mod apps;
mod audit;
mod calls;
mod column;
mod deployments;
mod environments;
mod ephemerals;
mod history;
mod instances;
mod journal;
mod lock;
mod open;
mod operations;
mod readers;
mod renaming;
mod resizes;
mod routes;
mod schema;
mod secrets;
mod swap;
mod timers;
mod tokens;
mod transaction;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::Connection;

use self::lock::DirLock;
use self::readers::Readers;
use self::secrets::Key;
use self::transaction::Done;
use self::writer::Writer;
use super::{
    Accepted, Access, Answer, App, AuditEntry, Deployment, DeploymentStatus, DesiredState, EndedLabel,
    Environment, Event, Failure, Fired, IdempotencyKey, InstanceRow, KeptAnswer, NewDeployment, NewEvent,
    NewOperation, Of, Operation, OperationEnd, Page, Pruned, Resize, RouteRow, Split, Step, StepEnd, Store,
    StoreError, SwapCommitted, SwapPlan, Timer, Token, WakePlan,
};
use crate::clock::{Clock, Timestamp};
use crate::fault;
use crate::ids::{AppName, DeploymentId, EnvironmentName, InstanceId, LockgateId, OperationId, TokenId};

/// The store of one data directory, which no other process can open meanwhile.
///
/// Dropping an answer before it came leaves open whether its write is done. Dropping the store waits for the writes
/// that were accepted.
pub struct SqliteStore {
    id: LockgateId,
    key: Arc<Key>,
    // The order of the fields is the order of the end: the lock goes last.
    writer: Writer,
    observer: Arc<OnceLock<writer::Observer>>,
    readers: Arc<Readers>,
    _lock: DirLock,
}

impl SqliteStore {
    /// Opens the store of `data_dir`; makes the directory, the database and the key where there are none.
    ///
    /// # Errors
    /// [`StoreError::Open`], with what to do, if another process has it, or if it is damaged, of a newer schema or
    /// without its key. Nothing was changed then.
    pub fn open(data_dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let opened = open::open(data_dir, &*clock)?;
        let observer = Arc::default();
        let writer = Writer::start(opened.database.clone(), opened.connection, clock, Arc::clone(&observer))
            .map_err(|error| StoreError::Open {
                path: data_dir.display().to_string(),
                detail: format!("cannot start the writer's thread: {error}"),
            })?;
        Ok(Self {
            id: opened.id,
            key: Arc::new(opened.key),
            writer,
            observer,
            readers: Arc::new(Readers::new(opened.database)),
            _lock: opened.lock,
        })
    }

    /// Tells `observer` how long each write takes from now on; the first one that is given stays.
    pub fn observe_writes(&self, observer: impl Fn(Duration) + Send + Sync + 'static) {
        self.observer.get_or_init(|| Box::new(observer));
    }

    fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Done<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let queue = self.writer.queue();
        Box::pin(off_runtime(action, move || queue.write(action, work)))
    }

    fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Done<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let readers = Arc::clone(&self.readers);
        Box::pin(async move {
            let turn = readers.turn().await;
            off_runtime(action, move || {
                let _turn = turn;
                readers.read(action, work)
            })
            .await
        })
    }
}

async fn off_runtime<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(StoreError::Failed { action, detail: error.to_string() }))
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn lockgate_id(&self) -> LockgateId {
        self.id
    }

    fn link_key(&self) -> [u8; 32] {
        self.key.of_links()
    }

    fn put_apps<'a>(&'a self, apps: &'a [App]) -> Answer<'a, ()> {
        let (key, apps) = (Arc::clone(&self.key), apps.to_vec());
        self.write("write apps", move |db| apps::put_all(db, &key, &apps))
    }

    fn put_app_once<'a>(&'a self, app: &'a App, key: &'a IdempotencyKey) -> Answer<'a, bool> {
        let (seal, app, key) = (Arc::clone(&self.key), app.clone(), key.clone());
        self.write("write the app", move |db| {
            if calls::claim(db, &key, &app.name)?.is_some() {
                return Ok(false);
            }
            apps::put_all(db, &seal, &[app]).map(|()| true)
        })
    }

    fn retire_app<'a>(&'a self, name: &'a AppName, with_volumes: bool) -> Answer<'a, ()> {
        let name = name.clone();
        self.write("retire the app", move |db| apps::retire(db, &name, with_volumes))
    }

    fn removals(&self) -> Answer<'_, Vec<(AppName, bool)>> {
        self.read("list removals", apps::removals)
    }

    fn rename_app<'a>(
        &'a self,
        from: &'a AppName,
        to: &'a AppName,
        routes: &'a [RouteRow],
    ) -> Answer<'a, bool> {
        let (key, from, to) = (Arc::clone(&self.key), from.clone(), to.clone());
        let routes = routes.to_vec();
        self.write("rename the app", move |db| renaming::rename(db, &key, (&from, &to), &routes))
    }

    fn first_name<'a>(&'a self, app: &'a AppName) -> Answer<'a, AppName> {
        let app = app.clone();
        self.read("read the app's first name", move |db| renaming::first_name(db, &app))
    }

    fn forget_app<'a>(&'a self, name: &'a AppName) -> Answer<'a, bool> {
        let name = name.clone();
        self.write("delete the app", move |db| apps::forget(db, &name))
    }

    fn retire_environment<'a>(&'a self, app: &'a AppName, name: &'a EnvironmentName) -> Answer<'a, ()> {
        let (app, name) = (app.clone(), name.clone());
        self.write("retire the environment", move |db| environments::retire(db, &app, &name))
    }

    fn forget_environment<'a>(&'a self, app: &'a AppName, name: &'a EnvironmentName) -> Answer<'a, bool> {
        let (app, name) = (app.clone(), name.clone());
        self.write("delete the environment", move |db| environments::forget(db, &app, &name))
    }

    fn app<'a>(&'a self, name: &'a AppName) -> Answer<'a, Option<App>> {
        let (key, name) = (Arc::clone(&self.key), name.clone());
        self.read("read the app", move |db| apps::get(db, &key, &name))
    }

    fn apps(&self) -> Answer<'_, Vec<App>> {
        let key = Arc::clone(&self.key);
        self.read("list apps", move |db| apps::list(db, &key))
    }

    fn access<'a>(&'a self, app: &'a AppName) -> Answer<'a, Option<Access>> {
        let app = app.clone();
        self.read("read the access", move |db| accesses::get(db, &app))
    }

    fn accesses(&self) -> Answer<'_, Vec<(AppName, Access)>> {
        self.read("list accesses", accesses::list)
    }

    fn hours_at<'a>(&'a self, app: &'a AppName) -> Answer<'a, Option<Timestamp>> {
        let app = app.clone();
        self.read("read the office hours", move |db| apps::hours_at(db, &app))
    }

    fn set_hours_at<'a>(&'a self, app: &'a AppName, at: Timestamp) -> Answer<'a, ()> {
        let app = app.clone();
        self.write("write the office hours", move |db| apps::set_hours_at(db, &app, at))
    }

    fn set_access<'a>(
        &'a self,
        app: &'a AppName,
        access: &'a Access,
        journal: Option<(OperationId, Timestamp)>,
    ) -> Answer<'a, ()> {
        let (app, access) = (app.clone(), access.clone());
        self.write("set the access", move |db| accesses::set(db, &app, &access, journal))
    }

    fn environment<'a>(
        &'a self,
        app: &'a AppName,
        name: &'a EnvironmentName,
    ) -> Answer<'a, Option<Environment>> {
        let (app, name) = (app.clone(), name.clone());
        self.read("read the environment", move |db| apps::environment(db, &app, &name))
    }

    fn environments<'a>(&'a self, app: &'a AppName) -> Answer<'a, Vec<Environment>> {
        let app = app.clone();
        self.read("list environments", move |db| apps::environments(db, &app))
    }

    fn begin_operation<'a>(
        &'a self,
        operation: &'a NewOperation,
        deployment: Option<&'a NewDeployment>,
    ) -> Answer<'a, Accepted> {
        let (key, operation, deployment) = (Arc::clone(&self.key), operation.clone(), deployment.cloned());
        self.write("accept the operation", move |db| {
            operations::begin(db, &key, &operation, deployment.as_ref())
        })
    }

    fn repeated<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<OperationId>> {
        let key = key.clone();
        self.read("look up the idempotency key", move |db| operations::earlier(db, &key))
    }

    fn kept_answer<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<KeptAnswer>> {
        let (seal, key) = (Arc::clone(&self.key), key.clone());
        self.read("look up the idempotency key", move |db| answers::get(db, &seal, &key))
    }

    fn keep_answer<'a>(&'a self, key: &'a IdempotencyKey, answer: &'a KeptAnswer) -> Answer<'a, ()> {
        let (seal, key, answer) = (Arc::clone(&self.key), key.clone(), answer.clone());
        self.write("keep the answer", move |db| answers::keep(db, &seal, &key, &answer))
    }

    fn operation<'a>(&'a self, id: &'a OperationId) -> Answer<'a, Option<Operation>> {
        let id = *id;
        self.read("read the operation", move |db| operations::get(db, id))
    }

    fn operations<'a>(&'a self, of: &'a Of, page: Page) -> Answer<'a, Vec<Operation>> {
        let of = of.clone();
        self.read("list operations", move |db| operations::list(db, &of, page))
    }

    fn unfinished_operations(&self) -> Answer<'_, Vec<Operation>> {
        self.read("list unfinished operations", operations::unfinished)
    }

    fn start_operation<'a>(&'a self, id: &'a OperationId, at: Timestamp) -> Answer<'a, ()> {
        let id = *id;
        self.write("start the operation", move |db| operations::start(db, id, at))
    }

    fn end_operation<'a>(&'a self, id: &'a OperationId, end: &'a OperationEnd) -> Answer<'a, bool> {
        let (id, end) = (*id, end.clone());
        self.write("end the operation", move |db| operations::end(db, id, &end))
    }

    fn put_receipt<'a>(&'a self, id: &'a OperationId, receipt: &'a str) -> Answer<'a, ()> {
        let (id, receipt) = (*id, receipt.to_owned());
        self.write("write the receipt", move |db| operations::put_receipt(db, id, &receipt))
    }

    fn request_cancel<'a>(&'a self, id: &'a OperationId) -> Answer<'a, bool> {
        let id = *id;
        self.write("ask to cancel the operation", move |db| operations::request_cancel(db, id))
    }

    fn begin_step<'a>(&'a self, operation: &'a OperationId, step: &'a str, at: Timestamp) -> Answer<'a, ()> {
        let (operation, step) = (*operation, step.to_owned());
        self.write("begin the step", move |db| journal::begin_step(db, operation, &step, at))
    }

    fn end_step<'a>(
        &'a self,
        operation: &'a OperationId,
        step: &'a str,
        end: &'a StepEnd,
    ) -> Answer<'a, bool> {
        let (operation, step, end) = (*operation, step.to_owned(), end.clone());
        self.write("end the step", move |db| journal::end_step(db, operation, &step, &end))
    }

    fn steps<'a>(&'a self, operation: &'a OperationId) -> Answer<'a, Vec<Step>> {
        let operation = *operation;
        self.read("list steps", move |db| journal::steps(db, operation))
    }

    fn append_event<'a>(&'a self, event: &'a NewEvent) -> Answer<'a, i64> {
        let event = event.clone();
        self.write("append the event", move |db| {
            operations::require(db, event.operation)?;
            journal::append(db, &event)
        })
    }

    fn events<'a>(
        &'a self,
        operation: Option<&'a OperationId>,
        after: i64,
        limit: u32,
    ) -> Answer<'a, Vec<Event>> {
        let operation = operation.copied();
        self.read("list events", move |db| journal::events(db, operation, after, limit))
    }

    fn deployment<'a>(&'a self, id: &'a DeploymentId) -> Answer<'a, Option<Deployment>> {
        let (key, id) = (Arc::clone(&self.key), *id);
        self.read("read the deployment", move |db| deployments::get(db, &key, id))
    }

    fn deployments<'a>(&'a self, of: &'a Of, page: Page) -> Answer<'a, Vec<Deployment>> {
        let (key, of) = (Arc::clone(&self.key), of.clone());
        self.read("list deployments", move |db| deployments::list(db, &key, &of, page))
    }

    fn deployments_in_service(&self) -> Answer<'_, Vec<Deployment>> {
        let key = Arc::clone(&self.key);
        self.read("list deployments in service", move |db| deployments::in_service(db, &key))
    }

    fn ephemerals<'a>(&'a self, app: Option<&'a AppName>) -> Answer<'a, Vec<Deployment>> {
        let (key, app) = (Arc::clone(&self.key), app.cloned());
        self.read("list ephemeral deployments", move |db| ephemerals::list(db, &key, app.as_ref()))
    }

    fn expired(&self, now: Timestamp) -> Answer<'_, Vec<Deployment>> {
        let key = Arc::clone(&self.key);
        self.read("list expired deployments", move |db| ephemerals::expired(db, &key, now))
    }

    fn ended_labels(&self, since: Timestamp, now: Timestamp) -> Answer<'_, Vec<EndedLabel>> {
        self.read("list ended labels", move |db| ephemerals::ended(db, since, now))
    }

    fn set_status<'a>(
        &'a self,
        id: &'a DeploymentId,
        to: DeploymentStatus,
        failure: Option<&'a Failure>,
    ) -> Answer<'a, bool> {
        let (id, failure) = (*id, failure.cloned());
        self.write("set the status", move |db| deployments::set_status(db, id, to, failure.as_ref()))
    }

    fn set_pinned<'a>(
        &'a self,
        id: &'a DeploymentId,
        pinned: &'a str,
        state_hash: &'a str,
    ) -> Answer<'a, ()> {
        let (id, pinned, state_hash) = (*id, pinned.to_owned(), state_hash.to_owned());
        self.write("pin the deployment", move |db| deployments::set_pinned(db, id, &pinned, &state_hash))
    }

    fn set_desired_state<'a>(&'a self, id: &'a DeploymentId, state: DesiredState) -> Answer<'a, ()> {
        let id = *id;
        self.write("set the desired state", move |db| deployments::set_desired_state(db, id, state))
    }

    fn fall_asleep<'a>(&'a self, id: &'a DeploymentId) -> Answer<'a, bool> {
        let id = *id;
        self.write("put the deployment into standby", move |db| deployments::fall_asleep(db, id))
    }

    fn commit_wake<'a>(&'a self, plan: &'a WakePlan) -> Answer<'a, bool> {
        let plan = plan.clone();
        self.write("commit the wake", move |db| deployments::wake(db, &plan))
    }

    fn note_failure<'a>(&'a self, id: &'a DeploymentId, failure: &'a Failure) -> Answer<'a, ()> {
        let (id, failure) = (*id, failure.clone());
        self.write("note the failure", move |db| deployments::note_failure(db, id, &failure))
    }

    fn set_expiry<'a>(&'a self, id: &'a DeploymentId, at: Timestamp) -> Answer<'a, ()> {
        let id = *id;
        self.write("move the expiry", move |db| deployments::set_expiry(db, id, at))
    }

    fn put_instance<'a>(&'a self, instance: &'a InstanceRow) -> Answer<'a, ()> {
        let instance = instance.clone();
        self.write("write the instance", move |db| instances::put(db, &instance))
    }

    fn instances<'a>(&'a self, deployment: Option<&'a DeploymentId>) -> Answer<'a, Vec<InstanceRow>> {
        let deployment = deployment.copied();
        self.read("list instances", move |db| instances::list(db, deployment))
    }

    fn resize<'a>(&'a self, resize: &'a Resize) -> Answer<'a, ()> {
        let resize = resize.clone();
        self.write("scale", move |db| resizes::commit(db, &resize))
    }

    fn delete_instance<'a>(&'a self, id: &'a InstanceId) -> Answer<'a, ()> {
        let id = *id;
        self.write("delete the instance", move |db| instances::delete(db, id))
    }

    fn commit_swap<'a>(&'a self, plan: &'a SwapPlan) -> Answer<'a, SwapCommitted> {
        const ACTION: &str = "commit the swap";
        let (queue, plan) = (self.writer.queue(), plan.clone());
        Box::pin(off_runtime(ACTION, move || {
            let committed = queue.write(ACTION, move |db| swap::commit(db, &plan))?;
            fault::at("store.commit_swap.after")
                .map_err(|injected| StoreError::Failed { action: ACTION, detail: injected.to_string() })?;
            Ok(committed)
        }))
    }

    fn set_split<'a>(
        &'a self,
        app: &'a AppName,
        environment: &'a EnvironmentName,
        split: Option<&'a Split>,
    ) -> Answer<'a, ()> {
        let (app, environment, split) = (app.clone(), environment.clone(), split.cloned());
        self.write("split the live routes", move |db| apps::set_split(db, &app, &environment, split.as_ref()))
    }

    fn clear_rolled_back<'a>(&'a self, app: &'a AppName, environment: &'a EnvironmentName) -> Answer<'a, ()> {
        let (app, environment) = (app.clone(), environment.clone());
        self.write("clear the flag of a rollback", move |db| apps::clear_rolled_back(db, &app, &environment))
    }

    fn put_routes<'a>(&'a self, routes: &'a [RouteRow]) -> Answer<'a, ()> {
        let routes = routes.to_vec();
        self.write("write routes", move |db| routes::put_all(db, &routes))
    }

    fn routes(&self) -> Answer<'_, Vec<RouteRow>> {
        self.read("list routes", routes::list)
    }

    fn arm_timer<'a>(&'a self, timer: &'a Timer) -> Answer<'a, ()> {
        let timer = timer.clone();
        self.write("arm the timer", move |db| timers::arm(db, &timer))
    }

    fn clear_timer<'a>(&'a self, deployment: &'a DeploymentId) -> Answer<'a, ()> {
        let deployment = *deployment;
        self.write("clear the timer", move |db| timers::clear(db, deployment))
    }

    fn timers(&self) -> Answer<'_, Vec<Timer>> {
        self.read("list timers", timers::list)
    }

    fn fire_timer<'a>(&'a self, timer: &'a Timer, next: Option<&'a Timer>) -> Answer<'a, Fired> {
        let (timer, next) = (timer.clone(), next.cloned());
        self.write("fire the timer", move |db| timers::fire(db, &timer, next.as_ref()))
    }

    fn put_token<'a>(&'a self, token: &'a Token) -> Answer<'a, ()> {
        let token = token.clone();
        self.write("write the token", move |db| tokens::put(db, &token))
    }

    fn put_token_once<'a>(&'a self, token: &'a Token, key: &'a IdempotencyKey) -> Answer<'a, TokenId> {
        let (token, key) = (token.clone(), key.clone());
        self.write("write the token", move |db| match calls::claim(db, &key, &token.id)? {
            Some(earlier) => Ok(earlier),
            None => tokens::put(db, &token).map(|()| token.id),
        })
    }

    fn tokens(&self) -> Answer<'_, Vec<Token>> {
        self.read("list tokens", tokens::list)
    }

    fn delete_token<'a>(&'a self, id: &'a TokenId) -> Answer<'a, bool> {
        let id = *id;
        self.write("delete the token", move |db| tokens::delete(db, id))
    }

    fn append_audit<'a>(&'a self, entry: &'a AuditEntry) -> Answer<'a, ()> {
        let entry = entry.clone();
        self.write("append to the audit trail", move |db| audit::append(db, &entry))
    }

    fn audit(&self, page: Page) -> Answer<'_, Vec<AuditEntry>> {
        self.read("list the audit trail", move |db| audit::list(db, page))
    }

    fn prune(&self, before: Timestamp, newest: u32) -> Answer<'_, Pruned> {
        self.write("forget what is old", move |db| history::prune(db, before, newest))
    }
}
