//! The join tokens that are out: what the coordinator keeps of each, one file per token.
//!
//! Owns that a token is good once, until it expires, and for its name only. The files hold hashes;
//! the secrets were told once and are nowhere. The time comes in as an argument.
//!
//! Invariant: a token's file is gone, and that is on disk, before anything is done for its holder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ditmesh_transport::join::{JoinToken, TokenHash};
use serde::{Deserialize, Serialize};

/// Tokens that may be out at a time.
pub(super) const TOKENS_MAX: usize = 256;

/// Longest time a token is good for.
pub(super) const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Hexadecimal digits of a token's name.
const ID_CHARS: usize = 16;

/// What is kept of one token.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    hash: String,
    /// Seconds since 1970.
    expires_s: u64,
    node: Option<String>,
}

/// Why a token lets nobody in. What the stranger is told does not tell apart what it could try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenRefusal {
    #[error("this token is unknown, was used already, or is not the one that was made")]
    Unknown,
    #[error("this token has expired; `ditmesh token` makes another")]
    Expired,
    #[error("this token is for node {expected}, not for {found}")]
    OtherNode { expected: String, found: String },
    #[error("the coordinator cannot keep its tokens: {0}")]
    Disk(String),
}

/// The tokens of one cluster.
#[derive(Debug)]
pub(super) struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Remembers a token that is given out now.
    pub(super) fn keep(
        &self,
        token: &JoinToken,
        node: Option<String>,
        expires_s: u64,
        now_s: u64,
    ) -> Result<(), String> {
        let out = self.all(now_s).len();
        if out >= TOKENS_MAX {
            return Err(format!("{out} tokens are out already; they expire, try again later"));
        }
        let kept = Kept { hash: token.hash().to_text(), expires_s, node };
        self.write(&token.id(), &kept).map_err(|error| self.words(&error))
    }

    /// Uses a token up for a node.
    pub(super) fn redeem(
        &self,
        id: &str,
        secret: &str,
        node: &str,
        now_s: u64,
    ) -> Result<(), TokenRefusal> {
        // The name becomes a file's.
        if id.len() != ID_CHARS || !id.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(TokenRefusal::Unknown);
        }
        let path = self.path(id);
        let kept = read(&path).ok_or(TokenRefusal::Unknown)?;
        let hash = TokenHash::from_text(&kept.hash).ok_or(TokenRefusal::Unknown)?;
        if !hash.is_of(secret) {
            return Err(TokenRefusal::Unknown);
        }
        if kept.expires_s <= now_s {
            return Err(TokenRefusal::Expired);
        }
        if let Some(expected) = kept.node.filter(|expected| expected != node) {
            return Err(TokenRefusal::OtherNode { expected, found: node.into() });
        }
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(TokenRefusal::Unknown),
            Err(error) => Err(TokenRefusal::Disk(self.words(&error))),
        }
    }

    /// When the last of the tokens that are out expires, in seconds since 1970. Forgets the
    /// expired.
    pub(super) fn last_expiry(&self, now_s: u64) -> Option<u64> {
        self.all(now_s).into_iter().max()
    }

    fn all(&self, now_s: u64) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let paths = entries.take(2 * TOKENS_MAX).filter_map(|entry| Some(entry.ok()?.path()));
        let kept = paths.filter_map(|path| Some((read(&path)?.expires_s, path)));
        let (out, expired): (Vec<_>, Vec<_>) = kept.partition(|(expires, _)| *expires > now_s);
        for (_, path) in expired {
            // It lets nobody in, there or not.
            let _ = fs::remove_file(path);
        }
        out.into_iter().map(|(expires, _)| expires).collect()
    }

    fn write(&self, id: &str, kept: &Kept) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let (path, partial) = (self.path(id), self.folder.join(format!("{id}.partial")));
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn words(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.folder.display())
    }
}

fn read(path: &Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use ditmesh_transport::identity::ClusterCa;

    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens, JoinToken) {
        let dir = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::new(dir.path().join("tokens"));
        let authority = ClusterCa::generate("demo").expect("an authority");
        let token = JoinToken::generate(authority.certificate_pem(), "a").expect("a token");
        (dir, tokens, token)
    }

    #[test]
    fn a_token_is_good_once() {
        let (_dir, tokens, token) = tokens();
        tokens.keep(&token, None, 100, 0).expect("kept");
        assert_eq!(tokens.last_expiry(0), Some(100));
        let again = Tokens::new(tokens.folder.clone());
        assert_eq!(again.redeem(&token.id(), &token.secret(), "c", 99), Ok(()), "after a restart");
        let replayed = tokens.redeem(&token.id(), &token.secret(), "c", 99);
        assert_eq!(replayed, Err(TokenRefusal::Unknown));
        assert_eq!(tokens.last_expiry(0), None);
    }

    #[test]
    fn a_token_is_good_for_its_time_its_secret_and_its_name() {
        let (_dir, tokens, token) = tokens();
        tokens.keep(&token, Some("c".into()), 100, 0).expect("kept");
        let (id, secret) = (token.id(), token.secret());
        let other = TokenRefusal::OtherNode { expected: "c".into(), found: "d".into() };
        assert_eq!(tokens.redeem(&id, &secret, "d", 1), Err(other));
        assert_eq!(tokens.redeem(&id, "guess", "c", 1), Err(TokenRefusal::Unknown));
        assert_eq!(tokens.redeem("../../etc/passwd", &secret, "c", 1), Err(TokenRefusal::Unknown));
        assert_eq!(tokens.redeem(&id, &secret, "c", 100), Err(TokenRefusal::Expired));
        assert_eq!(tokens.redeem(&id, &secret, "c", 99), Ok(()), "failed attempts cost nothing");
    }

    #[test]
    fn only_hashes_are_kept_and_the_expired_go() {
        let (_dir, tokens, token) = tokens();
        tokens.keep(&token, None, 100, 0).expect("kept");
        let kept = fs::read_to_string(tokens.path(&token.id())).expect("its file");
        assert!(!kept.contains(&token.secret()), "{kept}");
        assert_eq!(tokens.last_expiry(100), None);
        assert!(!tokens.path(&token.id()).exists());
    }
}
