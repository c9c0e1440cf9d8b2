//! One supervisor per cluster: a lock that the system gives up when its holder dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;

use super::record::RunFolder;

/// Attempts to lock a file that others keep removing.
const ATTEMPTS_MAX: usize = 16;

/// Held for as long as a cluster is supervised.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the cluster with this folder; `None` when another process has it.
    pub(crate) fn try_take(folder: &RunFolder) -> io::Result<Option<Self>> {
        let path = folder.path().join("lock");
        for _ in 0..ATTEMPTS_MAX {
            fs::create_dir_all(folder.path())?;
            let file = match OpenOptions::new().create(true).append(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // A supervisor that ended just now may have removed the file we opened.
            let is_current = fs::metadata(&path)
                .is_ok_and(|found| file.metadata().is_ok_and(|ours| ours.ino() == found.ino()));
            if is_current {
                return Ok(Some(Self { _file: file }));
            }
        }
        Err(io::Error::other("the lock is removed again and again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_one_supervisor_at_a_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::at(dir.path().join("run").join("demo"));
        let held = Lock::try_take(&folder).expect("no error").expect("nobody has it");
        assert!(Lock::try_take(&folder).expect("no error").is_none());
        folder.remove().expect("removed");
        assert!(Lock::try_take(&folder).expect("no error").is_some(), "a removed lock is gone");
        drop(held);
    }
}
