//! Tensors on this host's disk, each in a file named by its SHA-256.
//!
//! Owns the folder `<cache>/ditmesh/tensors`, which all workers of a host share. Invariants: a file
//! under its final name was complete and right when it got it (it is renamed into place), and is
//! looked at again before it is used; a file that is being filled is filled by one process at a
//! time; after each new file the folder is trimmed to its bound, the longest unused first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};

use super::WeightsError;
use super::catalogue::hex;

/// Variable that names the bound, in bytes.
const VARIABLE: &str = "DITMESH_WEIGHTS_CACHE_BYTES";

/// The bound without it.
const CACHE_BYTES_MAX: u64 = 64 << 30;

/// Files of the folder that are looked at.
const FILES_MAX: usize = 1 << 20;

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// Longest wait for another process that fetches the same tensor.
const OTHERS_DEADLINE: Duration = Duration::from_secs(600);

/// Between looks at it.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Ending of a file that is not complete.
const PARTIAL: &str = "partial";

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct TensorCache {
    folder: PathBuf,
    bytes_max: u64,
}

/// A tensor that is being fetched, held by this process alone.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    context: Context,
    /// Bytes that are there.
    pub(super) bytes: u64,
}

/// What is there of a tensor.
pub(super) enum Found {
    /// All of it.
    Whole(PathBuf),
    /// Some of it, or nothing.
    Partial(Partial),
}

impl TensorCache {
    /// The host's cache, below `root`; its bound from the environment.
    pub(super) fn at(root: &Path) -> Result<Self, WeightsError> {
        let set = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        let bytes_max = match set {
            None => CACHE_BYTES_MAX,
            Some(text) => text.parse().map_err(|_| WeightsError::Cache {
                path: VARIABLE.into(),
                cause: format!("it is {text:?}, expected a number of bytes"),
            })?,
        };
        Self::bounded(root.join("ditmesh/tensors"), bytes_max)
    }

    pub(super) fn bounded(folder: PathBuf, bytes_max: u64) -> Result<Self, WeightsError> {
        fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
        Ok(Self { folder, bytes_max })
    }

    /// What is there of the tensor with this digest and length; a part of it is this process's
    /// alone until it is finished or dropped. Waits for another process that has it.
    pub(super) fn find(&self, digest: &str, bytes: u64) -> Result<Found, WeightsError> {
        let path = self.folder.join(digest);
        let partial = path.with_extension(PARTIAL);
        let deadline = Instant::now() + OTHERS_DEADLINE;
        loop {
            if self.is_whole(&path, digest, bytes).map_err(|error| failed(&path, &error))? {
                return Ok(Found::Whole(path));
            }
            let file = OpenOptions::new().read(true).append(true).create(true).open(&partial);
            let file = file.map_err(|error| failed(&partial, &error))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &partial) => {
                    let part = Partial::of(file, partial.clone(), bytes);
                    return part.map(Found::Partial).map_err(|error| failed(&partial, &error));
                }
                // Whoever had it has finished just now.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(failed(&partial, &error)),
            }
            if Instant::now() > deadline {
                let what = format!("tensor {digest}, which another worker fetches,");
                return Err(WeightsError::Deadline { what, seconds: OTHERS_DEADLINE.as_secs() });
            }
        }
    }

    /// Whether the file is the tensor; one that is not is removed.
    fn is_whole(&self, path: &Path, digest: &str, bytes: u64) -> io::Result<bool> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let mut context = Context::new(&SHA256);
        let found = digest_into(&mut file, &mut context)?;
        if found == bytes && hex(context.finish().as_ref()) == digest {
            // Used now: the last to go. A file system without times keeps another order.
            let _ = file.set_modified(SystemTime::now());
            return Ok(true);
        }
        tracing::warn!(path = %path.display(), "a cached tensor is damaged and is fetched again");
        fs::remove_file(path)?;
        Ok(false)
    }

    /// Gives a complete part its final name, if it is right; `None`, and nothing left, if not.
    pub(super) fn finish(
        &self,
        partial: Partial,
        digest: &str,
    ) -> Result<Option<PathBuf>, WeightsError> {
        let Partial { file, path, context, .. } = partial;
        let io = |error: io::Error| failed(&path, &error);
        if hex(context.finish().as_ref()) != digest {
            fs::remove_file(&path).map_err(io)?;
            return Ok(None);
        }
        file.sync_data().map_err(io)?;
        let whole = self.folder.join(digest);
        fs::rename(&path, &whole).map_err(io)?;
        self.trim(&whole).map_err(|error| failed(&self.folder, &error))?;
        Ok(Some(whole))
    }

    /// Removes the longest unused files until the bound holds; `newest` stays.
    fn trim(&self, newest: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)?.take(FILES_MAX) {
            let entry = entry?;
            // Another process may have removed it just now.
            if let Ok(meta) = entry.metadata() {
                let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                files.push((used, meta.len(), entry.path()));
            }
        }
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.bytes_max {
                break;
            }
            if path != newest {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => total -= bytes,
                }
            }
        }
        Ok(())
    }
}

impl Partial {
    /// Goes on where an earlier attempt ended.
    fn of(mut file: File, path: PathBuf, bytes: u64) -> io::Result<Self> {
        if file.metadata()?.len() > bytes {
            file.set_len(0)?;
        }
        let mut context = Context::new(&SHA256);
        let bytes = digest_into(&mut file, &mut context)?;
        Ok(Self { file, path, context, bytes })
    }

    /// Adds bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, &error))?;
        self.context.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Whether the open file is still the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |found: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == found.ino());
    fs::metadata(path).is_ok_and(same)
}

/// Digests a file from its start; how long it is.
fn digest_into(file: &mut File, context: &mut Context) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut step = vec![0; STEP_BYTES];
    let mut total = 0;
    loop {
        match file.read(&mut step)? {
            0 => return Ok(total),
            read => {
                context.update(step.get(..read).unwrap_or_default());
                total += read as u64;
            }
        }
    }
}

pub(super) fn failed(path: &Path, error: &io::Error) -> WeightsError {
    WeightsError::Cache { path: path.display().to_string(), cause: error.to_string() }
}
