//! What stands between the service and the mock vendors in some tests: TLS, with or without a certificate of ours, or a proxy.
//!
//! Never looks into calls: bytes are passed on as they come. The certificates are made by `certificates/make.sh`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// The file of a certificate, or of its key.
pub(crate) fn certificate(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/certificates").join(name)
}

/// Something on the way to a vendor; it ends when it is dropped.
pub(crate) struct Way {
    /// `127.0.0.1:PORT`
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

/// What is on the way.
#[derive(Clone)]
enum What {
    /// TLS to whoever connects; from there on plain to this address.
    Tls(TlsAcceptor, SocketAddr),
    Proxy,
    /// A proxy that answers everything so.
    Refusing(u16),
}

impl Way {
    /// TLS in front of a vendor, which takes a certificate and wants none.
    pub(crate) async fn tls(vendor: SocketAddr) -> Way {
        Way::start(What::Tls(acceptor(false), vendor)).await
    }

    /// The same, which wants a certificate.
    pub(crate) async fn mutual_tls(vendor: SocketAddr) -> Way {
        Way::start(What::Tls(acceptor(true), vendor)).await
    }

    pub(crate) async fn proxy() -> Way {
        Way::start(What::Proxy).await
    }

    pub(crate) async fn refusing_proxy(status: u16) -> Way {
        Way::start(What::Refusing(status)).await
    }

    async fn start(what: What) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let (seen, mut tasks) = (Arc::<Mutex<Vec<String>>>::default(), JoinSet::new());
        let noted = seen.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (what, noted) = (what.clone(), noted.clone());
                connections.spawn(async move {
                    match what {
                        What::Tls(acceptor, vendor) => pass_tls(stream, &acceptor, vendor, &noted).await,
                        What::Proxy => pass_on(stream, &noted).await,
                        What::Refusing(status) => refuse(stream, status, &noted).await,
                    }
                });
            }
        });
        Way { address, seen, _tasks: tasks }
    }

    /// Of TLS, the name of each certificate that was shown, or nothing; of a proxy, the head of each first request.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("nobody panics").clone()
    }
}

fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(certificate(name)).expect("the file");
    certificates.collect::<Result<_, _>>().expect("certificates")
}

fn acceptor(wants_certificate: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(certificate("vendor.key")).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("authority.pem"));
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider supports TLS 1.2 and 1.3");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = if wants_certificate { verifier } else { verifier.allow_unauthenticated() };
    let builder = builder.with_client_cert_verifier(verifier.build().expect("a verifier"));
    let config = builder.with_single_cert(certificates("vendor.pem"), key).expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

async fn pass_tls(stream: TcpStream, acceptor: &TlsAcceptor, vendor: SocketAddr, seen: &Mutex<Vec<String>>) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let is = |name: &&str| shown.is_some_and(|shown| certificates(&format!("{name}.pem")).contains(shown));
    let name = ["client-1", "client-2"].iter().find(|name| is(name)).map_or("", |name| *name);
    seen.lock().expect("nobody panics").push(name.to_owned());
    let mut vendor = TcpStream::connect(vendor).await.expect("the vendor listens");
    // Either side may just go.
    let _ = copy_bidirectional(&mut stream, &mut vendor).await;
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("text"))
}

async fn pass_on(mut stream: TcpStream, seen: &Mutex<Vec<String>>) {
    let Some(head) = head(&mut stream).await else { return };
    let target = head.split(' ').nth(1).expect("a request line").to_owned();
    seen.lock().expect("nobody panics").push(head.clone());
    let mut vendor = if head.starts_with("CONNECT ") {
        let vendor = TcpStream::connect(&target).await.expect("the vendor listens");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("it reads");
        vendor
    } else {
        let host = target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("an absolute URL");
        let mut vendor = TcpStream::connect(host).await.expect("the vendor listens");
        vendor.write_all(head.replacen(&format!("http://{host}"), "", 1).as_bytes()).await.expect("it reads");
        vendor
    };
    let _ = copy_bidirectional(&mut stream, &mut vendor).await;
}

async fn refuse(mut stream: TcpStream, status: u16, seen: &Mutex<Vec<String>>) {
    let Some(head) = head(&mut stream).await else { return };
    seen.lock().expect("nobody panics").push(head);
    let _ = stream.write_all(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
}
