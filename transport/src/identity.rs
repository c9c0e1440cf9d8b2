//! Who a process is: certificates of one authority per cluster.
//!
//! Owns the cluster authority, identities, the names in certificates, and the TLS 1.3 settings that
//! demand a certificate of the same authority from both sides. Does not decide what a role may do.
//! Invariants: private keys are written with mode 0600 and never printed; a peer's name comes from
//! its verified certificate, never from its words.

mod authority;
mod error;
mod files;
mod name;
mod tls;
mod validity;

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use authority::ClusterCa;
pub use error::IdentityError;
pub use name::{PeerIdentity, Role};
pub use tls::TlsRole;
pub(crate) use tls::{
    client_crypto, joiner_tls, open_server_crypto, server_crypto, verified_identity,
};

/// A certificate with its key, and the authority that peers must have too.
#[derive(Clone)]
pub struct Identity {
    subject: PeerIdentity,
    certificate_pem: String,
    key_pem: String,
    authority_pem: String,
}

/// An identity as texts, for a process that is given it over a pipe. Holds a private key: never
/// logged, and never in arguments.
#[derive(Clone)]
pub struct IdentityPem {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The authority that peers must have too.
    pub authority: String,
}

impl fmt::Debug for IdentityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityPem")
    }
}

impl Identity {
    pub(crate) fn new(
        subject: PeerIdentity,
        certificate_pem: String,
        key_pem: String,
        authority_pem: String,
    ) -> Self {
        Self { subject, certificate_pem, key_pem, authority_pem }
    }

    /// Who this is.
    pub fn subject(&self) -> &PeerIdentity {
        &self.subject
    }

    /// Reads `<role>-<name>.pem`, `<role>-<name>.key.pem` and `ca.pem` from a folder.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file and what to do.
    pub fn load(dir: &Path, role: Role, name: &str) -> Result<Self, IdentityError> {
        let certificate_path = certificate_path(dir, role, name);
        let certificate_pem = files::read(&certificate_path)?;
        let key_pem = files::read_key(&key_path(dir, role, name))?;
        let authority_pem = files::read(&dir.join(files::AUTHORITY_FILE))?;
        let certificate = parse_certificate(&certificate_pem, &certificate_path)?;
        let subject = name::identity_of(&certificate)
            .map_err(|cause| IdentityError::Unusable { path: certificate_path.clone(), cause })?;
        if subject.role != role || subject.name != name {
            return Err(IdentityError::Unusable {
                path: certificate_path,
                cause: format!("it belongs to {subject}, not to {role} {name}"),
            });
        }
        Ok(Self { subject, certificate_pem, key_pem, authority_pem })
    }

    /// Writes the three files that [`Identity::load`] reads, the key with mode 0600.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let PeerIdentity { role, name, .. } = &self.subject;
        files::write(&dir.join(files::AUTHORITY_FILE), &self.authority_pem)?;
        files::write(&certificate_path(dir, *role, name), &self.certificate_pem)?;
        files::write_key(&key_path(dir, *role, name), &self.key_pem)
    }

    /// The texts that [`Identity::from_pem`] reads.
    pub fn to_pem(&self) -> IdentityPem {
        IdentityPem {
            certificate: self.certificate_pem.clone(),
            key: self.key_pem.clone(),
            authority: self.authority_pem.clone(),
        }
    }

    /// The identity of these texts; whose it is comes from the certificate.
    ///
    /// # Errors
    /// [`IdentityError::Unusable`] when one of them is not what it should be.
    pub fn from_pem(pem: IdentityPem) -> Result<Self, IdentityError> {
        let IdentityPem { certificate, key, authority } = pem;
        let path = Path::new("(identity in memory)");
        let subject = name::identity_of(&parse_certificate(&certificate, path)?)
            .map_err(|cause| IdentityError::Unusable { path: path.to_owned(), cause })?;
        let identity = Self::new(subject, certificate, key, authority);
        identity.key()?;
        identity.authority()?;
        Ok(identity)
    }

    pub(crate) fn certificate(&self) -> Result<CertificateDer<'static>, IdentityError> {
        parse_certificate(&self.certificate_pem, Path::new("(identity in memory)"))
    }

    pub(crate) fn authority(&self) -> Result<CertificateDer<'static>, IdentityError> {
        parse_certificate(&self.authority_pem, Path::new(files::AUTHORITY_FILE))
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| {
            IdentityError::Unusable {
                path: PathBuf::from(format!("key of {}", self.subject)),
                cause: error.to_string(),
            }
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.subject)
    }
}

/// The cluster that an authority's certificate is for.
pub(crate) fn name_of_authority(
    certificate: &CertificateDer<'static>,
) -> Result<String, IdentityError> {
    name::cluster_of_authority(certificate).map_err(|cause| IdentityError::Unusable {
        path: PathBuf::from(files::AUTHORITY_FILE),
        cause,
    })
}

/// An authority's certificate.
pub(crate) fn authority_der(pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    parse_certificate(pem, Path::new(files::AUTHORITY_FILE))
}

fn certificate_path(dir: &Path, role: Role, name: &str) -> PathBuf {
    dir.join(format!("{role}-{name}.pem"))
}

fn key_path(dir: &Path, role: Role, name: &str) -> PathBuf {
    dir.join(format!("{role}-{name}.key.pem"))
}

fn parse_certificate(pem: &str, path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| IdentityError::Unusable {
        path: path.to_owned(),
        cause: format!("no certificate in it ({error})"),
    })
}

#[cfg(test)]
mod tests;
