//! One file for each subject of the API.

pub(crate) mod apps;
pub(crate) mod deployments;
pub(crate) mod hosts;
pub(crate) mod operations;
pub(crate) mod previews;
pub(crate) mod routes;
pub(crate) mod system;
pub(crate) mod tokens;
pub(crate) mod volumes;

use axum::Json;
use axum::http::StatusCode;

use super::problem::Refusal;
use crate::api::{LIMIT_MAX, List, PageQuery};
use crate::store::Page;

pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// One more than was asked for, to see whether there is more.
fn page(query: PageQuery) -> Result<Page, Refusal> {
    if !(1..=LIMIT_MAX).contains(&query.limit) {
        let title = format!("limit {} is out of range: 1 to {LIMIT_MAX}", query.limit);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "query_invalid", title));
    }
    Ok(Page { offset: query.offset, limit: query.limit + 1 })
}

fn piece<T>(query: PageQuery, mut items: Vec<T>) -> List<T> {
    let has_more = items.len() > query.limit as usize;
    items.truncate(query.limit as usize);
    List { items, next_offset: has_more.then(|| query.offset + query.limit) }
}

/// A piece of what is all at hand.
fn paged<T>(query: PageQuery, all: impl IntoIterator<Item = T>) -> Result<List<T>, Refusal> {
    let page = page(query)?;
    let items = all.into_iter().skip(page.offset as usize).take(page.limit as usize).collect();
    Ok(piece(query, items))
}
