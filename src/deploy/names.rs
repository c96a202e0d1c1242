//! Host names that are made, not chosen: `web-git-1a2b3c4.apps.example.com`.
//!
//! Deterministic from what the store has. Where the plain name is too long, or leads to something else already, it ends in
//! eight characters of a hash over all that it names, so that two stay two. Names that never move are given once:
//! another deployment of the same commit has the plain name only if nobody has it.

use crate::ids::{EnvironmentName, WorkspaceName};
use crate::routing::HostName;
use crate::store::{Deployment, Sticky};

const LABEL_OCTETS_MAX: usize = 63;
const HASH_CHARACTERS: usize = 8;
/// RFC 4648 section 6, in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A name to be given, in the forms that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) sticky: Sticky,
    /// `None` if it is too long for a label, or nothing of what it stands for can be written in one.
    plain: Option<String>,
    /// With the hash.
    exact: String,
}

/// The names by which a deployment is reached whatever is live: its own, its commit's and its branch's.
pub(super) fn own(workspace: &WorkspaceName, deployment: &Deployment) -> Vec<Name> {
    let (id, git) = (deployment.id.to_string(), &deployment.git);
    let mut names = vec![Name::new(
        Sticky::Deployment,
        workspace,
        deployment,
        &[&deployment.id.short()],
        &["deployment", &id],
    )];
    if let Some(commit) = git.commit.as_deref().filter(|commit| commit.len() >= 7 && commit.is_ascii()) {
        let shown = commit[..7].to_ascii_lowercase();
        names.push(Name::new(
            Sticky::Commit,
            workspace,
            deployment,
            &["git", &shown],
            &["commit", commit, &id],
        ));
    }
    if let Some(branch) = &git.branch {
        let slug = slug(branch);
        let whole = ["branch", branch.as_str()];
        names.push(if slug.is_empty() {
            // Without a letter or digit of ASCII's it has no plain name: such branches would all share it.
            Name { plain: None, ..Name::new(Sticky::Branch, workspace, deployment, &["git"], &whole) }
        } else {
            Name::new(Sticky::Branch, workspace, deployment, &["git", &slug], &whole)
        });
    }
    names
}

/// The names that move when a deployment becomes live in its environment.
pub(super) fn live(workspace: &WorkspaceName, deployment: &Deployment) -> Vec<Name> {
    let environment = deployment.environment.as_str();
    let whole = ["environment", environment];
    let mut names = vec![Name::new(Sticky::Environment, workspace, deployment, &[environment], &whole)];
    if deployment.environment == EnvironmentName::production() {
        names.push(Name::new(Sticky::Live, workspace, deployment, &[], &["live"]));
    }
    names
}

impl Name {
    /// `app-part-part-workspace`, the default workspace left out; hashed is the whole of what the parts stand for.
    fn new(
        sticky: Sticky,
        workspace: &WorkspaceName,
        deployment: &Deployment,
        parts: &[&str],
        whole: &[&str],
    ) -> Self {
        let app = deployment.app.as_str();
        let mut words = vec![app];
        words.extend(parts);
        if *workspace != WorkspaceName::default_workspace() {
            words.push(workspace.as_str());
        }
        let plain = words.join("-");
        let tuple: Vec<&str> = [workspace.as_str(), app].into_iter().chain(whole.iter().copied()).collect();
        let room = plain.len().min(LABEL_OCTETS_MAX - HASH_CHARACTERS - 1);
        let exact = format!("{}-{}", plain[..room].trim_end_matches('-'), hash(&tuple));
        Self { sticky, plain: (plain.len() <= LABEL_OCTETS_MAX).then_some(plain), exact }
    }

    /// The host names that it may have, the best first.
    pub(super) fn hosts(&self, apex: &HostName) -> Vec<String> {
        self.plain.iter().chain([&self.exact]).map(|label| format!("{label}.{apex}")).collect()
    }
}

fn hash(tuple: &[&str]) -> String {
    // Joined by a character that is in no word, so that different tuples never hash alike.
    let hash = blake3::hash(tuple.join("\0").as_bytes());
    let characters = hash.as_bytes()[..HASH_CHARACTERS].iter();
    characters.map(|byte| char::from(BASE32[usize::from(byte % 32)])).collect()
}

/// Lower case letters, digits and single hyphens of a branch name.
fn slug(branch: &str) -> String {
    let mut slug = String::with_capacity(branch.len());
    for character in branch.chars().map(|character| character.to_ascii_lowercase()) {
        match character {
            'a'..='z' | '0'..='9' => slug.push(character),
            _ if slug.is_empty() || slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{DeploymentId, OperationId};
    use crate::settings::AppSettings;
    use crate::store::{DeploymentStatus, DesiredState, GitFacts};

    /// Of a deployment of that branch.
    fn named(app: &str, branch: &str) -> Vec<String> {
        let deployment = Deployment {
            id: DeploymentId::generate(),
            app: app.parse().unwrap(),
            environment: EnvironmentName::production(),
            ordinal: 1,
            sequence: 1,
            status: DeploymentStatus::Ready,
            desired_state: DesiredState::Running,
            settings: AppSettings::default(),
            git: GitFacts { branch: Some(branch.to_owned()), ..GitFacts::default() },
            pinned: None,
            state_hash: None,
            label: None,
            expires_at: None,
            failure: None,
            operation: OperationId::generate(),
            created_at: Timestamp::UNIX_EPOCH,
            live_at: None,
        };
        let names = own(&WorkspaceName::default_workspace(), &deployment);
        let of_branch = names.iter().find(|name| name.sticky == Sticky::Branch).unwrap();
        of_branch.hosts(&"apps.test".parse().unwrap())
    }

    #[test]
    fn labels_are_cut_at_63_octets_and_stay_distinct() {
        let (one, two) = ("b".repeat(40), format!("{}c", "b".repeat(39)));
        let (one, two) = (named(&"a".repeat(40), &one), named(&"a".repeat(40), &two));
        for host in one.iter().chain(&two) {
            let label = host.strip_suffix(".apps.test").unwrap();
            assert!(label.len() <= 63 && crate::ids::is_label(label), "{label}");
        }
        assert_ne!(one, two);
        assert_eq!((one.len(), two.len()), (1, 1), "too long to be plain");
    }

    #[test]
    fn names_that_look_alike_differ_where_they_are_exact() {
        let (one, two) = (named("web", "feat/x"), named("web", "feat-x"));
        assert_eq!(one[0], "web-git-feat-x.apps.test");
        assert_eq!(one[0], two[0]);
        assert_ne!(one[1], two[1]);
        assert_eq!(one[1].len(), one[0].len() + 9);
    }

    #[test]
    fn branches_that_cannot_be_written_have_names_of_their_own_all_the_same() {
        let (one, two) = (named("web", "功能"), named("web", "修复"));
        for hosts in [&one, &two] {
            let label = hosts[0].strip_suffix(".apps.test").unwrap();
            assert!(label.starts_with("web-git-") && label.len() == "web-git-".len() + 8, "{label}");
        }
        assert_eq!((one.len(), two.len()), (1, 1));
        assert_ne!(one, two);
    }

    #[test]
    fn slugs_of_branches() {
        for (branch, expected) in [("Feat/X_1", "feat-x-1"), ("--a//b--", "a-b"), ("ü", ""), ("main", "main")]
        {
            assert_eq!(slug(branch), expected);
        }
    }
}
