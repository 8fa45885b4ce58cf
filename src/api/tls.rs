//! TLS for the API's port: a certificate and its key from files, read again when they change.
//!
//! Never shows the key, and never stops answering because a new pair of files is bad: the old one stays in use.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

/// The files are looked at when a client connects, and not more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What the API's port proves itself with.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    now: Mutex<Pair>,
}

/// What was read last, and what is in use.
struct Pair {
    looked_at: Instant,
    files: (Vec<u8>, Vec<u8>),
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads both files. The errors name the file and what is wrong with it.
    pub fn open(cert: &Path, key: &Path) -> anyhow::Result<Tls> {
        let files = read(cert, key)?;
        let acceptor = acceptor(&files)
            .with_context(|| format!("server.tls cannot be used (cert {}, key {})", cert.display(), key.display()))?;
        let now = Mutex::new(Pair { looked_at: Instant::now(), files, acceptor });
        Ok(Tls { cert: cert.to_owned(), key: key.to_owned(), now })
    }

    /// For a client that connects now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.looked_at.elapsed() >= LOOK_EVERY {
            now.looked_at = Instant::now();
            self.look_again(&mut now);
        }
        now.acceptor.clone()
    }

    fn look_again(&self, now: &mut Pair) {
        let changed = match read(&self.cert, &self.key) {
            Ok(files) if files == now.files => return,
            Ok(files) => {
                let changed = acceptor(&files);
                now.files = files;
                changed
            }
            Err(error) => Err(error),
        };
        match changed {
            Ok(acceptor) => {
                now.acceptor = acceptor;
                tracing::info!(cert = %self.cert.display(), "the certificate has changed and is in use");
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "server.tls has changed and cannot be used; the old certificate stays in use"
                );
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let file = |name, path: &Path| {
        fs::read(path).with_context(|| format!("server.tls.{name}: cannot read {}", path.display()))
    };
    Ok((file("cert", cert)?, file("key", key)?))
}

fn acceptor((cert, key): &(Vec<u8>, Vec<u8>)) -> anyhow::Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().context("cert is not in PEM form")?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in cert");
    // The error of a bad key is not shown: it could repeat some of it.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| anyhow::anyhow!("there is no private key in PEM form in key"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("the TLS library supports no version")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the key does not belong to the certificate, or is of no known kind")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
