//! Certificates made on the spot, and both ends of a connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use weft_model::config::{Certificate, CertificateKind, Key, Pem};

use super::{Handshake, HandshakeError, Handshakes, LoadedCert, provider};

/// An authority that signs leaves.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// PEM of a leaf.
#[derive(Clone)]
pub struct Leaf {
    pub chain: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_with(names, |_| {})
    }

    /// A name with `://` becomes a URI.
    pub fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.leaf_for(names, KeyPair::generate().unwrap(), change)
    }

    pub fn leaf_for(&self, names: &[&str], key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        for name in names {
            let name_ia5 = (*name).try_into().unwrap();
            let san = if name.contains("://") { SanType::URI(name_ia5) } else { SanType::DnsName(name_ia5) };
            params.subject_alt_names.push(san);
        }
        change(&mut params);
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Leaf { chain, key: key.serialize_pem() }
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }
}

impl Leaf {
    pub fn certificate(&self, name: &str) -> Certificate {
        Certificate {
            key: Key::new("default", name),
            kind: CertificateKind::Certificate,
            chain: Some(Pem::Inline(self.chain.as_str().into())),
            private_key: Some(Pem::Inline(self.key.as_str().into())),
            ca: None,
        }
    }

    pub fn load(&self, name: &str) -> LoadedCert {
        LoadedCert::load(&self.certificate(name), SystemTime::now()).unwrap()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }
}

/// A certificate in files.
pub fn in_files(name: &str, chain: PathBuf, key: PathBuf) -> Certificate {
    Certificate {
        key: Key::new("default", name),
        kind: CertificateKind::Certificate,
        chain: Some(Pem::File(chain)),
        private_key: Some(Pem::File(key)),
        ca: None,
    }
}

/// A client that trusts `ca`.
pub fn client(ca: &Ca, alpn: &[&[u8]], versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    Arc::new(config)
}

/// Accepts one connection after the other and hands out the results.
pub async fn listen(
    config: Arc<ServerConfig>,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Result<Handshake<TcpStream>, HandshakeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (results, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let handshakes = Arc::new(Handshakes::new(16, Duration::from_secs(5)));
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let (config, results, handshakes) = (config.clone(), results.clone(), handshakes.clone());
            tokio::spawn(async move { results.send(handshakes.accept(io, config).await) });
        }
    });
    (address, receiver)
}

/// Connects with `sni`; an address stands for no SNI.
pub async fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    sni: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let io = TcpStream::connect(address).await?;
    TlsConnector::from(config.clone()).connect(ServerName::try_from(sni.to_owned()).unwrap(), io).await
}
