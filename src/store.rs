//! What must survive: apps, deployments, routes, operations, timers, tokens and the audit trail.
//!
//! One trait, because a second backend is to follow; [`sqlite`] is the first. Every method is one transaction:
//! when it has answered, what it wrote survives a crash of the process and of the machine.
//!
//! # Invariants
//! 1. A production environment has at most one live deployment, and its `live` routes lead there: both change in
//!    [`Store::commit_swap`] alone, together with the timers and the journal step that belong to them.
//! 2. A status moves only along [`DeploymentStatus::may_become`]; a write that comes too late changes nothing and says so.
//! 3. The end of an operation and of a step is written once; a second end is ignored.
//! 4. A host pattern and path belong to one app.

mod records;
pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

pub use records::*;

use crate::clock::Timestamp;
use crate::ids::{AppName, DeploymentId, EnvironmentName, InstanceId, LockgateId, OperationId, TokenId};

/// What a [`Store`] gives back.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The durable state. Safe to share; writes happen one after the other.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Of this installation, made when the store was created.
    fn lockgate_id(&self) -> LockgateId;
    /// What links to previews are signed under: of this installation, and the same at every start.
    fn link_key(&self) -> [u8; 32];

    /// Creates the apps or replaces their settings and host names, with their `production` environments and `live`
    /// routes (which keep leading to the live deployments). A host may move from one of them to another.
    /// [`StoreError::HostTaken`] changes nothing.
    fn put_apps<'a>(&'a self, apps: &'a [App]) -> Answer<'a, ()>;
    /// As [`Store::put_apps`] of one. `false`, and nothing changed, if the same call was made before; another call under
    /// the same key is [`StoreError::KeyReused`].
    fn put_app_once<'a>(&'a self, app: &'a App, key: &'a IdempotencyKey) -> Answer<'a, bool>;
    /// Nothing leads to the app any more, all of it is to be archived, and it is to be removed, perhaps with its volumes.
    fn retire_app<'a>(&'a self, name: &'a AppName, with_volumes: bool) -> Answer<'a, ()>;
    /// The apps that are to be removed, and whether with their volumes: retired, and not put again since.
    fn removals(&self) -> Answer<'_, Vec<(AppName, bool)>>;
    /// Gives an app and all that is its another name, and these routes instead of those that it has. `false`, and nothing
    /// changed, if an app has that name.
    fn rename_app<'a>(
        &'a self,
        from: &'a AppName,
        to: &'a AppName,
        routes: &'a [RouteRow],
    ) -> Answer<'a, bool>;
    /// What the runtime knows the app by: the name that it had first, or one like it if another app, since renamed, had that;
    /// the name itself of an app that is not there.
    fn first_name<'a>(&'a self, app: &'a AppName) -> Answer<'a, AppName>;
    /// Deletes a retired app with its history. `false`, and nothing changed, while it has instances, host names, or an
    /// operation that has not ended.
    fn forget_app<'a>(&'a self, name: &'a AppName) -> Answer<'a, bool>;
    /// Nothing leads to the environment any more, and all of it is to be archived.
    fn retire_environment<'a>(&'a self, app: &'a AppName, name: &'a EnvironmentName) -> Answer<'a, ()>;
    /// Deletes a retired environment with its history. `false`, and nothing changed, while it has instances, routes, or
    /// an operation that has not ended.
    fn forget_environment<'a>(&'a self, app: &'a AppName, name: &'a EnvironmentName) -> Answer<'a, bool>;
    fn app<'a>(&'a self, name: &'a AppName) -> Answer<'a, Option<App>>;
    fn apps(&self) -> Answer<'_, Vec<App>>;
    /// Whether clients reach the app; `None` if there is no such app.
    fn access<'a>(&'a self, app: &'a AppName) -> Answer<'a, Option<Access>>;
    /// Of all apps that are not open.
    fn accesses(&self) -> Answer<'_, Vec<(AppName, Access)>>;
    /// With [`Access::Disabled`] all of its versions but the live one are in standby from then on. `journal` is the
    /// operation that it belongs to, which is resumed forward from then on.
    fn set_access<'a>(
        &'a self,
        app: &'a AppName,
        access: &'a Access,
        journal: Option<(OperationId, Timestamp)>,
    ) -> Answer<'a, ()>;
    /// The last of the app's times for which something was done; `None` if it never had any.
    fn hours_at<'a>(&'a self, app: &'a AppName) -> Answer<'a, Option<Timestamp>>;
    fn set_hours_at<'a>(&'a self, app: &'a AppName, at: Timestamp) -> Answer<'a, ()>;
    fn environment<'a>(
        &'a self,
        app: &'a AppName,
        name: &'a EnvironmentName,
    ) -> Answer<'a, Option<Environment>>;
    fn environments<'a>(&'a self, app: &'a AppName) -> Answer<'a, Vec<Environment>>;

    /// Accepts an operation, or returns the one that the same idempotency key began: [`Accepted::Repeated`]. The same key
    /// with another fingerprint is [`StoreError::KeyReused`]. With `deployment` a new deployment is created in the same
    /// transaction, as `pending`, with the next sequence number of its environment, which is created as one for previews
    /// if the app has none of that name.
    fn begin_operation<'a>(
        &'a self,
        operation: &'a NewOperation,
        deployment: Option<&'a NewDeployment>,
    ) -> Answer<'a, Accepted>;
    /// The operation that the same key began; another fingerprint is [`StoreError::KeyReused`].
    fn repeated<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<OperationId>>;
    /// The answer that was kept for the same call; another call under the same key is [`StoreError::KeyReused`].
    fn kept_answer<'a>(&'a self, key: &'a IdempotencyKey) -> Answer<'a, Option<KeptAnswer>>;
    /// Keeps the answer of a call for its repeats; not where what the call made has the key: an operation, an app, a token.
    fn keep_answer<'a>(&'a self, key: &'a IdempotencyKey, answer: &'a KeptAnswer) -> Answer<'a, ()>;
    fn operation<'a>(&'a self, id: &'a OperationId) -> Answer<'a, Option<Operation>>;
    /// Newest first.
    fn operations<'a>(&'a self, of: &'a Of, page: Page) -> Answer<'a, Vec<Operation>>;
    /// Accepted and not ended, oldest first: what a restart has to resume or undo.
    fn unfinished_operations(&self) -> Answer<'_, Vec<Operation>>;
    /// A queued one is run from now on.
    fn start_operation<'a>(&'a self, id: &'a OperationId, at: Timestamp) -> Answer<'a, ()>;
    /// Writes its end, and an event, and ends steps that were left open as skipped. First write wins; `false` if it had
    /// ended.
    fn end_operation<'a>(&'a self, id: &'a OperationId, end: &'a OperationEnd) -> Answer<'a, bool>;
    /// The receipt as far as it is known, while the operation goes on.
    fn put_receipt<'a>(&'a self, id: &'a OperationId, receipt: &'a str) -> Answer<'a, ()>;
    /// Somebody asked to cancel it; `false` if it has ended.
    fn request_cancel<'a>(&'a self, id: &'a OperationId) -> Answer<'a, bool>;

    /// Writes the intent of a step, and an event. A step that is begun again (after a restart) keeps its first begin.
    fn begin_step<'a>(&'a self, operation: &'a OperationId, step: &'a str, at: Timestamp) -> Answer<'a, ()>;
    /// Writes its result, and an event. First write wins.
    fn end_step<'a>(
        &'a self,
        operation: &'a OperationId,
        step: &'a str,
        end: &'a StepEnd,
    ) -> Answer<'a, bool>;
    fn steps<'a>(&'a self, operation: &'a OperationId) -> Answer<'a, Vec<Step>>;
    /// Appends to what can be followed; returns its id.
    fn append_event<'a>(&'a self, event: &'a NewEvent) -> Answer<'a, i64>;
    /// Events with an id above `after`, oldest first, at most `limit`. `operation` `None`: of all.
    fn events<'a>(
        &'a self,
        operation: Option<&'a OperationId>,
        after: i64,
        limit: u32,
    ) -> Answer<'a, Vec<Event>>;

    fn deployment<'a>(&'a self, id: &'a DeploymentId) -> Answer<'a, Option<Deployment>>;
    /// Newest first.
    fn deployments<'a>(&'a self, of: &'a Of, page: Page) -> Answer<'a, Vec<Deployment>>;
    /// Those that are served or can be: `ready` with desired state `running` or `standby`, and all that have not ended.
    fn deployments_in_service(&self) -> Answer<'_, Vec<Deployment>>;
    /// Those with a label that are ready and not archived, of one app or all, in the order in which they were made.
    fn ephemerals<'a>(&'a self, app: Option<&'a AppName>) -> Answer<'a, Vec<Deployment>>;
    /// Of [`Store::ephemerals`], those whose time is over.
    fn expired(&self, now: Timestamp) -> Answer<'_, Vec<Deployment>>;
    /// Labels whose deployments expired and are archived, since then, the oldest first.
    fn ended_labels(&self, since: Timestamp, now: Timestamp) -> Answer<'_, Vec<EndedLabel>>;
    /// Moves the status if that is legal from the present one; `false` if somebody else decided.
    fn set_status<'a>(
        &'a self,
        id: &'a DeploymentId,
        to: DeploymentStatus,
        failure: Option<&'a Failure>,
    ) -> Answer<'a, bool>;
    /// What image or command it is pinned to, and the hash of its desired state.
    fn set_pinned<'a>(&'a self, id: &'a DeploymentId, pinned: &'a str, state_hash: &'a str)
    -> Answer<'a, ()>;
    fn set_desired_state<'a>(&'a self, id: &'a DeploymentId, state: DesiredState) -> Answer<'a, ()>;

    /// From `ready` and `running` to `standby`; `false` if it is not both.
    fn fall_asleep<'a>(&'a self, id: &'a DeploymentId) -> Answer<'a, bool>;
    /// From `ready` and `standby` to `running`, with its instances and its timer, and without the failure of an earlier
    /// wake; `false`, and nothing changed, if it is not both.
    fn commit_wake<'a>(&'a self, plan: &'a WakePlan) -> Answer<'a, bool>;
    /// Why it could not be woken, for whoever looks.
    fn note_failure<'a>(&'a self, id: &'a DeploymentId, failure: &'a Failure) -> Answer<'a, ()>;

    /// When an ephemeral one expires.
    fn set_expiry<'a>(&'a self, id: &'a DeploymentId, at: Timestamp) -> Answer<'a, ()>;

    /// Writes the intent to start it, before the runtime is asked.
    fn put_instance<'a>(&'a self, instance: &'a InstanceRow) -> Answer<'a, ()>;
    /// Of one deployment, or all; removed ones are not listed.
    fn instances<'a>(&'a self, deployment: Option<&'a DeploymentId>) -> Answer<'a, Vec<InstanceRow>>;
    /// Another number of instances, with the rows that are spare no longer and those that are from then on, in one
    /// transaction. [`StoreError::NotFound`] if the deployment is not of the environment, and nothing changed.
    fn resize<'a>(&'a self, resize: &'a Resize) -> Answer<'a, ()>;
    /// Deletes the row of one that is gone.
    fn delete_instance<'a>(&'a self, id: &'a InstanceId) -> Answer<'a, ()>;

    /// The heart: live pointer, routes, statuses, timers and journal step in one transaction. [`StoreError::Outdated`] if
    /// `expected_generation` is not the environment's, and nothing changed.
    fn commit_swap<'a>(&'a self, plan: &'a SwapPlan) -> Answer<'a, SwapCommitted>;
    /// Sets which share of the visitors gets another version than the live one; `None` ends that. A swap ends it, too.
    fn set_split<'a>(
        &'a self,
        app: &'a AppName,
        environment: &'a EnvironmentName,
        split: Option<&'a Split>,
    ) -> Answer<'a, ()>;
    /// Lets deploys of the environment go live again.
    fn clear_rolled_back<'a>(&'a self, app: &'a AppName, environment: &'a EnvironmentName) -> Answer<'a, ()>;
    /// Adds or moves routes outside a swap (generated names of a deployment that does not go live).
    fn put_routes<'a>(&'a self, routes: &'a [RouteRow]) -> Answer<'a, ()>;
    /// All of them: what the route table is built from.
    fn routes(&self) -> Answer<'_, Vec<RouteRow>>;

    /// Arms a timer for the deployment; the last writer wins.
    fn arm_timer<'a>(&'a self, timer: &'a Timer) -> Answer<'a, ()>;
    fn clear_timer<'a>(&'a self, deployment: &'a DeploymentId) -> Answer<'a, ()>;
    /// All that are armed, the earliest due first.
    fn timers(&self) -> Answer<'_, Vec<Timer>>;
    /// Removes the timer and sets the desired state, if `nonce` is still the armed one and the deployment is not live.
    /// `next` is armed in its place.
    fn fire_timer<'a>(&'a self, timer: &'a Timer, next: Option<&'a Timer>) -> Answer<'a, Fired>;

    fn put_token<'a>(&'a self, token: &'a Token) -> Answer<'a, ()>;
    /// As [`Store::put_token`]; the token that the same call made before, if there was one. It may be deleted.
    fn put_token_once<'a>(&'a self, token: &'a Token, key: &'a IdempotencyKey) -> Answer<'a, TokenId>;
    fn tokens(&self) -> Answer<'_, Vec<Token>>;
    /// `false` if there is none.
    fn delete_token<'a>(&'a self, id: &'a TokenId) -> Answer<'a, bool>;

    /// Appends to the audit trail.
    fn append_audit<'a>(&'a self, entry: &'a AuditEntry) -> Answer<'a, ()>;
    /// Newest first.
    fn audit(&self, page: Page) -> Answer<'_, Vec<AuditEntry>>;
    /// Deletes some of what ended before `before`, but for the `newest` deployments of each environment and for
    /// whatever is live, runs, can be gone back to, or has a route. `Pruned::is_none` when nothing is left to delete.
    fn prune(&self, before: Timestamp, newest: u32) -> Answer<'_, Pruned>;
}
