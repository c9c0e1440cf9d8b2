//! TLS 1.3 with mutual authentication against one authority.
//!
//! Owns the rustls settings and the reading of the verified peer's name from a connection. There is
//! no way here to accept a certificate of another authority; none at all is accepted only by
//! [`open_server_crypto`], whose callers are strangers until they show one.

use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{Identity, IdentityError, PeerIdentity, name};

const ALPN: &[u8] = b"ditmesh";

/// One side of TLS over a stream, with the rules of the QUIC connections: TLS 1.3, the cluster's
/// authority, both sides authenticated.
#[derive(Clone, Debug)]
pub enum TlsRole {
    /// The side that dials, and the name that it checks.
    Client(Arc<ClientConfig>, ServerName<'static>),
    /// The side that accepts.
    Server(Arc<ServerConfig>),
}

impl Identity {
    /// Whether members would accept this certificate at `time`: its dates and the authority's
    /// signature.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] with what is wrong.
    pub fn verify_at(&self, time: SystemTime) -> Result<(), IdentityError> {
        let wrong = |error: webpki::Error| IdentityError::Tls {
            what: "accept this certificate",
            cause: error.to_string(),
        };
        let (leaf, authority) = (self.certificate()?, self.authority()?);
        let anchors = [webpki::anchor_from_trusted_cert(&authority).map_err(wrong)?];
        let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(wrong)?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let usage = webpki::KeyUsage::client_auth();
        let algorithms = provider().signature_verification_algorithms.all;
        let time = UnixTime::since_unix_epoch(since);
        let verified = leaf.verify_for_usage(algorithms, &anchors, &[], time, usage, None, None);
        verified.map(drop).map_err(wrong)
    }

    /// TLS over a stream of bytes.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when key and certificates do not fit.
    pub fn tls(&self, server: bool) -> Result<TlsRole, IdentityError> {
        if server {
            return Ok(TlsRole::Server(Arc::new(server_tls(self)?)));
        }
        let name = name::member_name(&self.subject().cluster);
        let name = ServerName::try_from(name).map_err(|error| IdentityError::Tls {
            what: "check the name of members",
            cause: error.to_string(),
        })?;
        Ok(TlsRole::Client(Arc::new(client_tls(self)?), name))
    }

    /// What quinn needs to dial members of the cluster, and the name to dial.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when key and certificates do not fit.
    pub fn quic_client(&self) -> Result<(Arc<QuicClientConfig>, String), IdentityError> {
        client_crypto(self)
    }

    /// What quinn needs to accept members of the cluster.
    ///
    /// # Errors
    /// [`IdentityError::Tls`] when key and certificates do not fit.
    pub fn quic_server(&self) -> Result<Arc<QuicServerConfig>, IdentityError> {
        server_crypto(self)
    }
}

/// What the dialing side needs, and the name that TLS is to check.
pub(crate) fn client_crypto(
    identity: &Identity,
) -> Result<(Arc<QuicClientConfig>, String), IdentityError> {
    let quic = QuicClientConfig::try_from(client_tls(identity)?)
        .map_err(|error| IdentityError::Tls { what: "use QUIC", cause: error.to_string() })?;
    Ok((Arc::new(quic), name::member_name(&identity.subject().cluster)))
}

fn client_tls(identity: &Identity) -> Result<ClientConfig, IdentityError> {
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls_error("use TLS 1.3"))?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(vec![identity.certificate()?], identity.key()?)
        .map_err(tls_error("use this key with this certificate"))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Nothing is resumed, so there is nothing that could be sent before the handshake.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// What the accepting side needs.
pub(crate) fn server_crypto(identity: &Identity) -> Result<Arc<QuicServerConfig>, IdentityError> {
    let quic = QuicServerConfig::try_from(server_tls(identity)?)
        .map_err(|error| IdentityError::Tls { what: "use QUIC", cause: error.to_string() })?;
    Ok(Arc::new(quic))
}

/// The same while machines may join: also without a certificate, and then only by the protocol
/// `join`; who speaks the members' without one is found out by [`verified_identity`].
pub(crate) fn open_server_crypto(
    identity: &Identity,
    join: &[u8],
) -> Result<Arc<QuicServerConfig>, IdentityError> {
    let mut tls = tls_of_server(identity, true)?;
    tls.alpn_protocols.push(join.to_vec());
    let quic = QuicServerConfig::try_from(tls)
        .map_err(|error| IdentityError::Tls { what: "use QUIC", cause: error.to_string() })?;
    Ok(Arc::new(quic))
}

/// What a machine without a certificate needs to ask for one: `authority` is all it knows. Also the
/// name that TLS is to check.
pub(crate) fn joiner_tls(
    authority: &CertificateDer<'static>,
    cluster: &str,
    join: &[u8],
) -> Result<(ClientConfig, String), IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(tls_error("use the authority's certificate"))?;
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls_error("use TLS 1.3"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![join.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok((tls, name::member_name(cluster)))
}

fn server_tls(identity: &Identity) -> Result<ServerConfig, IdentityError> {
    tls_of_server(identity, false)
}

fn tls_of_server(identity: &Identity, strangers: bool) -> Result<ServerConfig, IdentityError> {
    let roots = Arc::new(roots(identity)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let verifier = if strangers { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|error| IdentityError::Tls {
        what: "verify certificates of clients",
        cause: error.to_string(),
    })?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls_error("use TLS 1.3"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()?], identity.key()?)
        .map_err(tls_error("use this key with this certificate"))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

/// Who is at the other end of an established connection, by what its TLS session says of the peer.
pub(crate) fn verified_identity(peer: Option<Box<dyn Any>>) -> Result<PeerIdentity, String> {
    let chain = peer
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("the peer presented no certificate")?;
    let leaf = chain.first().ok_or("the peer presented no certificate")?;
    name::identity_of(leaf)
}

/// AES-128-GCM first: with the AES instructions it is the fastest here.
fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

fn roots(identity: &Identity) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()?).map_err(tls_error("use the authority's certificate"))?;
    Ok(roots)
}

fn tls_error(what: &'static str) -> impl Fn(rustls::Error) -> IdentityError {
    move |error| IdentityError::Tls { what, cause: error.to_string() }
}
