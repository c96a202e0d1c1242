//! API tokens: made, listed, deleted. A secret is shown once.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::{Answer, paged};
use crate::admin::Admin;
use crate::admin::auth::token_hash;
use crate::admin::call::{Asked, Call, In};
use crate::admin::problem::Refusal;
use crate::api::{List, NewToken, PageQuery, Problem, Scope, Token};
use crate::ids::TokenId;
use crate::store;

const EXPIRES_DAYS: u32 = 90;
/// Ten years.
const EXPIRES_DAYS_MAX: u32 = 3650;
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Lists the tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "system", params(PageQuery), responses((status = 200, body = List<Token>)))]
pub(crate) async fn list(
    State(admin): State<Arc<Admin>>,
    Asked(query): Asked<PageQuery>,
) -> Answer<List<Token>> {
    let all = admin.store.tokens().await?;
    paged(query, all.into_iter().map(|token| shown(token, None))).map(Json)
}

/// Makes a token; its secret is in this answer and nowhere else.
///
/// With an `Idempotency-Key` a repeated call answers with the token that the first one made, `repeated`, and without its
/// secret, which is not kept. Whoever lost the first answer deletes that token and makes another under another key.
#[utoipa::path(post, path = "/v1/tokens", tag = "system", request_body = NewToken, responses((status = 200, body = Token), (status = 404, body = Problem, description = "the same call was made before, and its token was deleted since"), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn create(State(admin): State<Arc<Admin>>, call: Call<NewToken>) -> Answer<Token> {
    let NewToken { name, scopes, expires_days } = call.body;
    if scopes.is_empty() || name.is_empty() || name.len() > 63 {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            "a token has a name of 1 to 63 octets and a scope",
        ));
    }
    let days = expires_days.unwrap_or(EXPIRES_DAYS);
    if days > EXPIRES_DAYS_MAX {
        let title = format!("expires_days is above {EXPIRES_DAYS_MAX}");
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title)
            .remedy("0 is a token that does not expire"));
    }
    let secret = new_secret()?;
    let now = admin.clock.wall();
    let token = store::Token {
        id: TokenId::generate(),
        name,
        hash: token_hash(&secret),
        scopes: scopes.into_iter().map(scope_name).collect(),
        created_at: now,
        expires_at: (days > 0).then(|| now + DAY * days),
    };
    let made = match &call.caller.idempotency {
        Some(key) => admin.store.put_token_once(&token, key).await?,
        None => admin.store.put_token(&token).await.map(|()| token.id)?,
    };
    if made == token.id {
        return Ok(Json(shown(token, Some(secret))));
    }
    let earlier = admin.store.tokens().await?.into_iter().find(|token| token.id == made);
    let earlier = earlier.ok_or_else(|| {
        Refusal::not_found("token", &made.to_string())
            .remedy("it was deleted since: make another under another key")
    })?;
    Ok(Json(Token { repeated: true, ..shown(earlier, None) }))
}

/// Deletes a token; it is refused from then on.
#[utoipa::path(delete, path = "/v1/tokens/{token}", tag = "system", params(("token" = String, Path)), responses((status = 204), (status = 404, body = Problem)))]
pub(crate) async fn delete(
    State(admin): State<Arc<Admin>>,
    In(id): In<TokenId>,
) -> Result<StatusCode, Refusal> {
    if admin.store.delete_token(&id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::not_found("token", &id.to_string()))
}

/// 256 bits, in a form that secret scanners can tell.
fn new_secret() -> Result<String, Refusal> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_randomness",
            format!("the system gives no random numbers: {error}"),
        )
    })?;
    Ok(bytes.iter().fold("lg_".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    }))
}

fn scope_name(scope: Scope) -> String {
    match scope {
        Scope::Read => "read",
        Scope::Deploy => "deploy",
        Scope::Admin => "admin",
    }
    .to_owned()
}

fn shown(token: store::Token, secret: Option<String>) -> Token {
    Token {
        id: token.id,
        name: token.name,
        scopes: token.scopes,
        created_at: token.created_at,
        expires_at: token.expires_at,
        secret,
        repeated: false,
    }
}
