//! TLS to one vendor: which authorities are trusted besides the machine's own, and the certificate that we show (mutual TLS, RFC 8446).
//! Files are read again when they change.
//!
//! Never shows what is in a file, and never gives up a good configuration: files that are gone or unusable leave it as it was.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{error::CallError, outgoing::Credentials};
use crate::config::Reread;

/// Bytes of a file at most: bundles of authorities have about 250 KiB.
const MOST_BYTES: u64 = 1 << 20;

/// The files of one vendor, in PEM.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Authorities that are trusted besides the machine's own.
    pub ca: Option<PathBuf>,
    /// Our certificate with those that lead to its authority, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFault {
    /// The key of the config that names the file: `ca`, `cert` or `key`.
    pub key: &'static str,
    pub what: String,
    pub mend: String,
}

/// TLS as it is now. Clones share it.
#[derive(Clone)]
pub struct LiveTls(Arc<Live>);

struct Live {
    files: TlsFiles,
    now: RwLock<Now>,
    /// The last look at the files failed.
    is_failing: AtomicBool,
}

struct Now {
    hash: [u8; 32],
    configs: Configs,
}

/// What connections are made with: those that show our certificate, and those that do not.
struct Configs {
    own: Arc<ClientConfig>,
    anonymous: Arc<ClientConfig>,
}

/// One file as it was read.
struct Content<'a> {
    key: &'static str,
    path: &'a Path,
    bytes: Vec<u8>,
}

impl LiveTls {
    /// The machine's authorities, and no certificate of ours.
    pub fn of_machine() -> LiveTls {
        LiveTls::read(TlsFiles::default()).expect("without files nothing can be wrong with them")
    }

    pub fn read(files: TlsFiles) -> Result<LiveTls, TlsFault> {
        let contents = files.contents()?;
        let now = RwLock::new(Now { hash: hash(&contents), configs: configs(&contents)? });
        Ok(LiveTls(Arc::new(Live { files, now, is_failing: AtomicBool::new(false) })))
    }

    pub fn files(&self) -> &TlsFiles {
        &self.0.files
    }

    /// What connections are made with. It is another one after every change.
    pub(super) fn config(&self, credentials: Credentials) -> Arc<ClientConfig> {
        let now = self.0.now.read().unwrap_or_else(PoisonError::into_inner);
        match credentials {
            Credentials::Sent => now.configs.own.clone(),
            Credentials::Withheld => now.configs.anonymous.clone(),
        }
    }

    /// Reads the files again. While a new certificate is there and its key is not yet, the old pair stays in use.
    pub fn reread(&self) -> Reread {
        let read = self.0.files.contents().and_then(|contents| {
            let hash = hash(&contents);
            let is_same = self.0.now.read().unwrap_or_else(PoisonError::into_inner).hash == hash;
            if is_same { Ok(None) } else { configs(&contents).map(|configs| Some(Now { hash, configs })) }
        });
        match read {
            Ok(now) => {
                self.0.is_failing.store(false, Ordering::Relaxed);
                let Some(now) = now else { return Reread::Same };
                *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = now;
                Reread::Changed
            }
            Err(fault) => {
                let is_new = !self.0.is_failing.swap(true, Ordering::Relaxed);
                Reread::Failed { why: format!("tls.{}: {}", fault.key, fault.what), is_new }
            }
        }
    }
}

impl fmt::Debug for LiveTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.files.fmt(f)
    }
}

impl TlsFiles {
    fn contents(&self) -> Result<Vec<Content<'_>>, TlsFault> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [("cert", cert), ("key", key)]);
        let files = self.ca.iter().map(|ca| ("ca", ca)).chain(identity);
        files.map(|(key, path)| Content::read(key, path)).collect()
    }
}

impl<'a> Content<'a> {
    fn read(key: &'static str, path: &'a Path) -> Result<Content<'a>, TlsFault> {
        let mut content = Content { key, path, bytes: Vec::new() };
        let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut content.bytes));
        match read {
            Err(error) => Err(content.fault(
                &format!("cannot be read ({})", error.kind()),
                "Make it readable for this user, or name another file",
            )),
            Ok(_) if content.bytes.len() as u64 > MOST_BYTES => {
                Err(content.fault("is over 1 MiB", "Name a file that has certificates only"))
            }
            Ok(_) => Ok(content),
        }
    }

    // The parser's own errors may repeat a line of the file.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
            self.fault("has no certificate in it", "Write it in PEM, from -----BEGIN CERTIFICATE----- to its END")
        })
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsFault> {
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|_| {
            self.fault("has no private key in it that can be read", "Write the key in PEM, without a password")
        })
    }

    fn fault(&self, what: &str, mend: &str) -> TlsFault {
        let Content { key, path, .. } = *self;
        TlsFault { key, what: format!("file {} {what}", path.display()), mend: mend.to_owned() }
    }
}

fn hash(contents: &[Content<'_>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for content in contents {
        hash.update(content.bytes.len().to_le_bytes());
        hash.update(&content.bytes);
    }
    hash.finalize().into()
}

fn configs(contents: &[Content<'_>]) -> Result<Configs, TlsFault> {
    let named = |key| contents.iter().find(|content| content.key == key);
    let mut roots = machine_roots().clone();
    if let Some(ca) = named("ca") {
        let mut own = RootCertStore::clone(&roots);
        for certificate in ca.certificates()? {
            own.add(certificate).map_err(|error| {
                let mend = "Name the certificate of the authority that signs the vendor's";
                ca.fault(&format!("has a certificate that cannot be trusted ({error})"), mend)
            })?;
        }
        roots = Arc::new(own);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let finished = |mut config: ClientConfig| {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    };
    let anonymous = finished(builder.clone().with_no_client_auth());
    let own = match (named("cert"), named("key")) {
        (Some(cert), Some(key)) => {
            finished(builder.with_client_auth_cert(cert.certificates()?, key.private_key()?).map_err(|error| {
                match error {
                    rustls::Error::InconsistentKeys(_) => {
                        let what = format!("is not the key of the certificate in {}", cert.path.display());
                        key.fault(&what, "Name the two files that were issued together")
                    }
                    error => key.fault(&format!("cannot be used with its certificate ({error})"), "Name another pair"),
                }
            })?)
        }
        _ => anonymous.clone(),
    };
    Ok(Configs { own, anonymous })
}

/// The authorities that this machine trusts, as they were when the process first asked.
fn machine_roots() -> &'static Arc<RootCertStore> {
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let (trusted, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if trusted == 0 {
            tracing::warn!(
                "this machine has no certificates to trust; calls to https vendors will fail (install ca-certificates)"
            );
        }
        Arc::new(roots)
    });
    &ROOTS
}

/// TLS over a connection to this host. Cancel-safe.
pub(super) async fn connect<S>(config: &Arc<ClientConfig>, host: &str, stream: S) -> Result<TlsStream<S>, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(CallError::unreachable)?;
    TlsConnector::from(config.clone()).connect(name, stream).await.map_err(|error| match cause(&error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            CallError::unreachable("its certificate is signed by nobody whom we trust; name its authority in tls.ca")
        }
        _ => refusal(&error).unwrap_or_else(|| CallError::unreachable(&error)),
    })
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The other side wants another certificate of ours: it has not looked at a request.
pub(super) fn refusal(error: &io::Error) -> Option<CallError> {
    use AlertDescription as Alert;
    let Some(rustls::Error::AlertReceived(alert)) = cause(error) else { return None };
    Some(CallError::unreachable(match alert {
        Alert::CertificateRequired | Alert::NoCertificate => "it wants a certificate of ours: set tls.cert and tls.key",
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::UnknownCA => {
            "it does not take the certificate in tls.cert"
        }
        Alert::CertificateRevoked | Alert::CertificateExpired => "the certificate in tls.cert has ended: renew it",
        _ => return None,
    }))
}
