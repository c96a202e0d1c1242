//! TLS of a QUIC connection, of which quinn wants to know the configuration before it has seen the name that is asked for: so
//! it gets one that waits for that name, and is from there on what the name gets by TCP as well.

use std::any::Any;
use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use tokio_rustls::rustls::server::Acceptor;

use crate::certs::{self, Certs};

/// A message of a handshake: its kind, and three bytes that say how long it is (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
const HEADER: usize = 4;

/// Larger than any that TLS takes.
const HELLO_MAX: usize = 0xffff;

/// Of a record, in which [`Acceptor`] wants to read it.
const RECORD_MAX: usize = 0x4000;
const RECORD: [u8; 3] = [22, 3, 1];

/// Makes sessions by the certificates that are published then.
pub(super) struct ByName {
    certs: Arc<Certs>,
    /// Whose keys are those of everybody before there is a name.
    first: QuicServerConfig,
}

impl ByName {
    pub(super) fn new(certs: &Arc<Certs>) -> Result<Self, NoInitialCipherSuite> {
        let first = QuicServerConfig::try_from(certs.offer_quic(None).config)?;
        Ok(Self { certs: Arc::clone(certs), first })
    }
}

/// A session whose name may not be known yet.
struct Waiting {
    config: Arc<ByName>,
    version: u32,
    params: TransportParameters,
    /// What has come of the message that says the name.
    hello: Vec<u8>,
    begun: Option<Begun>,
}

struct Begun {
    session: Box<dyn Session>,
    made_with: certs::Session,
}

impl ServerConfig for ByName {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.first.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.first.retry_tag(version, id, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(Waiting { config: self, version, params: *params, hello: Vec::new(), begun: None })
    }
}

impl Waiting {
    fn session(&self) -> Option<&dyn Session> {
        self.begun.as_ref().map(|begun| &*begun.session)
    }

    /// Chooses what the name gets.
    fn begin(&self) -> Result<Begun, TransportError> {
        let offer = self.config.certs.offer_quic(name(&self.hello).as_deref());
        let config = QuicServerConfig::try_from(offer.config).map_err(|error| TransportError {
            code: TransportErrorCode::INTERNAL_ERROR,
            frame: None,
            reason: error.to_string(),
        })?;
        let session = Arc::new(config).start_session(self.version, &self.params);
        Ok(Begun { session, made_with: offer.session })
    }
}

impl Session for Waiting {
    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        match (self.session(), self.config.first.initial_keys(self.version, id)) {
            (Some(session), _) => session.initial_keys(id, side),
            (None, Ok(keys)) => keys,
            (None, Err(UnsupportedVersion)) => unreachable!("who has a session was asked for its version"),
        }
    }

    /// What the connection was made with, once that is known.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let Begun { session, made_with } = self.begun.as_ref()?;
        session.handshake_data().map(|_rustls| -> Box<dyn Any> { Box::new(made_with.clone()) })
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.session()?.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.session()?.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.session()?.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.session().is_none_or(Session::is_handshaking)
    }

    fn read_handshake(&mut self, read: &[u8]) -> Result<bool, TransportError> {
        if let Some(begun) = &mut self.begun {
            return begun.session.read_handshake(read);
        }
        self.hello.extend_from_slice(read);
        if !is_whole(&self.hello) {
            return Ok(false);
        }
        let begun = self.begun.insert(self.begin()?);
        // Whatever is wrong with it is said there.
        begun.session.read_handshake(&std::mem::take(&mut self.hello))
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.session().map_or(Ok(None), Session::transport_parameters)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.begun.as_mut()?.session.write_handshake(buf)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.begun.as_mut()?.session.next_1rtt_keys()
    }

    fn is_valid_retry(&self, id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.session().is_some_and(|session| session.is_valid_retry(id, header, payload))
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.session().ok_or(ExportKeyingMaterialError)?.export_keying_material(output, label, context)
    }
}

/// Whether more of it would tell nothing more: it has all come, or is not what a client begins with.
fn is_whole(hello: &[u8]) -> bool {
    match hello {
        [CLIENT_HELLO, a, b, c, ..] => {
            let length = u32::from_be_bytes([0, *a, *b, *c]);
            usize::try_from(length)
                .map_or(true, |length| length > HELLO_MAX || hello.len() >= HEADER + length)
        }
        [CLIENT_HELLO, ..] | [] => false,
        [..] => true,
    }
}

/// The name that is asked for. None where there is none, or what came cannot be read.
fn name(hello: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    for part in hello.chunks(RECORD_MAX) {
        let length = u16::try_from(part.len()).ok()?.to_be_bytes();
        let record = [&RECORD[..], &length, part].concat();
        let mut rest = &record[..];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).ok()?;
        }
    }
    let accepted = acceptor.accept().ok()??;
    accepted.client_hello().server_name().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_waited_for_as_long_as_it_may_say_a_name() {
        for (read, expected) in [
            (&[][..], false),
            (&[1], false),
            (&[1, 0, 0], false),
            (&[1, 0, 0, 2, 3], false),
            (&[1, 0, 0, 2, 3, 3], true),
            (&[1, 0, 0, 2, 3, 3, 9], true),
            // Longer than any, and something else.
            (&[1, 1, 0, 0], true),
            (&[2], true),
        ] {
            assert_eq!(is_whole(read), expected, "{read:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_asks_for_no_name() {
        for hello in [&[1, 0, 0, 2, 3, 3][..], &[2, 0, 0, 0], &[1, 1, 0, 0]] {
            assert_eq!(name(hello), None, "{hello:?}");
        }
    }
}
