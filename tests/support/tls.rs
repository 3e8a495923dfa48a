//! TLS before a registry, with certificates of our own making.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// One who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Ends TLS and hands the bytes on, until it is dropped.
pub struct TlsFront {
    address: SocketAddr,
    task: JoinHandle<()>,
}

// === impl Authority ===

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    /// Writes its certificate into a file of `dir`, for `ca_file`.
    pub fn file(&self, dir: &Path) -> PathBuf {
        let path = dir.join("ca.pem");
        fs::write(&path, self.0.pem()).expect("a file");
        path
    }

    /// For a client that believes this authority, and shows a certificate of it with this common name.
    pub fn believed_by(&self, name: &str, protocols: &[&str]) -> ClientConfig {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("no name");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let mut config = self.believed(rustls::ALL_VERSIONS, protocols);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(vec![certificate.der().clone()], key, &provider).expect("a certificate and its key");
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
        config
    }

    /// Writes a certificate for a client, and its key, into files of `dir`.
    pub fn client(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["larder.client".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let (certificate_file, key_file) = (dir.join("client.pem"), dir.join("client.key"));
        fs::write(&certificate_file, certificate.pem()).expect("a file");
        fs::write(&key_file, key.serialize_pem()).expect("a file");
        (certificate_file, key_file)
    }

    /// Writes a certificate for a server of this name, and its key, into files of `dir`, in place of those that were there.
    pub fn server(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let (certificate_file, key_file) = (dir.join("server.pem"), dir.join("server.key"));
        fs::write(&certificate_file, certificate.pem()).expect("a file");
        fs::write(&key_file, key.serialize_pem()).expect("a file");
        (certificate_file, key_file)
    }

    /// For a client that believes this authority, and speaks these versions of TLS and these protocols by it.
    pub fn believed(&self, versions: &[&'static SupportedProtocolVersion], protocols: &[&str]) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }

    /// One that this one has signed, so that it may sign as well, or may not.
    pub fn below(&self, may_sign: bool) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "one below");
        params.is_ca = if may_sign { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        Self(CertifiedIssuer::signed_by(params, KeyPair::generate().expect("a key"), &self.0).expect("a certificate"))
    }

    /// Speaks TLS as `name` before `registry`.
    pub async fn front(&self, name: &str, registry: SocketAddr) -> TlsFront {
        self.front_with(name, registry, |_| {}).await
    }

    /// The same with a certificate that is changed so before it is signed.
    pub async fn front_with(&self, name: &str, registry: SocketAddr, change: impl FnOnce(&mut CertificateParams)) -> TlsFront {
        self.start(name, registry, change, None).await
    }

    /// Speaks TLS before `registry` with those who show a certificate of this authority.
    pub async fn front_for_its_own(&self, name: &str, registry: SocketAddr) -> TlsFront {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().expect("a verifier");
        self.start(name, registry, |_| {}, Some(verifier)).await
    }

    async fn start(
        &self,
        name: &str,
        registry: SocketAddr,
        change: impl FnOnce(&mut CertificateParams),
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> TlsFront {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
            .with_single_cert(vec![certificate.der().clone(), self.0.der().clone()], key)
            .expect("a certificate that fits its key");
        TlsFront::start(TlsAcceptor::from(Arc::new(config)), registry).await
    }
}

// === impl TlsFront ===

impl TlsFront {
    async fn start(acceptor: TlsAcceptor, registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not like the certificate leaves; that is what some tests are about.
                    let Ok(mut outer) = acceptor.accept(stream).await else { return };
                    let Ok(mut inner) = TcpStream::connect(registry).await else { return };
                    let _ = copy_bidirectional(&mut outer, &mut inner).await;
                });
            }
        });
        Self { address, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}
