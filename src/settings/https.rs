//! What is said of https where nobody listens for it.

use super::{Delay, HttpsMode};

/// What is wrong with one of the two: the field, why, and what to write.
type Fault = (&'static str, &'static str, &'static str);

/// What of an app's or a service's word on https nobody would be told without a listener for it.
#[must_use]
pub fn unheard_https(mode: Option<HttpsMode>, hsts: Option<Delay>) -> Vec<Fault> {
    let mut faults = Vec::new();
    if mode == Some(HttpsMode::Redirect) {
        let remedy = "write listeners.https.address, which needs a restart, or https: allow";
        faults.push(("https", "leads to no listener", remedy));
    }
    if hsts.is_some_and(|hsts| !hsts.0.is_zero()) {
        let remedy = "write listeners.https.address, which needs a restart, or leave it out";
        faults.push(("hsts", "is told over https alone, for which there is no listener", remedy));
    }
    faults
}
