//! Somebody who calls at the ports of a cluster and does not behave: with any certificate, and any
//! bytes. Calls come from an address of their own, as from another host.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::identity::IdentityPem;
use ditmesh_transport::{ClusterCa, Identity, Role};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

/// Where it calls from.
pub(crate) const FROM: &str = "127.0.0.66:0";

/// What the certificates of the cluster `demo` are checked against.
const SERVER_NAME: &str = "member.demo.ditmesh.internal";

/// Longest time that a caller who does nothing right is kept: the handshake and a greeting have 5 s
/// each, a stranger's question 10 s; the rest is a busy machine.
const KEPT_MAX: Duration = Duration::from_secs(20);

/// The keys to a cluster, which an intruder should not have.
pub(crate) struct Certificates {
    pub(crate) authority: ClusterCa,
    authority_key: KeyPair,
}

impl Certificates {
    pub(crate) fn load(folder: &Path) -> Self {
        let key = std::fs::read_to_string(folder.join("ca.key.pem")).unwrap();
        Self {
            authority: ClusterCa::load(folder).unwrap(),
            authority_key: KeyPair::from_pem(&key).unwrap(),
        }
    }

    pub(crate) fn good(&self, role: Role, name: &str) -> Identity {
        self.authority.issue(role, name).unwrap()
    }

    /// Of another authority, by one that knows ours.
    pub(crate) fn foreign(&self) -> IdentityPem {
        let foreign = ClusterCa::generate("demo").unwrap().issue(Role::Node, "b").unwrap();
        IdentityPem { authority: self.authority.certificate_pem().to_owned(), ..foreign.to_pem() }
    }

    /// Of our authority, for these names, until this year.
    pub(crate) fn forged(&self, names: &[&str], until: i32) -> IdentityPem {
        let params = |names: &[&str], common_name: &str| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(until, 1, 1);
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, common_name);
            params
        };
        let authority = params(&["ca.demo.ditmesh.internal"], "demo authority");
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(authority, &self.authority_key);
        let certificate = params(names, "somebody").signed_by(&key, &issuer).unwrap();
        IdentityPem {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            authority: self.authority.certificate_pem().to_owned(),
        }
    }

    /// Speaks `protocol`, with this certificate or none.
    pub(crate) fn caller(&self, identity: Option<&IdentityPem>, protocol: &[u8]) -> Caller {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(self.authority.certificate_pem())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => tls.with_no_client_auth(),
            Some(pem) => {
                let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
                tls.with_client_auth_cert(vec![der(&pem.certificate)], key).unwrap()
            }
        };
        tls.alpn_protocols = vec![protocol.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client(FROM.parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        Caller(endpoint)
    }
}

/// Calls.
#[derive(Clone)]
pub(crate) struct Caller(quinn::Endpoint);

impl Caller {
    /// A connection, as far as this side can tell: whether its certificate is accepted it hears
    /// later.
    async fn call(&self, port: SocketAddr) -> Option<quinn::Connection> {
        let calling = self.0.connect(port, SERVER_NAME).unwrap();
        timeout(KEPT_MAX, calling).await.expect("no answer").ok()
    }

    /// Calls and says this on a stream, until the other side hangs up: it has to.
    pub(crate) async fn say(&self, port: SocketAddr, words: Words) {
        let Some(connection) = self.call(port).await else { return };
        let said = async {
            let Ok((mut sending, _receiving)) = connection.open_bi().await else { return };
            for part in words.bytes.chunks(words.at_a_time) {
                if sending.write_all(part).await.is_err() {
                    return;
                }
                tokio::time::sleep(words.pause).await;
            }
            if words.ends {
                // Whoever has hung up does not mind.
                let _ = sending.finish();
            }
            connection.closed().await;
        };
        let hung_up = timeout(KEPT_MAX, async { tokio::join!(said, connection.closed()) }).await;
        assert!(hung_up.is_ok(), "{port} keeps somebody who says {words:?}");
    }

    /// Calls and opens as many streams as it can; how many these are.
    pub(crate) async fn open_streams(&self, port: SocketAddr) -> usize {
        let Some(connection) = self.call(port).await else { return 0 };
        let mut streams = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(Ok(stream)) = timeout(patience, connection.open_bi()).await {
            streams.push(stream);
        }
        let one_way = timeout(patience, connection.open_uni()).await;
        assert!(!matches!(one_way, Ok(Ok(_))), "{port} takes streams that nobody needs");
        let over = timeout(KEPT_MAX, connection.closed()).await;
        assert!(over.is_ok(), "{port} keeps somebody who says nothing");
        streams.len()
    }
}

/// What somebody says, and how.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    bytes: Vec<u8>,
    at_a_time: usize,
    pause: Duration,
    /// Whether the stream is ended after them.
    ends: bool,
}

impl Words {
    /// All at once.
    pub(crate) fn of(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), at_a_time: usize::MAX, pause: Duration::ZERO, ends: false }
    }

    /// And nothing follows.
    pub(crate) fn cut_off(bytes: impl Into<Vec<u8>>) -> Self {
        Self { ends: true, ..Self::of(bytes) }
    }

    /// One byte per second.
    pub(crate) fn slowly(bytes: impl Into<Vec<u8>>) -> Self {
        Self { at_a_time: 1, pause: Duration::from_secs(1), ..Self::of(bytes) }
    }
}
