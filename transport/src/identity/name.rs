//! Names in certificates: `<name>.<role>.<cluster>.ditmesh.internal`.
//!
//! Owns the roles, the form of the names, and reading them back from a certificate that TLS has
//! verified. Invariant: a name made here reads back as the same role, name and cluster.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::IdentityError;

const ZONE: &str = "ditmesh.internal";

/// The longest DNS name, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// What kind of process a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// An agent, with the right to take part in meshes.
    Node,
    /// A command line or a program that asks the cluster.
    Client,
    /// A worker with a certificate of its own.
    Worker,
}

impl Role {
    const ALL: [Self; 3] = [Self::Node, Self::Client, Self::Worker];

    fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Client => "client",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// What kind of process.
    pub role: Role,
    /// Its name in the manifest.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
}

impl PeerIdentity {
    /// Checks the names.
    ///
    /// # Errors
    /// [`IdentityError::Name`].
    pub fn new(role: Role, name: &str, cluster: &str) -> Result<Self, IdentityError> {
        check_cluster(cluster)?;
        let identity = Self { role, name: name.to_owned(), cluster: cluster.to_owned() };
        let fits = identity.dns_name().len() <= NAME_BYTES_MAX;
        if !fits || !name.split('.').all(is_label) {
            return Err(IdentityError::Name { what: role.label(), name: name.to_owned() });
        }
        Ok(identity)
    }

    /// The name in the certificate.
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{}.{ZONE}", self.name, self.role, self.cluster)
    }

    fn parse(dns_name: &str) -> Option<Self> {
        let rest = dns_name.strip_suffix(ZONE)?.strip_suffix('.')?;
        let (rest, cluster) = rest.rsplit_once('.')?;
        let (name, role) = rest.rsplit_once('.')?;
        let role = Role::ALL.into_iter().find(|known| known.label() == role)?;
        Some(Self { role, name: name.to_owned(), cluster: cluster.to_owned() })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of cluster {}", self.role, self.name, self.cluster)
    }
}

/// The name that every certificate of a cluster carries besides its own: TLS itself checks this
/// one, so that the check of the particular name can fail with both names in its error.
pub(super) fn member_name(cluster: &str) -> String {
    format!("member.{cluster}.{ZONE}")
}

/// The name that the authority's own certificate carries.
pub(super) fn authority_name(cluster: &str) -> String {
    format!("ca.{cluster}.{ZONE}")
}

pub(super) fn check_cluster(cluster: &str) -> Result<(), IdentityError> {
    if is_label(cluster) {
        return Ok(());
    }
    Err(IdentityError::Name { what: "cluster", name: cluster.to_owned() })
}

/// Who a certificate is for; says what is wrong otherwise.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, String> {
    let mut names = dns_names(certificate)?.into_iter();
    names
        .find_map(|name| PeerIdentity::parse(&name))
        .ok_or_else(|| format!("no name of the form NAME.ROLE.CLUSTER.{ZONE} in the certificate"))
}

/// Which cluster an authority's certificate is for.
pub(super) fn cluster_of_authority(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let mut names = dns_names(certificate)?.into_iter();
    names
        .find_map(|name| {
            let rest = name.strip_prefix("ca.")?.strip_suffix(ZONE)?.strip_suffix('.')?;
            Some(rest.to_owned())
        })
        .ok_or_else(|| format!("no name of the form ca.CLUSTER.{ZONE} in the certificate"))
}

fn dns_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    Ok(parsed.valid_dns_names().map(str::to_owned).collect())
}

fn is_label(label: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&label.len())
        && label.chars().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}
