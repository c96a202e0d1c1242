//! What a deploy may ask for, and what becomes of it with the settings of its app.

use super::{Denied, DeployRequest, Orchestrator};
use crate::ids::EphemeralLabel;
use crate::settings::{AppSettings, RuntimeKind, Strategy};

/// Labels that nobody may have.
const RESERVED_LABELS: &[&str] = &["www", "admin"];

impl Orchestrator {
    pub(super) fn check_deploy(&self, request: &DeployRequest, settings: &AppSettings) -> Result<(), Denied> {
        if let Some(fault) = settings.faults().into_iter().next() {
            let detail = format!("{} {}", fault.field, fault.detail);
            return Err(Denied::Invalid {
                field: fault.field,
                detail,
                remedy: Some(fault.remedy.to_owned()),
            });
        }
        let invalid = |field, detail: &str, remedy: &str| {
            Err(Denied::Invalid {
                field: str::to_owned(field),
                detail: detail.to_owned(),
                remedy: Some(remedy.to_owned()),
            })
        };
        match self.engine.runtime.kind() {
            RuntimeKind::Docker if settings.image.is_none() => {
                return invalid(
                    "image",
                    "no image is named",
                    "set image in the app's settings or in the request",
                );
            }
            RuntimeKind::Process if settings.command.is_empty() => {
                return invalid(
                    "command",
                    "no command is named, and the process runtime runs commands",
                    "set command in the app's settings or in the request",
                );
            }
            RuntimeKind::Process if !settings.health.command.is_empty() => {
                return invalid(
                    "health.command",
                    "the process runtime runs no health commands",
                    "set health.path instead",
                );
            }
            RuntimeKind::Process if request.image.is_some() && request.command.is_none() => {
                return invalid(
                    "image",
                    "an image is named, and the process runtime runs commands",
                    "name a command instead, or run lockgate with runtime: docker",
                );
            }
            RuntimeKind::Docker | RuntimeKind::Process | RuntimeKind::Auto => {}
        }
        if request.version.is_some() && (request.image.is_some() || request.command.is_some()) {
            return invalid(
                "version",
                "a version is named, and an image or a command beside it",
                "leave out one of them: a version has its image and command",
            );
        }
        if settings.deploy.strategy == Strategy::Hold && !request.cutover && request.label.is_none() {
            return invalid(
                "cutover",
                "with deploy.strategy hold no version runs beside the live one",
                "deploy it with a cutover, or under a label",
            );
        }
        if let Some(label) = &request.label {
            let reserved = &self.engine.options.reserved_labels;
            let label = label.as_str();
            if RESERVED_LABELS.contains(&label)
                || reserved.iter().any(|word| word == label)
                || label.starts_with("xn--")
            {
                return invalid("label", "the label is reserved", "choose another label");
            }
        }
        if settings.deploy.strategy == Strategy::Hold && !request.steps.is_empty() {
            return invalid(
                "steps",
                "with deploy.strategy hold no version runs beside the live one",
                "leave out the steps, or set deploy.strategy to swap",
            );
        }
        if request.label.is_some() && !request.steps.is_empty() {
            return invalid(
                "steps",
                "an ephemeral deployment never goes live",
                "leave out the steps or the label",
            );
        }
        if request.lazy && request.label.is_none() {
            return invalid(
                "lazy",
                "only an ephemeral deployment starts with its first request",
                "name a label",
            );
        }
        if request.lazy && !settings.wake {
            return invalid(
                "lazy",
                "with wake: false no request starts it",
                "set wake to true, or deploy it without lazy",
            );
        }
        if request.ttl.is_some_and(|ttl| ttl.0.is_zero()) {
            return invalid("ttl", "the ttl is not positive", "write for example 2h");
        }
        if request.ttl.is_some() && request.label.is_none() {
            return invalid(
                "ttl",
                "a ttl is given, but no label",
                "name a label: only ephemeral deployments expire",
            );
        }
        Ok(())
    }
}

/// With the label that it asks to be made.
pub(super) fn labelled(mut request: DeployRequest) -> Result<DeployRequest, Denied> {
    let Some(name) = request.label_of.take() else { return Ok(request) };
    let made = EphemeralLabel::made_of(&name).filter(|_| request.label.is_none());
    let label = made.ok_or_else(|| Denied::Invalid {
        field: "label_of".to_owned(),
        detail: if request.label.is_some() {
            "a label is given, and a name that one is to be made of".to_owned()
        } else {
            format!("no label can be made of {name:?}")
        },
        remedy: Some("give either, and a name with a letter or digit of a-z and 0-9".to_owned()),
    })?;
    Ok(DeployRequest { label: Some(label), ..request })
}

/// The app's settings with what the request replaces.
pub(super) fn merge(settings: &AppSettings, request: &DeployRequest) -> AppSettings {
    let mut merged = settings.clone();
    if request.image.is_some() {
        merged.image.clone_from(&request.image);
    }
    if let Some(command) = &request.command {
        merged.command.clone_from(command);
    }
    merged.env.extend(request.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    merged
}
