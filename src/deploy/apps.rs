//! Apps and their host names, made and changed.

use tracing::warn;

use super::{Denied, HostChange, Orchestrator, parse_host};
use crate::ids::AppName;
use crate::settings::unheard_https;
use crate::store::{App, IdempotencyKey, Origin};

impl Orchestrator {
    /// Creates apps or changes their settings and host names, all or none: host names may move between them. What is
    /// live stays live. Routes follow at once.
    ///
    /// # Errors
    /// What is wrong with an app's settings, that a host is taken, or that the store is away. Then nothing has changed.
    pub async fn put_apps(&self, apps: &[App]) -> Result<(), Denied> {
        for app in apps {
            self.check_app(app)?;
        }
        let turn = self.engine.publisher.turn().await;
        self.engine.store.put_apps(apps).await?;
        self.engine.hours.changed();
        self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        Ok(())
    }

    /// As [`Orchestrator::put_apps`] of one that no configuration file has; with a key, unless the same call was made before:
    /// what changed since stays.
    ///
    /// # Errors
    /// The same, that it says of https what nobody would be told here, and that the key was used for another call.
    pub async fn put_app(&self, app: &App, key: Option<&IdempotencyKey>) -> Result<(), Denied> {
        // A file's apps are looked at with its listeners, which may wait for a restart.
        let unheard = if self.engine.options.https {
            Vec::new()
        } else {
            unheard_https(app.settings.https, app.settings.hsts)
        };
        if let Some((field, detail, remedy)) = unheard.into_iter().next() {
            return Err(Denied::Invalid {
                field: field.to_owned(),
                detail: format!("{}: {field} {detail}", app.name),
                remedy: Some(remedy.to_owned()),
            });
        }
        let Some(key) = key else { return self.put_apps(std::slice::from_ref(app)).await };
        self.check_app(app)?;
        let turn = self.engine.publisher.turn().await;
        if self.engine.store.put_app_once(app, key).await? {
            self.engine.hours.changed();
            self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        }
        Ok(())
    }

    /// Changes the host names of one app, all at one instant; the rest of it stays. What is in flight through a host that
    /// goes ends as it would have; whoever asks for it from then on gets a 404.
    ///
    /// # Errors
    /// If there is no such app, a host is not valid, not there or taken, or the store is away.
    pub async fn change_hosts(&self, name: &AppName, change: &HostChange) -> Result<(), Denied> {
        let turn = self.engine.publisher.turn().await;
        let found = self.engine.store.app(name).await?;
        let mut app = found.ok_or_else(|| Denied::AppNotFound { app: name.clone() })?;
        change.apply(&mut app.hosts)?;
        self.check_app(&app)?;
        self.engine.store.put_apps(&[app]).await?;
        self.engine.publisher.replace(&turn, self.engine.store.routes().await?);
        Ok(())
    }

    fn check_app(&self, app: &App) -> Result<(), Denied> {
        let apex = self.engine.options.apex.as_ref();
        if let Some(fault) = app.settings.faults().into_iter().next() {
            let detail = format!("{}: {} {}", app.name, fault.field, fault.detail);
            let remedy = Some(fault.remedy.to_owned());
            return Err(Denied::Invalid { field: fault.field, detail, remedy });
        }
        for row in &app.hosts {
            let (pattern, prefix) = parse_host(row).map_err(|detail| Denied::Invalid {
                field: "hosts".to_owned(),
                detail,
                remedy: Some("write www.example.com, *.example.com or *".to_owned()),
            })?;
            // A reload checks the file's own apps and services against each other, and may move a host between them.
            if app.origin == Origin::Api && self.engine.publisher.is_service(&pattern, &prefix) {
                return Err(Denied::Invalid {
                    field: "hosts".to_owned(),
                    detail: format!("host {} belongs to a static service of the configuration", row.host),
                    remedy: Some("take it from the service, or choose another host".to_owned()),
                });
            }
            if apex.is_some_and(|apex| pattern.to_string().ends_with(&format!(".{apex}"))) {
                warn!(app = %app.name, host = row.host, "host lies under the apex of generated names");
            }
        }
        Ok(())
    }
}
