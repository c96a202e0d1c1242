//! How values stand in columns: ids and names as text, enums as their wire word, documents as JSON, times as RFC 3339.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::Timestamp;

/// An id or a name, by its text form.
pub(super) struct Text<T>(pub(super) T);

/// An enum without fields, by the word that serde gives it.
pub(super) struct Word<T>(pub(super) T);

/// A document.
pub(super) struct Json<T>(pub(super) T);

/// A time in UTC with nine decimals: nothing is lost, text order is time order, and a person can read it.
pub(super) struct At(pub(super) Timestamp);

/// A number that is never negative.
pub(super) struct Count(pub(super) u64);

/// Reads a [`Text`].
pub(super) fn text<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    Text<T>: FromSql,
{
    row.get::<_, Text<T>>(column).map(|Text(value)| value)
}

/// Reads a [`Text`] or nothing.
pub(super) fn text_if_any<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>>
where
    Text<T>: FromSql,
{
    Ok(row.get::<_, Option<Text<T>>>(column)?.map(|Text(value)| value))
}

/// Reads a [`Word`].
pub(super) fn word<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    row.get::<_, Word<T>>(column).map(|Word(value)| value)
}

/// Reads a [`Json`].
pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    row.get::<_, Json<T>>(column).map(|Json(value)| value)
}

/// Reads a [`Json`] or nothing.
pub(super) fn json_if_any<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    Ok(row.get::<_, Option<Json<T>>>(column)?.map(|Json(value)| value))
}

/// Reads a time.
pub(super) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    row.get::<_, At>(column).map(|At(time)| time)
}

/// Reads a time or nothing.
pub(super) fn time_if_any(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<At>>(column)?.map(|At(time)| time))
}

/// Reads a [`Count`].
pub(super) fn count(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    row.get::<_, Count>(column).map(|Count(number)| number)
}

impl<T: fmt::Display> ToSql for Text<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}

impl<T: FromStr<Err: Error + Send + Sync + 'static>> FromSql for Text<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Self).map_err(other)
    }
}

impl<T: Serialize> ToSql for Word<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match serde_json::to_value(&self.0).map_err(unwritable)? {
            serde_json::Value::String(word) => Ok(word.into()),
            value => Err(unwritable(format!("{value} is not a word"))),
        }
    }
}

impl<T: DeserializeOwned> FromSql for Word<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let word = serde_json::Value::String(value.as_str()?.to_owned());
        serde_json::from_value(word).map(Self).map_err(other)
    }
}

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(serde_json::to_string(&self.0).map_err(unwritable)?.into())
    }
}

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Self).map_err(other)
    }
}

impl ToSql for At {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(format!("{:.9}", self.0).into())
    }
}

impl FromSql for At {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_str()?.parse().map(Self).map_err(other)
    }
}

impl ToSql for Count {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(i64::try_from(self.0).map_err(unwritable)?.into())
    }
}

impl FromSql for Count {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        u64::try_from(number).map(Self).map_err(|_negative| FromSqlError::OutOfRange(number))
    }
}

fn other(cause: impl Into<Box<dyn Error + Send + Sync>>) -> FromSqlError {
    FromSqlError::Other(cause.into())
}

fn unwritable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(cause.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_and_sort_as_text() {
        let texts = [0, 1, 999_999_999, 1_000_000_000, 1_500_000_000].map(|nanos| {
            let time = Timestamp::from_nanosecond(1_800_000_000_000_000_000 + nanos).unwrap();
            let text = format!("{time:.9}");
            assert_eq!(text.parse::<Timestamp>().unwrap(), time);
            text
        });
        assert!(texts.is_sorted(), "{texts:?}");
    }
}
