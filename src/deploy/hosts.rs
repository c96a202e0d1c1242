//! Which host names a deployment has: its own for good, its branch's while it is the branch's newest, and those that come
//! with being live.

use super::engine::{Engine, Stop};
use super::moves::can_serve;
use super::names::{self, Name};
use super::publisher::Turn;
use crate::ids::{DeploymentId, EnvironmentName};
use crate::routing::HostName;
use crate::store::{App, Deployment, DesiredState, Failure, HostRow, RouteRow, Sticky};

/// What becomes of a generated name.
enum Given {
    /// The deployment has it, or gets it.
    Host(String),
    /// A newer deployment of the branch has it and keeps it.
    Newer,
    /// All its forms are somebody else's.
    Taken(Failure),
}

impl Engine {
    /// All routes that lead to the deployment once it is live, its own names included.
    pub(super) async fn live_rows(
        &self,
        turn: &Turn<'_>,
        deployment: &Deployment,
    ) -> Result<Vec<RouteRow>, Stop> {
        let Some(app) = self.store.app(&deployment.app).await? else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        if deployment.environment == EnvironmentName::production() {
            rows.extend(app.hosts.iter().map(|host| row(host.clone(), Sticky::Live, deployment)));
        }
        rows.extend(self.given(turn, names::live(&app.workspace, deployment), deployment).await?);
        rows.extend(self.given(turn, names::own(&app.workspace, deployment), deployment).await?);
        Ok(rows)
    }

    /// The routes by which a deployment is reached whatever is live.
    pub(super) async fn own_rows(
        &self,
        turn: &Turn<'_>,
        deployment: &Deployment,
    ) -> Result<Vec<RouteRow>, Stop> {
        let Some(app) = self.store.app(&deployment.app).await? else { return Ok(Vec::new()) };
        self.given(turn, names::own(&app.workspace, deployment), deployment).await
    }

    /// Where the deployment is or will be reached, if that is known: under its label, by its own name, or at a host of
    /// the app.
    pub(super) async fn url(&self, deployment: &Deployment) -> Result<Option<String>, Stop> {
        if let Some(own) = self.own_url(deployment).await? {
            return Ok(Some(own));
        }
        let is_production = deployment.environment == EnvironmentName::production();
        let app =
            self.store.app(&deployment.app).await?.filter(|_| is_production && deployment.label.is_none());
        Ok(app.and_then(|app| first_exact(&app)).map(|place| self.options.urls.of(&place)))
    }

    /// Where the deployment is reached whatever is live.
    pub(super) async fn own_url(&self, deployment: &Deployment) -> Result<Option<String>, Stop> {
        let Some(app) = self.store.app(&deployment.app).await? else { return Ok(None) };
        let place = match &deployment.label {
            Some(label) => self.base_of_labels(&app, deployment).await?.map(|base| format!("{label}.{base}")),
            None => {
                let own = names::own(&app.workspace, deployment);
                self.host_of(own, Sticky::Deployment, deployment).await?
            }
        };
        Ok(place.map(|place| self.options.urls.of(&place)))
    }

    /// Where its environment is reached, whatever is live there.
    pub(super) async fn environment_url(&self, live: &Deployment) -> Result<Option<String>, Stop> {
        let Some(app) = self.store.app(&live.app).await? else { return Ok(None) };
        let names = names::live(&app.workspace, live);
        let host = self.host_of(names, Sticky::Environment, live).await?;
        Ok(host.map(|host| self.options.urls.of(&host)))
    }

    /// What a label is put before, and so the best of the app's hosts.
    async fn base_of_labels(&self, app: &App, deployment: &Deployment) -> Result<Option<String>, Stop> {
        if let Some(exact) = first_exact(app) {
            return Ok(Some(exact));
        }
        let names = names::live(&app.workspace, deployment);
        if let Some(generated) = self.host_of(names, Sticky::Live, deployment).await? {
            return Ok(Some(generated));
        }
        let below = |row: &HostRow| row.host.strip_prefix("*.").map(|rest| shown(rest, &row.path));
        Ok(app.hosts.iter().find_map(below))
    }

    /// Which of its forms the name that sticks so has or gets.
    async fn host_of(
        &self,
        names: Vec<Name>,
        sticky: Sticky,
        deployment: &Deployment,
    ) -> Result<Option<String>, Stop> {
        let Some(apex) = &self.options.apex else { return Ok(None) };
        let Some(name) = names.into_iter().find(|name| name.sticky == sticky) else { return Ok(None) };
        match self.give(&name, apex, deployment).await? {
            Given::Host(host) => Ok(Some(host)),
            Given::Newer | Given::Taken(_) => Ok(None),
        }
    }

    /// Gives the app its generated live name before anything is live, so that its labels are reached there.
    pub(super) async fn open_live_name(&self, turn: &Turn<'_>, deployment: &Deployment) -> Result<(), Stop> {
        let Some(app) = self.store.app(&deployment.app).await? else { return Ok(()) };
        let mut names = names::live(&app.workspace, deployment);
        names.retain(|name| name.sticky == Sticky::Live);
        let mut rows = self.given(turn, names, deployment).await?;
        rows.retain(|row| self.publisher.row(&row.host.host).is_none());
        if rows.is_empty() {
            return Ok(());
        }
        let live = self.environment_of(deployment).await?.live;
        rows.iter_mut().for_each(|row| row.deployment = live);
        self.store.put_routes(&rows).await?;
        self.publisher.lead(turn, &rows);
        Ok(())
    }

    /// Nothing of the deployment is to run any more, and its own names lead nowhere from now on; that of its branch leads
    /// to the branch's next newest.
    pub(super) async fn archive(&self, id: DeploymentId) -> Result<(), Stop> {
        let turn = self.publisher.turn().await;
        self.store.set_desired_state(&id, DesiredState::Archived).await?;
        self.publisher.replace(&turn, self.store.routes().await?);
        Ok(())
    }

    /// The routes of those names that the deployment gets. The turn keeps others from getting them meanwhile.
    async fn given(
        &self,
        _turn: &Turn<'_>,
        names: Vec<Name>,
        deployment: &Deployment,
    ) -> Result<Vec<RouteRow>, Stop> {
        let Some(apex) = &self.options.apex else { return Ok(Vec::new()) };
        let mut rows = Vec::with_capacity(names.len());
        for name in names {
            match self.give(&name, apex, deployment).await? {
                Given::Host(host) => {
                    let host = HostRow { host, path: "/".to_owned(), strip: false };
                    rows.push(row(host, name.sticky, deployment));
                }
                Given::Newer => {}
                Given::Taken(failure) => return Err(Stop::Failed(failure)),
            }
        }
        Ok(rows)
    }

    async fn give(&self, name: &Name, apex: &HostName, deployment: &Deployment) -> Result<Given, Stop> {
        let hosts = name.hosts(apex);
        let mut owner = None;
        let mut free = None;
        for host in hosts {
            let Some(row) = self.publisher.row(&host) else {
                if !self.publisher.is_service_host(&host) {
                    free = free.or(Some(host));
                }
                continue;
            };
            // What it has stays, whatever has become free meanwhile.
            if row.app != deployment.app || row.sticky != name.sticky {
                owner = Some((host, row.app));
                continue;
            }
            let is_its = match name.sticky {
                Sticky::Live | Sticky::Environment => row.environment == deployment.environment,
                Sticky::Deployment | Sticky::Commit | Sticky::Ephemeral => {
                    row.deployment == Some(deployment.id)
                }
                Sticky::Branch => match row.deployment {
                    Some(holder) => {
                        let holder = self.deployment(holder).await?;
                        let is_same = holder.git.branch == deployment.git.branch;
                        if is_same && holder.ordinal > deployment.ordinal && can_serve(&holder) {
                            return Ok(Given::Newer);
                        }
                        is_same
                    }
                    None => false,
                },
            };
            if is_its {
                return Ok(Given::Host(host));
            }
            owner = Some((host, row.app));
        }
        Ok(match (free, owner) {
            (Some(host), _) => Given::Host(host),
            (None, owner) => {
                let cause = owner.map_or_else(
                    || "a static service has the generated host names".to_owned(),
                    |(host, owner)| format!("host {host} belongs to app {owner}"),
                );
                Given::Taken(Failure::new("host_taken", cause).remedy("take that host name from it"))
            }
        })
    }
}

fn first_exact(app: &App) -> Option<String> {
    let row = app.hosts.iter().find(|row| !row.host.starts_with('*'))?;
    Some(shown(&row.host, &row.path))
}

fn shown(host: &str, path: &str) -> String {
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

fn row(host: HostRow, sticky: Sticky, deployment: &Deployment) -> RouteRow {
    RouteRow {
        host,
        sticky,
        app: deployment.app.clone(),
        environment: deployment.environment.clone(),
        deployment: Some(deployment.id),
    }
}
