//! The token: a name, a secret, and the authority by which the joiner knows the cluster.
//!
//! Invariants: the secret is 256 random bits, is never printed but by [`JoinToken::text`], and is
//! compared in constant time; who knows a [`TokenHash`] knows nothing of the secret.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use rustls::pki_types::CertificateDer;

use crate::identity::{IdentityError, name_of_authority};

/// First part of every token's text.
const PREFIX: &str = "ditmesh-join-1";

/// Longest text, in bytes.
const TEXT_BYTES_MAX: usize = 16 << 10;

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: [u8; ID_BYTES],
    secret: [u8; SECRET_BYTES],
    /// Node that hosts the coordinator.
    coordinator: String,
    authority: Vec<u8>,
}

/// Why a text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It has another form.
    #[error("this is no join token ({0}); `ditmesh token` makes one")]
    Malformed(&'static str),
    /// Its authority cannot be used.
    #[error("the authority in the token cannot be used: {0}")]
    Authority(String),
    /// The system has no random numbers.
    #[error("no random numbers for a token")]
    Random,
}

impl JoinToken {
    /// A new one for the cluster of this authority, whose certificate is `authority_pem`.
    ///
    /// # Errors
    /// [`TokenError::Random`], [`TokenError::Authority`].
    pub fn generate(authority_pem: &str, coordinator: &str) -> Result<Self, TokenError> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rand::fill(&mut id).map_err(|_| TokenError::Random)?;
        rand::fill(&mut secret).map_err(|_| TokenError::Random)?;
        let authority = crate::identity::authority_der(authority_pem)
            .map_err(|error| TokenError::Authority(error.to_string()))?;
        Ok(Self { id, secret, coordinator: coordinator.into(), authority: authority.to_vec() })
    }

    /// What the joiner is given.
    pub fn text(&self) -> String {
        let [id, secret] = [hex(&self.id), hex(&self.secret)];
        let (coordinator, authority) = (hex(self.coordinator.as_bytes()), hex(&self.authority));
        format!("{PREFIX}.{id}.{secret}.{coordinator}.{authority}")
    }

    /// Reads a token's text; blanks around it do not matter.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], [`TokenError::Authority`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Malformed("it is too long"));
        }
        let parts: Vec<&str> = text.trim().split('.').collect();
        let &[PREFIX, id, secret, coordinator, authority] = parts.as_slice() else {
            return Err(TokenError::Malformed("it has not five parts"));
        };
        let malformed = || TokenError::Malformed("a part is not hexadecimal, or too short");
        let bytes = |text: &str| unhex(text).ok_or_else(malformed);
        let token = Self {
            id: bytes(id)?.try_into().map_err(|_| malformed())?,
            secret: bytes(secret)?.try_into().map_err(|_| malformed())?,
            coordinator: String::from_utf8(bytes(coordinator)?).map_err(|_| malformed())?,
            authority: bytes(authority)?,
        };
        token.cluster().map_err(|error| TokenError::Authority(error.to_string()))?;
        Ok(token)
    }

    /// Names it; not secret.
    pub fn id(&self) -> String {
        hex(&self.id)
    }

    /// What proves that its holder was given it, for the question.
    pub fn secret(&self) -> String {
        hex(&self.secret)
    }

    /// What the cluster keeps of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.secret())
    }

    /// The node that hosts the coordinator.
    pub fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// The cluster it is for.
    ///
    /// # Errors
    /// When the authority is none of ours.
    pub fn cluster(&self) -> Result<String, IdentityError> {
        name_of_authority(&self.authority())
    }

    pub(super) fn authority(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.authority.clone())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

/// SHA-256 of a token's secret; a secret of 256 random bits needs nothing slower.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash(Vec<u8>);

impl TokenHash {
    /// Of the secret as [`JoinToken::secret`] writes it.
    pub fn of(secret: &str) -> Self {
        Self(digest(&SHA256, secret.as_bytes()).as_ref().to_vec())
    }

    /// Whether it is of this secret; takes as long whatever differs.
    pub fn is_of(&self, secret: &str) -> bool {
        verify_slices_are_equal(&self.0, &Self::of(secret).0).is_ok()
    }

    /// As text, for a file.
    pub fn to_text(&self) -> String {
        hex(&self.0)
    }

    /// Reads what [`Self::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClusterCa;

    fn token() -> JoinToken {
        let authority = ClusterCa::generate("emoji").expect("an authority");
        JoinToken::generate(authority.certificate_pem(), "a").expect("a token")
    }

    #[test]
    fn a_token_survives_its_text_and_says_where_it_belongs() {
        let token = token();
        let read = JoinToken::parse(&format!("  {}\n", token.text())).expect("its own text");
        assert_eq!(read, token);
        assert_eq!(
            (read.cluster().expect("a cluster").as_str(), read.coordinator()),
            ("emoji", "a")
        );
    }

    #[test]
    fn a_hash_is_of_its_secret_only_and_tells_nothing_of_it() {
        let (one, other) = (token(), token());
        assert_ne!((one.id(), one.secret()), (other.id(), other.secret()));
        let kept = TokenHash::from_text(&one.hash().to_text()).expect("its own text");
        assert!(kept.is_of(&one.secret()) && !kept.is_of(&other.secret()) && !kept.is_of(""));
        for shown in [format!("{one:?}"), format!("{:?}", one.hash()), one.hash().to_text()] {
            assert!(!shown.contains(&one.secret()), "{shown}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = token().text();
        let short = &text[..text.len() - 3];
        for wrong in ["", "ditmesh-join-1.a.b.c", short, &text.replace("join-1", "join-2")] {
            assert!(JoinToken::parse(wrong).is_err(), "{wrong}");
        }
        assert!(JoinToken::parse(&"a".repeat(TEXT_BYTES_MAX + 1)).is_err());
    }
}
