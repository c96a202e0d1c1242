//! What is said of versions on the command line: how they are deployed, go live, go back, and rest.

use clap::Args;

use crate::api::DeployRequest;
use crate::ids::{AppName, DeploymentId, EnvironmentName, EphemeralLabel};
use crate::settings::{Delay, Percent};

use super::words::{delay, deployment, label_of, scheduled_state};

#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Name of the app.
    pub app: AppName,
    /// Where to; one that is not there is made, for previews [default: production]
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Image reference; the app's if not given.
    #[arg(long, short)]
    pub image: Option<String>,
    /// Deploy that version again, with its settings, env vars and exact image.
    #[arg(id = "of_version", long = "version", value_name = "DEPLOYMENT", conflicts_with = "image", value_parser = deployment)]
    pub of_version: Option<DeploymentId>,
    /// Env var, NAME=VALUE.
    #[arg(long = "env", short)]
    pub env: Vec<String>,
    /// Commit that this version is made of.
    #[arg(long)]
    pub commit: Option<String>,
    /// Branch that it is of, which has a host name that follows its newest version.
    #[arg(long)]
    pub branch: Option<String>,
    /// Ephemeral: never live, reached at `LABEL.<any host of the app>`.
    #[arg(long, value_name = "LABEL")]
    pub ephemeral: Option<String>,
    /// Time to live of an ephemeral deployment.
    #[arg(long)]
    pub ttl: Option<String>,
    /// Refuse where there are too many, instead of ending the one that expires soonest.
    #[arg(long, requires = "ephemeral")]
    pub no_evict: bool,
    /// It is reached at once, and starts with its first request.
    #[arg(long, requires = "ephemeral")]
    pub lazy: bool,
    /// Deploy even if an equal deployment is live.
    #[arg(long)]
    pub force: bool,
    /// Become ready, but do not take the traffic.
    #[arg(long)]
    pub no_cutover: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
    #[command(flatten)]
    pub steps: StepArgs,
    /// Do not wait for the end.
    #[arg(long)]
    pub detach: bool,
    /// Command and arguments, after --; the app's if not given.
    #[arg(last = true)]
    pub command: Vec<String>,
}

impl DeployArgs {
    pub(super) fn request(&self) -> Result<(DeployRequest, Vec<String>), String> {
        let mut notes = Vec::new();
        let label = match &self.ephemeral {
            None => None,
            Some(text) => {
                let label = label_of(text)?;
                if label.as_str() != text {
                    notes.push(format!("label {text:?} becomes {:?}", label.as_str()));
                }
                Some(label)
            }
        };
        let ttl = match &self.ttl {
            None => None,
            Some(text) => Some(delay(text)?),
        };
        let request = DeployRequest {
            environment: self.environment.clone(),
            image: self.image.clone(),
            version: self.of_version,
            command: (!self.command.is_empty()).then(|| self.command.clone()),
            git: crate::api::GitFacts {
                commit: self.commit.clone(),
                branch: self.branch.clone(),
                subject: None,
            },
            label,
            ttl,
            evict: !self.no_evict,
            lazy: self.lazy,
            force: self.force,
            cutover: !self.no_cutover,
            queue: !self.no_queue,
            steps: self.steps.steps.clone(),
            step_for: self.steps.step_for,
            ..DeployRequest::default()
        };
        Ok((request, notes))
    }
}

#[derive(Debug, Args)]
pub struct SwapArgs {
    /// Name of the app.
    pub app: AppName,
    /// Its id, as `lockgate versions APP` lists it.
    #[arg(value_parser = deployment)]
    pub deployment: DeploymentId,
    /// In which environment [default: production]
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Refuse if the environment's generation is another one.
    #[arg(long)]
    pub expected_generation: Option<u64>,
    #[command(flatten)]
    pub steps: StepArgs,
    /// Answer after the drain of the old version instead of after the cutover.
    #[arg(long)]
    pub drain: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
}

/// A cutover in steps.
#[derive(Clone, Debug, Args)]
pub struct StepArgs {
    /// Shares of the visitors that get the version one after the other, as 5%,25%,100%; each stays on its version.
    #[arg(long, value_delimiter = ',', value_name = "SHARES")]
    pub steps: Vec<Percent>,
    /// How long each step before the last lasts; a minute if not given.
    #[arg(long, requires = "steps", value_name = "DURATION", value_parser = delay)]
    pub step_for: Option<Delay>,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Name of the app.
    pub app: AppName,
    /// The deployment to go back to [default: the newest earlier one that was live]
    #[arg(long = "to", value_name = "DEPLOYMENT", value_parser = deployment)]
    pub target: Option<DeploymentId>,
    /// Refuse if another deployment is live.
    #[arg(long = "from", value_name = "DEPLOYMENT", value_parser = deployment)]
    pub source: Option<DeploymentId>,
    #[command(flatten)]
    pub how: MoveArgs,
}

#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// Name of the app.
    pub app: AppName,
    /// The live one, after a rollback: it stays live, and deploys go live again.
    #[arg(required_unless_present = "from_preview", value_parser = deployment)]
    pub deployment: Option<DeploymentId>,
    /// Deploy the very image of this preview, with production's settings and env vars, and make it live.
    #[arg(long, value_name = "LABEL", conflicts_with = "deployment", value_parser = label_of)]
    pub from_preview: Option<EphemeralLabel>,
    #[command(flatten)]
    pub how: MoveArgs,
}

/// What is said of a rollback as of a promote.
#[derive(Clone, Debug, Args)]
pub struct MoveArgs {
    /// In which environment [default: production]
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Answer after the drain of the version that was live instead of after the cutover.
    #[arg(long)]
    pub drain: bool,
    /// Refuse while another operation is in progress, instead of waiting in line.
    #[arg(long)]
    pub no_queue: bool,
}

#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Name of the app.
    pub app: AppName,
    /// 1 to 100.
    pub replicas: u16,
    /// In which environment [default: production]
    #[arg(long)]
    pub environment: Option<EnvironmentName>,
    /// Answer after the drain of the instances that go.
    #[arg(long)]
    pub drain: bool,
}

#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// Its id, as `lockgate versions APP` lists it.
    #[arg(value_parser = deployment)]
    pub deployment: DeploymentId,
    /// running: woken; standby: stopped and kept; archived: removed, and can be deployed again.
    #[arg(required_unless_present = "clear", conflicts_with = "clear", value_parser = scheduled_state)]
    pub state: Option<crate::api::ScheduledState>,
    /// How long from now, as 10m [default: at once]
    #[arg(long = "in", value_name = "DELAY", conflicts_with = "clear")]
    pub delay: Option<humantime::Duration>,
    /// Leave alone what is pending already.
    #[arg(long, conflicts_with = "clear")]
    pub keep_pending: bool,
    /// Leave its desired state as it is.
    #[arg(long)]
    pub clear: bool,
}
