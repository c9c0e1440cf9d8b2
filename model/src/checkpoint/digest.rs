//! The digest that names a model: FNV-1a over small files, headers and samples of large ones.
//!
//! Not cryptographic: it tells models apart that people mix up, not ones made to collide.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::CheckpointError;

/// Files up to this size are digested whole.
const WHOLE_BYTES_MAX: u64 = 64 << 10;
/// Number of samples taken of a larger file, evenly spread, the first and last bytes among them.
const SAMPLES: u64 = 64;
/// Bytes of one sample.
const SAMPLE_BYTES: u64 = 256;
/// Extensions of the files that belong to a model.
const EXTENSIONS: [&str; 3] = ["json", "safetensors", "model"];

/// A running 64-bit FNV-1a.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Takes in the model files directly in `dir`, in the order of their names.
    pub(super) fn folder(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
        let mut paths = Vec::new();
        for file in std::fs::read_dir(dir).map_err(io)? {
            let path = file.map_err(io)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().try_for_each(|path| self.file(path))
    }

    /// Takes in name, size and content (or samples of it) of one file.
    fn file(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        self.bytes(path.file_name().unwrap_or_default().as_encoded_bytes());
        self.bytes(&size.to_le_bytes());
        let mut buffer = Vec::new();
        if size <= WHOLE_BYTES_MAX {
            file.take(WHOLE_BYTES_MAX).read_to_end(&mut buffer).map_err(io)?;
            self.bytes(&buffer);
            return Ok(());
        }
        for sample in 0..SAMPLES {
            let at = (size - SAMPLE_BYTES) / (SAMPLES - 1) * sample;
            file.seek(SeekFrom::Start(at)).map_err(io)?;
            buffer.clear();
            file.by_ref().take(SAMPLE_BYTES).read_to_end(&mut buffer).map_err(io)?;
            self.bytes(&buffer);
        }
        Ok(())
    }

    /// The digest.
    pub(super) fn finish(self) -> u64 {
        self.0
    }
}
