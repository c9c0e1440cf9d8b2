//! The journal's files: `journal`, and one file for the newest checkpoint of each request.
//!
//! Owns their names, that one process has them at a time, and that each is either whole and on the
//! disk or not there: entries are appended and synced, everything else is written beside its place
//! and renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rkyv::rancor;

use super::{Entry, Kept, Remembered, append, digest};
use crate::checkpoint::Checkpoint;

/// Bytes after which a journal is written anew, without what has ended.
const JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// How an append waits for the disk.
pub(crate) type Sync = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// The open files.
pub(crate) struct JournalFile {
    folder: PathBuf,
    file: File,
    sync: Sync,
    bytes: u64,
    /// Whether something of what is remembered could not be written.
    lags: bool,
    remembered: Remembered,
    /// Held as long as the files are open.
    _lock: File,
}

impl JournalFile {
    /// Opens the journal in `folder`, or begins one, and writes it anew.
    ///
    /// # Errors
    /// When the folder cannot be written to; [`io::ErrorKind::ResourceBusy`] while another process
    /// has it open, as one that is stopped and not dead.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Self::open_with(folder, Box::new(File::sync_data))
    }

    /// The same, with another way to wait for the disk.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn open_with(folder: &Path, sync: Sync) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = lock(folder)?;
        let path = folder.join("journal");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (remembered, torn) = Remembered::from_bytes(&bytes);
        if torn > 0 {
            tracing::warn!(path = %path.display(), bytes = torn, "the journal's end was cut short");
        }
        let (file, bytes) = rewrite(folder, &remembered)?;
        let (folder, lags) = (folder.to_owned(), false);
        let journal = Self { folder, file, sync, bytes, lags, remembered, _lock: lock };
        journal.remove_strays()?;
        Ok(journal)
    }

    /// What it says.
    pub(crate) fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// Appends entries and waits for the disk.
    ///
    /// # Errors
    /// When they could not be written; the next append that succeeds writes them too.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| append(&mut bytes, entry));
        let mut gone = Vec::new();
        for entry in entries {
            gone.extend(self.path_before(&entry));
            self.remembered.add(entry);
        }
        if self.lags || self.bytes + bytes.len() as u64 > JOURNAL_BYTES_MAX {
            // A disk that is still full keeps what it has.
            self.lags = true;
            (self.file, self.bytes) = rewrite(&self.folder, &self.remembered)?;
            (self.sync)(&self.file)?;
            self.lags = false;
        } else if let Err(error) =
            self.file.write_all(&bytes).and_then(|()| (self.sync)(&self.file))
        {
            // Half an entry would hide all that follow.
            let _ = self.file.set_len(self.bytes);
            self.lags = true;
            return Err(error);
        } else {
            self.bytes += bytes.len() as u64;
        }
        // What nothing names any more; one that stays is swept at the next start.
        gone.iter().for_each(|path| drop(fs::remove_file(path)));
        Ok(())
    }

    /// Writes a checkpoint of a request that is remembered.
    ///
    /// # Errors
    /// When it could not be written; the one before is still there.
    pub(crate) fn keep(&mut self, request: u64, checkpoint: &Checkpoint) -> io::Result<()> {
        if !self.remembered.requests.contains_key(&request) {
            return Ok(());
        }
        let bytes = to_bytes(checkpoint)?;
        let (step, digest) = (checkpoint.step as u32, digest(&bytes));
        write(&self.path(request, step), &bytes)?;
        self.append(vec![Entry::Kept { request, step, digest }])
    }

    /// The checkpoint of a request, if it is whole.
    pub(crate) fn checkpoint(&self, request: u64) -> Option<Checkpoint> {
        let kept = self.remembered.requests.get(&request)?.kept.as_ref()?;
        let path = self.path(request, kept.step);
        let bytes = fs::read(&path).ok().filter(|bytes| digest(bytes) == kept.digest);
        let checkpoint = bytes.as_deref().and_then(from_bytes);
        if checkpoint.is_none() {
            tracing::warn!(path = %path.display(), "a checkpoint is missing or damaged");
        }
        checkpoint
    }

    fn path(&self, request: u64, step: u32) -> PathBuf {
        self.folder.join(format!("{request}-{step}.checkpoint"))
    }

    /// The file that nobody needs once `entry` is written.
    fn path_before(&self, entry: &Entry) -> Option<PathBuf> {
        let (request, now) = match entry {
            Entry::Kept { request, step, .. } => (*request, Some(*step)),
            Entry::Ended { request } => (*request, None),
            _ => return None,
        };
        let Kept { step, .. } = self.remembered.requests.get(&request)?.kept.as_ref()?;
        (now != Some(*step)).then(|| self.path(request, *step))
    }

    /// Removes files that a crash left behind.
    fn remove_strays(&self) -> io::Result<()> {
        let named: Vec<PathBuf> = self
            .remembered
            .requests
            .iter()
            .filter_map(|(&request, pending)| Some(self.path(request, pending.kept.as_ref()?.step)))
            .collect();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "checkpoint" || e == "partial")
                && !named.contains(&path)
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// A checkpoint as it is kept and sent.
///
/// # Errors
/// When it is too large for its form.
pub(crate) fn to_bytes(checkpoint: &Checkpoint) -> io::Result<Vec<u8>> {
    let bytes = rkyv::to_bytes::<rancor::Error>(checkpoint).map_err(io::Error::other)?;
    Ok(bytes.to_vec())
}

/// The other way; `None` for bytes that are no checkpoint.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Checkpoint> {
    let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    let checkpoint = rkyv::from_bytes::<Checkpoint, rancor::Error>(&aligned).ok()?;
    let elements = checkpoint.state.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    (elements == Some(checkpoint.state.data.len())).then_some(checkpoint)
}

fn lock(folder: &Path) -> io::Result<File> {
    let lock = File::create(folder.join("lock"))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let cause = "another coordinator has it open; end that one first";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, cause));
        }
        // There are file systems without locks.
        Err(TryLockError::Error(error)) => tracing::warn!(%error, "the journal has no lock"),
        Ok(()) => {}
    }
    Ok(lock)
}

/// Replaces the journal by the fewest entries.
fn rewrite(folder: &Path, remembered: &Remembered) -> io::Result<(File, u64)> {
    let (path, bytes) = (folder.join("journal"), remembered.to_bytes());
    write(&path, &bytes)?;
    Ok((OpenOptions::new().append(true).open(path)?, bytes.len() as u64))
}

/// Writes a file whole, and waits for the disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let mut file = File::create(&partial)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_data());
    if let Err(error) = written.and_then(|()| fs::rename(&partial, path)) {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
