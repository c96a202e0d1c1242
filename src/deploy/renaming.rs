//! Another name for an app: ids, instances and what is live stay; the host names that are generated of its name change.
//!
//! The runtime goes on knowing the app by its first name (`Store::first_name`), so that labels, networks and volumes of what
//! runs need not change, and the next instance finds the same volumes.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::info;

use super::engine::{Engine, Stop};
use super::preview::{auth_of, instant};
use super::publisher::Turn;
use super::{Denied, Orchestrator, names};
use crate::ids::AppName;
use crate::store::{App, Deployment, HostRow, Of, RouteRow, Sticky};

impl Orchestrator {
    /// Renames the app. All of its host names lead where they led, the generated ones under the new name, from one instant
    /// on.
    ///
    /// # Errors
    /// If there is no such app, the name is taken, something of the app is in progress or drains, no generated name is
    /// free, or the store is away. Then nothing has changed.
    pub async fn rename_app(&self, from: &AppName, to: &AppName) -> Result<(), Denied> {
        let engine = &self.engine;
        let _submitting = engine.submitting.lock().await;
        let app = engine.store.app(from).await?;
        let app = app.ok_or_else(|| Denied::AppNotFound { app: from.clone() })?;
        if from == to {
            return Ok(());
        }
        let unfinished = engine.store.unfinished_operations().await?;
        if let Some(holder) = unfinished.iter().find(|operation| operation.app == *from) {
            return Err(Denied::OperationInProgress { holder: holder.id });
        }
        let turn = engine.publisher.turn().await;
        let rows = engine.rows_under(&turn, &app, to).await?;
        if !engine.store.rename_app(from, to, &rows).await? {
            return Err(Denied::AppExists { app: to.clone() });
        }
        engine.publisher.rename(&turn, from, to, engine.store.routes().await?);
        engine.baselines.forget_all_of(&engine.publisher, to);
        drop(turn);
        // Links are good for the name that they were signed for.
        for preview in engine.store.ephemerals(Some(to)).await? {
            if let (Some(label), Some(expires_at)) = (&preview.label, preview.expires_at) {
                let until = instant(&engine.clock, expires_at);
                let auth = auth_of(engine.store.as_ref(), &preview);
                engine.publisher.set_label(to, label.as_str(), preview.id, until, auth);
            }
        }
        info!(app = %from, name = %to, "app renamed");
        Ok(())
    }
}

impl Engine {
    /// The routes of the app as they are to be under its new name.
    async fn rows_under(
        self: &Arc<Self>,
        _turn: &Turn<'_>,
        app: &App,
        to: &AppName,
    ) -> Result<Vec<RouteRow>, Denied> {
        let all = self.store.routes().await?;
        let mut given: HashSet<String> = HashSet::new();
        let mut rows = Vec::new();
        for row in all.into_iter().filter(|row| row.app == app.name) {
            let is_own = row.sticky == Sticky::Live && app.hosts.iter().any(|host| is_same(host, &row.host));
            let host = if is_own { row.host.clone() } else { self.host_under(app, to, &row, &given).await? };
            given.insert(host.host.clone());
            rows.push(RouteRow { host, app: to.clone(), ..row });
        }
        Ok(rows)
    }

    /// The generated host of a route under the app's new name; the first of its forms that nobody has.
    async fn host_under(
        &self,
        app: &App,
        to: &AppName,
        row: &RouteRow,
        given: &HashSet<String>,
    ) -> Result<HostRow, Denied> {
        let Some(apex) = &self.options.apex else { return Ok(row.host.clone()) };
        let Some(deployment) = self.example_of(row).await? else { return Ok(row.host.clone()) };
        let deployment = Deployment { app: to.clone(), environment: row.environment.clone(), ..deployment };
        let mut names = names::live(&app.workspace, &deployment);
        names.extend(names::own(&app.workspace, &deployment));
        let Some(name) = names.into_iter().find(|name| name.sticky == row.sticky) else {
            return Ok(row.host.clone());
        };
        let is_free = |host: &String| {
            !given.contains(host)
                && self.publisher.row(host).is_none()
                && !self.publisher.is_service_host(host)
        };
        let hosts = name.hosts(apex);
        match hosts.iter().find(|host| is_free(host)) {
            Some(host) => Ok(HostRow { host: host.clone(), ..row.host.clone() }),
            None => Err(Denied::Invalid {
                field: "name".to_owned(),
                detail: format!("the host names {} are taken", hosts.join(" and ")),
                remedy: Some("choose another name, or take them from whoever has them".to_owned()),
            }),
        }
    }

    /// What the route leads to, or else any deployment there: names of an environment depend on nothing of it.
    async fn example_of(&self, row: &RouteRow) -> Result<Option<Deployment>, Denied> {
        if let Some(id) = row.deployment {
            return Ok(self.store.deployment(&id).await?);
        }
        let of = Of { app: Some(row.app.clone()), environment: None };
        match self.all_deployments(&of).await {
            Ok(all) => Ok(all.into_iter().next()),
            Err(Stop::Store(source)) => Err(Denied::Store { source }),
            Err(_) => Ok(None),
        }
    }
}

fn is_same(one: &HostRow, other: &HostRow) -> bool {
    (&one.host, &one.path) == (&other.host, &other.path)
}
