//! What a route asks of its requests, and what it changes on them and on their responses, made ready once.
//!
//! Here is what each policy says; `proxy::policy` does it. Policies belong to a version: a swap brings those of the new
//! one along, and a rollback those that it had.
//!
//! # Invariants
//! 1. They are asked in the order in which they stand; the first that refuses or answers ends it.
//! 2. One that cannot be read lets nobody by.
//! 3. A path that an application could take for one under a prefix counts as under it ([`place`]).

pub mod basic_auth;
pub mod compress;
pub mod cors;
pub mod error_pages;
pub mod forward_auth;
pub mod headers;
pub mod place;
pub mod rate_limit;
pub mod redirect;
pub mod signed_link;

use http::Method;
use ipnet::IpNet;

use crate::settings::PolicySettings;
use crate::settings::policy::{BodySettings, TimeoutsSettings};

use basic_auth::BasicAuth;
use compress::Compress;
use cors::Cors;
use error_pages::ErrorPages;
use forward_auth::ForwardAuth;
use headers::Headers;
use place::{Place, SeenPath};
use rate_limit::{Limiters, RateLimit};
use redirect::Redirect;
use signed_link::SignedLink;

/// All policies of a version or a static service, in their order.
#[derive(Debug)]
pub struct Policies {
    /// What they were made of.
    settings: Box<[PolicySettings]>,
    list: Box<[Policy]>,
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    pub place: Place,
    pub rule: Rule,
}

/// What a policy does.
#[derive(Debug)]
pub enum Rule {
    Redirect(Redirect),
    Ip(IpRules),
    BasicAuth(BasicAuth),
    SignedLink(SignedLink),
    ForwardAuth(ForwardAuth),
    RateLimit(RateLimit),
    Cors(Cors),
    Headers(Headers),
    Body(BodySettings),
    Timeouts(TimeoutsSettings),
    Compress(Compress),
    ErrorPages(ErrorPages),
    /// It is not what could be written; nobody is let by.
    Unreadable,
}

/// Who may come, by address.
#[derive(Debug)]
pub struct IpRules {
    allow: Box<[IpNet]>,
    deny: Box<[IpNet]>,
}

impl Policies {
    /// `None` if there are none. What counts requests goes on counting where `limiters` knows it for `scope`.
    #[must_use]
    pub fn new(
        settings: &[PolicySettings],
        limiters: &Limiters,
        scope: &str,
        workers: usize,
    ) -> Option<Self> {
        let made = |settings: &PolicySettings| {
            let place = Place::new(settings);
            let rule = Rule::new(settings, limiters, scope, workers);
            Policy {
                rule: rule.filter(|_| place.is_some()).unwrap_or(Rule::Unreadable),
                place: place.unwrap_or_default(),
            }
        };
        let list: Box<[Policy]> = settings.iter().map(made).collect();
        (!list.is_empty()).then(|| Self { settings: settings.into(), list })
    }

    /// Whether they were made of the same.
    #[must_use]
    pub fn are_of(&self, settings: &[PolicySettings]) -> bool {
        *self.settings == *settings
    }

    /// What those are called that are for requests of that path, in their order.
    #[must_use]
    pub fn names_for(&self, path: &str) -> Vec<String> {
        let seen = SeenPath::new(path);
        let covering = self.list.iter().filter(|policy| policy.place.covers_path(&seen));
        covering.map(|policy| format!("{}{}", policy.rule.name(), policy.place.methods_told())).collect()
    }

    /// The key of the one that wants a signed link of who reads that path.
    #[must_use]
    pub fn signed_link_for(&self, path: &str) -> Option<&SignedLink> {
        let seen = SeenPath::new(path);
        let mut covering = self.list.iter().filter(|policy| policy.place.covers(&Method::GET, Some(&seen)));
        covering.find_map(|policy| match &policy.rule {
            Rule::SignedLink(link) => Some(link),
            _ => None,
        })
    }

    /// In their order.
    #[must_use]
    pub fn list(&self) -> &[Policy] {
        &self.list
    }
}

impl Rule {
    fn new(settings: &PolicySettings, limiters: &Limiters, scope: &str, workers: usize) -> Option<Self> {
        if let Some(redirect) = &settings.redirect {
            return Redirect::new(redirect).map(Self::Redirect);
        }
        if let Some(ip) = &settings.ip {
            return Some(Self::Ip(IpRules { allow: ip.allow.clone().into(), deny: ip.deny.clone().into() }));
        }
        if let Some(auth) = &settings.basic_auth {
            return BasicAuth::new(auth).map(Self::BasicAuth);
        }
        if let Some(link) = &settings.signed_link {
            return SignedLink::new(link).map(Self::SignedLink);
        }
        if let Some(auth) = &settings.forward_auth {
            return ForwardAuth::new(auth, workers).map(Self::ForwardAuth);
        }
        if let Some(limit) = &settings.rate_limit {
            return RateLimit::new(limit, limiters, scope).map(Self::RateLimit);
        }
        if let Some(cors) = &settings.cors {
            return Cors::new(cors).map(Self::Cors);
        }
        if let Some(headers) = &settings.headers {
            return Headers::new(headers).map(Self::Headers);
        }
        if let Some(body) = &settings.body {
            return Some(Self::Body(body.clone()));
        }
        if let Some(timeouts) = settings.timeouts {
            return Some(Self::Timeouts(timeouts));
        }
        if let Some(compress) = &settings.compress {
            return Some(Self::Compress(Compress::new(compress)));
        }
        settings.error_pages.as_ref().map(|pages| Self::ErrorPages(ErrorPages::new(pages)))
    }
}

impl Rule {
    /// As the configuration calls it.
    fn name(&self) -> &'static str {
        match self {
            Self::Redirect(_) => "redirect",
            Self::Ip(_) => "ip",
            Self::BasicAuth(_) => "basic_auth",
            Self::SignedLink(_) => "signed_link",
            Self::ForwardAuth(_) => "forward_auth",
            Self::RateLimit(_) => "rate_limit",
            Self::Cors(_) => "cors",
            Self::Headers(_) => "headers",
            Self::Body(_) => "body",
            Self::Timeouts(_) => "timeouts",
            Self::Compress(_) => "compress",
            Self::ErrorPages(_) => "error_pages",
            Self::Unreadable => "unreadable",
        }
    }
}

impl IpRules {
    /// Whether a client of that address may come.
    #[must_use]
    pub fn admits(&self, client: std::net::IpAddr) -> bool {
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }
}
