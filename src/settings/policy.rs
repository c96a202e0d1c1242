//! What a route asks of its requests, and what it changes on them and on their responses: a list, in order.

mod faults;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter::once;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::{Delay, Secret};
pub use faults::policy_faults;

/// One policy: exactly one of its kinds, and which requests it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// It is for paths under one of these prefixes; for all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// And not for those under one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// It is for these methods; for all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuthSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_link: Option<SignedLinkSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_auth: Option<ForwardAuthSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeadersSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<BodySettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutsSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<CompressSettings>,
    /// HTML pages in place of Lockgate's own, by status (`503`) or class (`5xx`), for who accepts HTML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_pages: Option<BTreeMap<String, String>>,
}

/// Sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedirectSettings {
    /// Only requests for these host names; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// An origin (`https://example.com`), which keeps path and query; or a place, as a path (`/new`) or with its origin.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "permanent")]
    pub status: u16,
}

/// Who may come, by address: the client's, as trusted proxies tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IpSettings {
    /// Nobody else, if any are named.
    #[schemars(with = "Vec<String>")]
    #[schema(value_type = Vec<String>)]
    pub allow: Vec<IpNet>,
    /// Not these, even if they are among those.
    #[schemars(with = "Vec<String>")]
    #[schema(value_type = Vec<String>)]
    pub deny: Vec<IpNet>,
}

/// Name and password (RFC 7617).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BasicAuthSettings {
    /// What a browser shows who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<String>,
    pub users: Vec<UserSettings>,
    /// The header in which the app is told the user's name; a client's own is taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_header: Option<String>,
}

/// Somebody who may come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UserSettings {
    pub user: String,
    /// Encrypted at rest, never shown again.
    #[serde(skip_serializing)]
    pub password: Secret,
}

/// A link with a time and a signature, which becomes a cookie: `lockgate link` signs them, and so may the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SignedLinkSettings {
    /// What they are signed with, 32 characters at least; encrypted at rest, never shown again.
    #[serde(skip_serializing)]
    pub key: Secret,
    /// Links that were signed with one of these are good as well, so that the key can be changed and they go on.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "without_values")]
    #[schema(default = json!([]))]
    pub also: Vec<Secret>,
}

/// A service is asked first: 2xx lets the request go on, any other answer is the client's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardAuthSettings {
    /// `http://ADDRESS:PORT/path`, with an IP address.
    pub url: String,
    /// Of its answer, what the app is told; a client's own are taken off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Without an answer by then the request is refused.
    #[serde(default = "five_seconds")]
    pub timeout: Delay,
}

/// So many requests in a time; more are answered 429.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimitSettings {
    pub requests: u32,
    #[serde(default = "one_second")]
    pub per: Delay,
    /// So many at once, after a rest; `requests` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    #[serde(default)]
    pub by: RateLimitBy,
    /// Of `by: header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RateLimitBy {
    /// Those of one client address (IPv6: of one /64 network).
    #[default]
    Client,
    /// Those with the same value of a header; without it, those of one client.
    Header,
    /// All.
    Everyone,
}

/// What pages of other origins may do (the Fetch standard's CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CorsSettings {
    /// `https://app.example.com`, or `*` for all.
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    /// Request headers that their scripts may set.
    pub headers: Vec<String>,
    /// Response headers that they may read.
    pub expose: Vec<String>,
    /// Whether cookies come along; not with `*`.
    pub credentials: bool,
    /// How long browsers remember the answer.
    pub max_age: Delay,
}

/// Headers that are changed: first removed, then set, then added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadersSettings {
    /// Of the request, on its way to the app.
    pub request: HeaderRules,
    /// Of the response, and of Lockgate's own answers.
    pub response: HeaderRules,
}

/// What is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderRules {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Beside what is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
}

/// Bodies of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BodySettings {
    /// Larger ones are answered 413; `limits.body_bytes` stays the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// So much of a body is read before the app is asked, so that slow clients do not occupy it; up to 16 MiB. What is
    /// larger goes on as it comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_bytes: Option<u32>,
}

/// Time-outs in place of those of `limits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsSettings {
    /// Between two bytes of a request's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_idle: Option<Delay>,
    /// From the end of the request to the head of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_head: Option<Delay>,
    /// Between two bytes of a response; event streams and WebSockets have no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_idle: Option<Delay>,
}

/// Responses are compressed for who accepts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompressSettings {
    /// Shorter ones are not, where their length is known.
    pub min_bytes: u64,
    /// Of these types; `text/*` is all of text.
    pub types: Vec<String>,
}

/// Among the names of users, which are not empty and have no colon. Others that are good are numbered behind it.
const LINK_KEY: &str = "";

impl Default for CorsSettings {
    fn default() -> Self {
        Self {
            origins: Vec::new(),
            methods: ["GET", "HEAD", "POST"].map(str::to_owned).into(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: Delay::seconds(600),
        }
    }
}

impl Default for CompressSettings {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/javascript",
            "application/xml",
            "application/wasm",
            "application/manifest+json",
            "application/problem+json",
            "image/svg+xml",
        ];
        Self { min_bytes: 1024, types: types.map(str::to_owned).into() }
    }
}

impl PolicySettings {
    /// Its passwords and its key, each by a name of its own.
    pub fn secrets(&self) -> impl Iterator<Item = (Cow<'_, str>, &Secret)> {
        let users = self.basic_auth.iter().flat_map(|auth| &auth.users);
        let users = users.map(|user| (Cow::from(&user.user), &user.password));
        let links = self.signed_link.iter();
        users.chain(links.flat_map(|link| {
            let also = link.also.iter().enumerate().map(|(at, key)| (other_link_key(at), key));
            once((LINK_KEY.into(), &link.key)).chain(also)
        }))
    }

    /// The same, to be filled in.
    pub fn secrets_mut(&mut self) -> impl Iterator<Item = (Cow<'_, str>, &mut Secret)> {
        let users = self.basic_auth.iter_mut().flat_map(|auth| &mut auth.users);
        let users = users.map(|user| (Cow::from(&user.user), &mut user.password));
        let links = self.signed_link.iter_mut();
        users.chain(links.flat_map(|link| {
            let also = link.also.iter_mut().enumerate().map(|(at, key)| (other_link_key(at), key));
            once((LINK_KEY.into(), &mut link.key)).chain(also)
        }))
    }
}

fn other_link_key(at: usize) -> Cow<'static, str> {
    format!("{LINK_KEY}:{at}").into()
}

/// How many there are, and no more of them.
fn without_values<S: Serializer>(secrets: &[Secret], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(secrets.iter().map(|_secret| ""))
}

fn permanent() -> u16 {
    308
}

fn one_second() -> Delay {
    Delay::seconds(1)
}

fn five_seconds() -> Delay {
    Delay::seconds(5)
}
