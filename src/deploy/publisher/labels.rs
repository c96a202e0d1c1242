//! Ephemeral labels: which deployment each leads to, and until when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::Publisher;
use super::state::{Label, State};
use crate::ids::{AppName, DeploymentId};
use crate::routing::preview_auth::PreviewAuth;

/// Labels of one app whose deployments are gone, and that are still told apart from those that never were.
const ENDED_LABELS_MAX: usize = 100;

impl Publisher {
    /// Leads an ephemeral label of the app to a deployment until it expires.
    pub(in crate::deploy) fn set_label(
        &self,
        app: &AppName,
        label: &str,
        deployment: DeploymentId,
        expires_at: Instant,
        auth: Option<Arc<PreviewAuth>>,
    ) {
        let mut state = self.lock();
        let led = Label { deployment, expires_at, is_ended: false, auth };
        state.labels.entry(app.clone()).or_default().insert(label.into(), led);
        let hosts = state.hosts_of_app(app);
        self.publish(&state, &hosts);
    }

    /// Moves the expiry of a label, if it still leads to that deployment.
    pub(in crate::deploy) fn extend_label(
        &self,
        app: &AppName,
        label: &str,
        deployment: DeploymentId,
        expires_at: Instant,
    ) {
        let mut state = self.lock();
        let known = state.labels.get_mut(app).and_then(|labels| labels.get_mut(label));
        let Some(known) = known.filter(|known| known.deployment == deployment) else { return };
        known.expires_at = expires_at;
        let hosts = state.hosts_of_app(app);
        self.publish(&state, &hosts);
    }

    /// From now on the label is expired, if it still leads to that deployment. Of those the last are remembered.
    pub(in crate::deploy) fn end_label(
        &self,
        app: &AppName,
        label: &str,
        deployment: DeploymentId,
        now: Instant,
    ) {
        let mut state = self.lock();
        let known = state.labels.get_mut(app).and_then(|labels| labels.get_mut(label));
        let Some(known) = known.filter(|known| known.deployment == deployment) else { return };
        known.is_ended = true;
        known.expires_at = known.expires_at.min(now);
        state.trim_labels(app);
        let hosts = state.hosts_of_app(app);
        self.publish(&state, &hosts);
    }

    /// Deployments whose labels are expired, and that nobody has ended yet.
    pub(in crate::deploy) fn expired_labels(&self, now: Instant) -> Vec<DeploymentId> {
        let state = self.lock();
        let all = state.labels.values().flat_map(BTreeMap::values);
        all.filter(|label| !label.is_ended && label.expires_at <= now).map(|label| label.deployment).collect()
    }

    /// Forgets a label, if it still leads to that deployment: from then on it is unknown.
    pub(in crate::deploy) fn clear_label(&self, app: &AppName, label: &str, deployment: DeploymentId) {
        let mut state = self.lock();
        let Some(labels) = state.labels.get_mut(app) else { return };
        if labels.get(label).is_none_or(|known| known.deployment != deployment) {
            return;
        }
        labels.remove(label);
        if labels.is_empty() {
            state.labels.remove(app);
        }
        let hosts = state.hosts_of_app(app);
        self.publish(&state, &hosts);
    }
}

impl State {
    /// Of an app's labels that have ended, keeps those that ended last.
    fn trim_labels(&mut self, app: &AppName) {
        let Some(labels) = self.labels.get_mut(app) else { return };
        let mut over: Vec<_> = labels.iter().filter(|(_, label)| label.is_ended).collect();
        over.sort_unstable_by_key(|(_, label)| label.expires_at);
        over.truncate(over.len().saturating_sub(ENDED_LABELS_MAX));
        for text in over.into_iter().map(|(text, _)| text.clone()).collect::<Vec<_>>() {
            labels.remove(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::deploy::publisher::Owner;
    use crate::ids::EnvironmentName;
    use crate::routing::Routing;
    use crate::settings::Protocol;

    #[test]
    fn of_labels_that_ended_only_the_last_are_remembered() {
        let publisher = Publisher::new(Arc::new(Routing::new(1)), Arc::new(SystemClock), [0; 32]);
        let app: AppName = "web".parse().unwrap();
        let now = SystemClock.now();
        let extra = 5;
        let label = |n: usize| format!("p{n}");
        for n in 0..ENDED_LABELS_MAX + extra {
            let deployment = DeploymentId::generate();
            let owner = Owner {
                app: app.clone(),
                environment: EnvironmentName::production(),
                deployment,
                sequence: n as u64,
                has_pages: false,
                preview_auth: None,
                pages_for: None,
                protocol: Protocol::Http1,
                tls: None,
                proxy_protocol: None,
                balance: crate::settings::BalanceSettings::default(),
                slow_start: None,
                limit: None,
                https: None,
                policies: [].into(),
                counted_in: "".into(),
            };
            publisher.set_instances(&owner, &[]);
            publisher.set_label(
                &app,
                &label(n),
                deployment,
                now + std::time::Duration::from_secs(n as u64),
                None,
            );
            publisher.end_label(&app, &label(n), deployment, now + std::time::Duration::from_secs(3600));
            publisher.forget(deployment);
        }
        let labels = publisher.lock().labels_of(&app);
        let later = now + std::time::Duration::from_secs(3600);
        let told = |n| labels.find(&label(n), later).unwrap_err();
        assert_eq!(told(extra - 1), crate::routing::label::LabelMiss::Unknown);
        for n in extra..ENDED_LABELS_MAX + extra {
            assert_eq!(told(n), crate::routing::label::LabelMiss::Expired, "{n}");
        }
    }
}
