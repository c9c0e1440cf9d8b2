//! The joiner's own key: made where it stays; only its public half goes out to be signed.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};

use crate::identity::{Identity, IdentityError, IdentityPem};

/// Bytes of an uncompressed point of the curve P-256.
const POINT_BYTES: usize = 65;

/// A key without a certificate yet.
pub struct JoinKey(KeyPair);

impl JoinKey {
    /// A new one, for ECDSA on the curve P-256.
    ///
    /// # Errors
    /// [`IdentityError::Tls`].
    pub fn generate() -> Result<Self, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::Tls {
            what: "generate a key",
            cause: error.to_string(),
        };
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(failed)
    }

    /// Its public half: an uncompressed point.
    pub fn public(&self) -> Vec<u8> {
        self.0.der_bytes().to_vec()
    }

    /// The identity that this key and the certificate made for it are.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] when they do not fit.
    pub fn identity(
        &self,
        certificate: String,
        authority: String,
    ) -> Result<Identity, IdentityError> {
        let identity = Identity::from_pem(IdentityPem {
            certificate,
            key: self.0.serialize_pem(),
            authority,
        })?;
        identity.quic_client()?;
        Ok(identity)
    }
}

/// A public key that somebody else made.
pub(crate) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// From an uncompressed point.
    pub(crate) fn new(point: &[u8]) -> Option<Self> {
        (point.len() == POINT_BYTES && point.first() == Some(&4)).then(|| Self(point.to_vec()))
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::identity::{ClusterCa, Role};

    #[test]
    fn a_certificate_made_for_a_public_key_fits_the_private_one_and_no_other() {
        let authority = ClusterCa::generate("emoji").expect("an authority");
        let (key, other) =
            (JoinKey::generate().expect("a key"), JoinKey::generate().expect("a key"));
        let certificate = authority.sign(Role::Node, "c", &key.public()).expect("a certificate");
        let pem = authority.certificate_pem().to_owned();
        let identity = key.identity(certificate.clone(), pem.clone()).expect("they fit");
        assert_eq!((identity.subject().name.as_str(), identity.subject().role), ("c", Role::Node));
        identity.verify_at(SystemTime::now()).expect("members accept it");
        assert!(other.identity(certificate, pem).is_err());
        assert!(authority.sign(Role::Node, "c", b"nonsense").is_err());
        assert!(authority.sign(Role::Node, "Not A Name", &key.public()).is_err());
    }
}
