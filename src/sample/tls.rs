//! TLS, for an app that speaks it itself: by the files of a certificate and its key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::options::TlsFiles;

/// What is offered by ALPN, by its registered name (RFC 7301).
const HTTP_2: &[u8] = b"h2";
const HTTP_11: &[u8] = b"http/1.1";

/// Why the app cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: pem::Error },
    #[error("the certificate and the key cannot be used")]
    Pair(#[from] rustls::Error),
}

/// TLS 1.2 and 1.3 with that certificate, to anybody.
pub(super) fn config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect);
    let chain = chain.map_err(read(&files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(read(&files.key))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_11.to_vec()];
    Ok(Arc::new(config))
}

/// The handshake with a client, and whether it agreed on HTTP/2.
pub(super) async fn accept(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> std::io::Result<(TlsStream<TcpStream>, bool)> {
    let stream = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP_2);
    Ok((stream, is_http2))
}
