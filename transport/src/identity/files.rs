//! Keys and certificates on disk.
//!
//! Owns names, modes and bounds of the files. Invariants: a file appears complete or not at all (it
//! is renamed into place), and a private key is never readable by others, not even for a moment.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::IdentityError;

pub(super) const AUTHORITY_FILE: &str = "ca.pem";
pub(super) const AUTHORITY_KEY_FILE: &str = "ca.key.pem";

/// The largest key or certificate file, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

pub(super) fn read(path: &Path) -> Result<String, IdentityError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => IdentityError::Missing { path: path.to_owned() },
        _ => IdentityError::Read { path: path.to_owned(), source: Arc::new(source) },
    };
    let file = fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(IdentityError::TooLarge {
            path: path.to_owned(),
            bytes,
            limit: FILE_BYTES_MAX,
        });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

pub(super) fn read_key(path: &Path) -> Result<String, IdentityError> {
    let text = read(path)?;
    if let Ok(metadata) = fs::metadata(path) {
        let mode = metadata.permissions().mode() & 0o777;
        // Where the system's own is mounted for a group, as Kubernetes mounts a Secret, the group
        // is whom it is for.
        let for_others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
        if mode & for_others != 0 {
            tracing::warn!(
                path = %path.display(),
                mode = format!("{mode:o}"),
                "private key is readable by others; run chmod 600 on it"
            );
        }
    }
    Ok(text)
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    write_with_mode(path, text, CERTIFICATE_MODE)
}

pub(super) fn write_key(path: &Path, text: &str) -> Result<(), IdentityError> {
    write_with_mode(path, text, KEY_MODE)
}

fn write_with_mode(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    replace(path, text, mode)
        .map_err(|source| IdentityError::Write { path: path.to_owned(), source: Arc::new(source) })
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let partial = partial_path(path);
    // A leftover of a killed process with the same id may have any mode.
    if let Err(error) = fs::remove_file(&partial)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    PathBuf::from(name)
}
