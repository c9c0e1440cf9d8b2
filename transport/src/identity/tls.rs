//! TLS 1.3 with mutual authentication against one authority.
//!
//! Owns the rustls settings and the reading of the verified peer's name from a connection. There is
//! no way here to accept a certificate of another authority, or none.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{Identity, IdentityError, PeerIdentity, name};

const ALPN: &[u8] = b"ditmesh";

/// What the dialing side needs, and the name that TLS is to check.
pub(crate) fn client_crypto(
    identity: &Identity,
) -> Result<(Arc<QuicClientConfig>, String), IdentityError> {
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls_error("use TLS 1.3"))?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(vec![identity.certificate()?], identity.key()?)
        .map_err(tls_error("use this key with this certificate"))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|error| IdentityError::Tls { what: "use QUIC", cause: error.to_string() })?;
    Ok((Arc::new(quic), name::member_name(&identity.subject().cluster)))
}

/// What the accepting side needs.
pub(crate) fn server_crypto(identity: &Identity) -> Result<Arc<QuicServerConfig>, IdentityError> {
    let roots = Arc::new(roots(identity)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(
        |error| IdentityError::Tls {
            what: "verify certificates of clients",
            cause: error.to_string(),
        },
    )?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls_error("use TLS 1.3"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()?], identity.key()?)
        .map_err(tls_error("use this key with this certificate"))?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let quic = QuicServerConfig::try_from(tls)
        .map_err(|error| IdentityError::Tls { what: "use QUIC", cause: error.to_string() })?;
    Ok(Arc::new(quic))
}

/// Who is at the other end of an established connection.
pub(crate) fn verified_identity(connection: &quinn::Connection) -> Result<PeerIdentity, String> {
    let chain = connection
        .peer_identity()
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
