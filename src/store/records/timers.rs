//! What changes at a later time.

use super::DesiredState;
use crate::clock::Timestamp;
use crate::ids::DeploymentId;

/// A change of desired state at a later time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    pub deployment: DeploymentId,
    /// Makes this arming different from an earlier and a later one.
    pub nonce: String,
    pub state: DesiredState,
    pub due: Timestamp,
}

/// What a due timer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    Done,
    /// Replaced or cleared meanwhile: no effect, and that is right.
    NotArmed,
    /// The deployment is live: the timer is removed and nothing else changed.
    IsLive,
}
