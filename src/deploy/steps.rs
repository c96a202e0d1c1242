//! The steps of operations, by name, with the fail points around each.

/// A step and its fail points: after its intent is journaled, after it acted, after its result is journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepName {
    pub name: &'static str,
    pub begun: &'static str,
    pub acted: &'static str,
    pub recorded: &'static str,
}

macro_rules! steps {
    ($($(#[$doc:meta])* $constant:ident: $name:literal;)*) => {
        $($(#[$doc])* pub const $constant: StepName = StepName {
            name: $name,
            begun: concat!("step.", $name, ".begun"),
            acted: concat!("step.", $name, ".acted"),
            recorded: concat!("step.", $name, ".recorded"),
        };)*
        /// All of them: what the crash matrix walks through.
        pub const ALL: &[StepName] = &[$($constant),*];
    };
}

steps! {
    /// Make the image or command available and pin it.
    IMAGE: "image";
    /// Run the app's release command.
    RELEASE: "release";
    /// Start what is in standby (a swap to a stopped version).
    WAKE: "wake";
    /// Start the instances.
    START: "start";
    /// Wait until each is ready.
    CHECK: "check";
    /// Decide whether it may go live.
    GATE: "gate";
    /// Lead a growing share of the visitors there, before all.
    SPLIT: "split";
    /// Take the last step before its time.
    FINISH: "finish";
    /// Commit, publish, close the old gates.
    SWAP: "swap";
    /// Commit another number of instances, publish, close the gates of those that go.
    SCALE: "scale";
    /// Open the app.
    ENABLE: "enable";
    /// Hold requests, drain and stop the old version (strategy `hold`).
    HOLD: "hold";
    /// See whether the new version holds.
    WATCH: "watch";
    /// Take the traffic back to the old version.
    TAKE_BACK: "take-back";
    /// Wait for what the old version still serves.
    DRAIN: "drain";
}
