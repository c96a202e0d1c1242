//! A change of an app's own host names.

use super::Denied;
use crate::store::HostRow;

/// What is to become of an app's own host names. One is meant by its host and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// One more, or another `strip` of one that is there.
    Add(HostRow),
    Remove(HostRow),
    /// Another name for one, in its place.
    Rename {
        from: HostRow,
        to: HostRow,
    },
}

impl HostChange {
    pub(super) fn apply(&self, hosts: &mut Vec<HostRow>) -> Result<(), Denied> {
        match self {
            Self::Add(added) => match position(hosts, added) {
                Some(at) => hosts[at] = added.clone(),
                None => hosts.push(added.clone()),
            },
            Self::Remove(gone) => {
                hosts.remove(position(hosts, gone).ok_or_else(|| not_there(gone))?);
            }
            Self::Rename { from, to } => {
                let at = position(hosts, from).ok_or_else(|| not_there(from))?;
                hosts[at] = HostRow { strip: hosts[at].strip, ..to.clone() };
            }
        }
        Ok(())
    }
}

fn position(hosts: &[HostRow], wanted: &HostRow) -> Option<usize> {
    let is_it = |row: &HostRow| row.host.eq_ignore_ascii_case(&wanted.host) && row.path == wanted.path;
    hosts.iter().position(is_it)
}

fn not_there(row: &HostRow) -> Denied {
    let path = if row.path == "/" { "" } else { &row.path };
    Denied::HostNotFound { host: format!("{}{path}", row.host) }
}
