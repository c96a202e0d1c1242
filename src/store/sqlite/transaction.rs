//! One transaction: what happens in it, and what its failure means.

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use crate::store::StoreError;

/// Why a transaction was not done. All of it was rolled back.
pub(super) enum Stop {
    /// The store's rules forbid it; the database is well.
    Refused(StoreError),
    /// What a row holds cannot be used.
    Unusable(String),
    Sqlite(rusqlite::Error),
}

/// What a piece of a transaction gives back.
pub(super) type Done<T> = Result<T, Stop>;

/// Runs `work` in a transaction and commits it.
pub(super) fn write<T>(connection: &mut Connection, work: impl FnOnce(&Connection) -> Done<T>) -> Done<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// Runs `work` on one snapshot of the database.
pub(super) fn read<T>(connection: &mut Connection, work: impl FnOnce(&Connection) -> Done<T>) -> Done<T> {
    let transaction = connection.transaction()?;
    let value = work(&transaction)?;
    transaction.finish()?;
    Ok(value)
}

impl Stop {
    /// As the caller is told, who wanted to `action`.
    pub(super) fn told(self, action: &'static str) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Unusable(detail) => StoreError::Failed { action, detail },
            Self::Sqlite(error) => StoreError::Failed { action, detail: error.to_string() },
        }
    }

    /// Whether the connection may be used again as it is. After an I/O error what SQLite believes of the file, and the
    /// file, may differ.
    pub(super) fn leaves_connection_sound(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Unusable(_) => true,
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                None | Some(
                    ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::ConstraintViolation
                )
            ),
        }
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// `Ok` if a statement that names one row by its key changed it.
pub(super) fn found(changed: usize, what: &'static str, name: impl ToString) -> Done<()> {
    if changed > 0 {
        return Ok(());
    }
    Err(not_found(what, name))
}

/// There is no such row.
#[expect(clippy::needless_pass_by_value, reason = "ids and references alike are named here")]
pub(super) fn not_found(what: &'static str, name: impl ToString) -> Stop {
    StoreError::NotFound { what, name: name.to_string() }.into()
}
