//! Certificates by ACME (RFC 8555) for the names of the route table: asked for, kept, renewed.
//!
//! # Invariants
//! 1. Nothing is asked for but what the route table has: exact names that last, and, where names are proved by DNS, its `*.`
//!    patterns and the zone for previews that is configured. No request and no handshake causes an order.
//! 2. What is offered for a name changes only to a certificate that was read whole, whose key is its own, that is good for
//!    the name, and that lies on the disk. Whatever fails, the one before goes on, and nothing is given up for good.
//! 3. An attempt is written down before it is made, as one that failed: neither a crash nor a restart is a way round the
//!    back-off or the limit of orders in an hour.
//! 4. An order is begun when the back-off of its name is over, the authority's `Retry-After` too, and not more than so many
//!    were begun in the hour before.
//! 5. What proves a name is in its place before the authority is told to look, and goes with its order. A DNS record is written
//!    down before it is set.
//! 6. A key is never in a file that anybody but its owner may read.
//! 7. No thread that serves requests waits for any of this: it looks up in what is published ([`crate::certs`]).

mod desk;
mod dns;
mod governor;
mod http;
mod leftover;
mod order;
mod renewal;
mod settings;
mod vault;
mod wanted;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use dns::name::DnsName;
pub use settings::{
    AcmeSettings, Challenge, DnsHook, DnsMeans, DnsServer, DnsSettings, DnsUpdate, Eab, TsigAlgorithm,
    TsigKey,
};

use crate::certs::Certs;
use crate::clock::{Clock, Timestamp};
use crate::error::chain;
use crate::routing::Routing;
use crate::telemetry::ControlStats;
use desk::Desk;

/// Until a storage that cannot be opened is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(30);

/// Says what is to be asked for, and hears what stands in the way. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acme {
    settings: watch::Sender<Option<AcmeSettings>>,
    troubles: Arc<ArcSwap<Vec<Trouble>>>,
}

/// Asks for certificates.
#[derive(Debug)]
pub struct Keeper {
    settings: watch::Receiver<Option<AcmeSettings>>,
    parts: Parts,
    /// Opened before anything is served.
    desk: Option<Desk>,
}

/// Something that stands in the way of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A name, or the directory.
    pub subject: String,
    pub concern: Concern,
    /// There is a certificate all the same.
    pub is_covered: bool,
    /// In a row.
    pub failures: u32,
    pub error: String,
    /// When it is tried again, if it is.
    pub next: Option<Timestamp>,
}

/// Where to look when something stands in the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concern {
    /// One name: it is not proved, or nothing is issued for it.
    #[default]
    Name,
    /// The authority, the way to it, or the storage.
    Authority,
    /// The account that the authority wants to be told of (RFC 8555 section 7.3.4).
    ExternalAccount,
    /// A DNS record that is left; no certificate waits for it.
    Record,
}

/// What it works with.
#[derive(Clone, Debug)]
struct Parts {
    certs: Arc<Certs>,
    routing: Arc<Routing>,
    clock: Arc<dyn Clock>,
    stats: Arc<ControlStats>,
    troubles: Arc<ArcSwap<Vec<Trouble>>>,
}

/// Opens what was kept and offers it. The route table is there by now, and nothing is served yet.
pub async fn open(
    settings: Option<AcmeSettings>,
    certs: &Arc<Certs>,
    routing: &Arc<Routing>,
    clock: &Arc<dyn Clock>,
    stats: &Arc<ControlStats>,
) -> (Acme, Keeper) {
    let (sender, receiver) = watch::channel(settings);
    let troubles = Arc::new(ArcSwap::default());
    let parts = Parts {
        certs: Arc::clone(certs),
        routing: Arc::clone(routing),
        clock: Arc::clone(clock),
        stats: Arc::clone(stats),
        troubles: Arc::clone(&troubles),
    };
    let mut keeper = Keeper { settings: receiver, parts, desk: None };
    keeper.open().await;
    (Acme { settings: sender, troubles }, keeper)
}

impl Acme {
    /// From now on asks for what `settings` say; what they are already changes nothing.
    pub fn configure(&self, settings: Option<AcmeSettings>) {
        self.settings.send_if_modified(|known| {
            let is_other = *known != settings;
            if is_other {
                *known = settings;
            }
            is_other
        });
    }

    /// What stands in the way now.
    #[must_use]
    pub fn troubles(&self) -> Arc<Vec<Trouble>> {
        self.troubles.load_full()
    }
}

impl Keeper {
    /// Asks for certificates until `stop`. What is in the middle then is begun anew at the next start.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            let mut settings = self.settings.clone();
            let is_on = settings.borrow_and_update().is_some();
            let working = async {
                match &mut self.desk {
                    Some(desk) => desk.work().await,
                    None if is_on => self.parts.clock.sleep(OPEN_AGAIN).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = settings.changed() => if changed.is_err() { return },
                () = working => {}
            }
            if let Some(desk) = &mut self.desk {
                desk.leave().await;
            }
            self.open().await;
        }
    }

    async fn open(&mut self) {
        let settings = self.settings.borrow_and_update().clone();
        self.desk = None;
        let Some(settings) = settings else {
            if let Err(error) = self.parts.certs.publish_issued(Vec::new()) {
                error!(error = chain(&error), "certificates are still offered");
            }
            return self.parts.troubles.store(Arc::default());
        };
        let place = settings.storage.display().to_string();
        match Desk::open(settings, self.parts.clone()).await {
            Ok(mut desk) => {
                desk.look().await;
                self.desk = Some(desk);
            }
            Err(failed) => {
                let error = chain(&failed);
                error!(error, "the ACME storage cannot be opened; no certificate is asked for");
                let trouble = Trouble {
                    subject: place,
                    concern: Concern::Authority,
                    is_covered: false,
                    failures: 1,
                    error,
                    next: None,
                };
                self.parts.troubles.store(Arc::new(vec![trouble]));
            }
        }
    }
}
