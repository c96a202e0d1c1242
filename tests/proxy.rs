//! The data plane over real sockets: bytes in, bytes out, and what the upstream saw of it.
//!
//! Tests are named after the items of the list of duties that they hold the proxy to.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "proxy/access_log.rs"]
mod access_log;
#[path = "proxy/balance.rs"]
mod balance;
#[path = "proxy/basics.rs"]
mod basics;
#[path = "tls/ca.rs"]
mod ca;
#[path = "proxy/cutover.rs"]
mod cutover;
#[path = "proxy/ejection.rs"]
mod ejection;
#[path = "proxy/framing.rs"]
mod framing;
#[path = "proxy/grpc.rs"]
mod grpc;
#[path = "proxy/holds.rs"]
mod holds;
#[path = "proxy/http1_upstream.rs"]
mod http1_upstream;
#[path = "proxy/http2.rs"]
mod http2;
#[path = "proxy/http2_abuse.rs"]
mod http2_abuse;
#[path = "proxy/http2_life.rs"]
mod http2_life;
#[path = "proxy/http2_upstream.rs"]
mod http2_upstream;
#[cfg(feature = "http3")]
#[path = "proxy/http3.rs"]
mod http3;
#[cfg(feature = "http3")]
#[path = "proxy/http3_life.rs"]
mod http3_life;
#[path = "proxy/identity.rs"]
mod identity;
#[path = "proxy/policies.rs"]
mod policies;
#[path = "proxy/policies_streams.rs"]
mod policies_streams;
#[path = "proxy/preview_auth.rs"]
mod preview_auth;
#[path = "proxy/proxied.rs"]
mod proxied;
#[path = "proxy/queue.rs"]
mod queue;
#[path = "proxy/responses.rs"]
mod responses;
#[path = "proxy/retries.rs"]
mod retries;
#[path = "proxy/signed_link.rs"]
mod signed_link;
#[path = "proxy/skew.rs"]
mod skew;
#[path = "proxy/split.rs"]
mod split;
#[path = "proxy/streams.rs"]
mod streams;
#[path = "proxy/support.rs"]
mod support;
#[path = "proxy/support_h2c.rs"]
mod support_h2c;
#[path = "proxy/support_http2.rs"]
mod support_http2;
#[cfg(feature = "http3")]
#[path = "proxy/support_http3.rs"]
mod support_http3;
#[path = "proxy/tally.rs"]
mod tally;
#[path = "proxy/timeouts.rs"]
mod timeouts;
#[path = "proxy/tls.rs"]
mod tls;
#[path = "proxy/tls_upstream.rs"]
mod tls_upstream;
#[path = "proxy/tls_upstream_http2.rs"]
mod tls_upstream_http2;
#[path = "proxy/told.rs"]
mod told;
#[path = "proxy/traces.rs"]
mod traces;
#[path = "proxy/websocket_http2.rs"]
mod websocket_http2;
#[cfg(feature = "http3")]
#[path = "proxy/websocket_http3.rs"]
mod websocket_http3;
#[path = "proxy/workers.rs"]
mod workers;
