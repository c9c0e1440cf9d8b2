//! The folder of the sockets through which one connection per host is shared.
//!
//! Short, because a socket's path may have 107 bytes and a cluster's own folder may lie deep;
//! private, because whoever can write there can be this user on every host. Held by the supervisor,
//! of which there is one per cluster.

use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::LaunchError;
use super::super::record::RunFolder;

/// Nobody else may look.
const MODE: u32 = 0o700;

/// The folder, removed when this is dropped.
#[derive(Debug)]
pub(super) struct ControlFolder(PathBuf);

impl ControlFolder {
    /// Makes the folder of a cluster; what a killed launcher left in it goes.
    pub(super) fn of(cluster: &RunFolder) -> Result<Self, LaunchError> {
        let root = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let root = root.map_or_else(std::env::temp_dir, PathBuf::from);
        let mut hasher = DefaultHasher::new();
        cluster.path().hash(&mut hasher);
        let user = nix::unistd::geteuid().as_raw();
        let path = root.join(format!("ditmesh-ssh-{user}-{:08x}", hasher.finish() as u32));
        make(&path, user).map(|()| Self(path.clone())).map_err(|error| LaunchError::File {
            path: path.display().to_string(),
            cause: error.to_string(),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

fn make(path: &Path, user: u32) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0 => {
            fs::remove_dir_all(path)?;
        }
        Ok(_) => return Err(io::Error::other("it is not this user's private folder; remove it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new().mode(MODE).create(path)
}

impl Drop for ControlFolder {
    fn drop(&mut self) {
        // It is made anew by the next launcher.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_that_others_can_write_is_refused_and_an_old_one_is_emptied() {
        let root = tempfile::tempdir().expect("a folder");
        let (path, user) = (root.path().join("sockets"), nix::unistd::geteuid().as_raw());
        make(&path, user).expect("made");
        fs::write(path.join("old"), "").expect("written");
        make(&path, user).expect("made again");
        assert_eq!(fs::read_dir(&path).expect("there").count(), 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).expect("opened");
        assert!(make(&path, user).is_err());
        fs::remove_dir(&path).expect("removed");
        std::os::unix::fs::symlink(root.path(), &path).expect("a link");
        assert!(make(&path, user).is_err());
    }
}
