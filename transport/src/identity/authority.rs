//! The certificate authority of one cluster.
//!
//! Owns its key and certificate and issues identities. Invariants: the authority can issue leaf
//! certificates only, and the cluster's name comes back out of the authority's own certificate.

use std::path::Path;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::validity::{Day, validity};
use super::{Identity, IdentityError, PeerIdentity, Role, files, name, parse_certificate};
use crate::join::PublicKey;

/// The authority of one cluster.
pub struct ClusterCa {
    cluster: String,
    certificate_pem: String,
    key: KeyPair,
}

impl ClusterCa {
    /// Makes a new authority.
    ///
    /// # Errors
    /// [`IdentityError::Name`] for a name that cannot stand in a certificate.
    pub fn generate(cluster: &str) -> Result<Self, IdentityError> {
        name::check_cluster(cluster)?;
        let key = KeyPair::generate().map_err(tls_error("generate a key"))?;
        let certificate = authority_params(cluster)?
            .self_signed(&key)
            .map_err(tls_error("make the authority's certificate"))?;
        let certificate_pem = certificate.pem();
        Ok(Self { cluster: cluster.to_owned(), certificate_pem, key })
    }

    /// Reads `ca.pem` and `ca.key.pem`.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file and what to do.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(files::AUTHORITY_FILE);
        let key_path = dir.join(files::AUTHORITY_KEY_FILE);
        let certificate_pem = files::read(&path)?;
        let key_pem = files::read_key(&key_path)?;
        let certificate = parse_certificate(&certificate_pem, &path)?;
        let cluster = name::cluster_of_authority(&certificate)
            .map_err(|cause| IdentityError::Unusable { path, cause })?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| IdentityError::Unusable {
            path: key_path,
            cause: error.to_string(),
        })?;
        Ok(Self { cluster, certificate_pem, key })
    }

    /// Writes `ca.pem` and, with mode 0600, `ca.key.pem`.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        files::write_key(&dir.join(files::AUTHORITY_KEY_FILE), &self.key.serialize_pem())?;
        files::write(&dir.join(files::AUTHORITY_FILE), &self.certificate_pem)
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Its certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes a certificate for a key that stays elsewhere; `point` is its public half
    /// ([`JoinKey::public`](crate::join::JoinKey::public)).
    ///
    /// # Errors
    /// [`IdentityError::Name`] for a name that cannot stand in a certificate,
    /// [`IdentityError::Tls`] for what is no such key.
    pub fn sign(&self, role: Role, name: &str, point: &[u8]) -> Result<String, IdentityError> {
        let subject = PeerIdentity::new(role, name, &self.cluster)?;
        let key = PublicKey::new(point).ok_or_else(|| IdentityError::Tls {
            what: "use this public key",
            cause: format!("{} bytes are no point of P-256", point.len()),
        })?;
        let issuer = Issuer::new(authority_params(&self.cluster)?, &self.key);
        let certificate = leaf_params(&subject)?
            .signed_by(&key, &issuer)
            .map_err(tls_error("make a certificate"))?;
        Ok(certificate.pem())
    }

    /// Makes a key and a certificate for one process.
    ///
    /// # Errors
    /// [`IdentityError::Name`] for a name that cannot stand in a certificate.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, IdentityError> {
        let subject = PeerIdentity::new(role, name, &self.cluster)?;
        let key = KeyPair::generate().map_err(tls_error("generate a key"))?;
        let issuer = Issuer::new(authority_params(&self.cluster)?, &self.key);
        let certificate = leaf_params(&subject)?
            .signed_by(&key, &issuer)
            .map_err(tls_error("make a certificate"))?;
        Ok(Identity::new(
            subject,
            certificate.pem(),
            key.serialize_pem(),
            self.certificate_pem.clone(),
        ))
    }
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClusterCa({})", self.cluster)
    }
}

fn authority_params(cluster: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = params(vec![name::authority_name(cluster)], &format!("{cluster} authority"))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(subject: &PeerIdentity) -> Result<CertificateParams, IdentityError> {
    let names = vec![subject.dns_name(), name::member_name(&subject.cluster)];
    let mut params = params(names, &subject.to_string())?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(names).map_err(tls_error("use these names"))?;
    let (from, until) = validity(SystemTime::now());
    let date = |day: Day| date_time_ymd(day.year, day.month, day.day);
    params.not_before = date(from);
    params.not_after = date(until);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn tls_error(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Tls { what, cause: error.to_string() }
}
