//! The model that ships with the project: its files are part of the binary.
//!
//! Owns the list of files, where they are unpacked to, and that what lies there is what was
//! compiled in. Does not own loading: the folder is a diffusers pipeline like any other.
//! Invariants: each file appears whole or not at all (temporary file and rename), so any number of
//! processes may unpack at once; a file that is missing or altered is written again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the model, first part of its folder's name.
pub const NAME: &str = "built-in";

/// Bytes compared at a time.
const COMPARE_BYTES: usize = 64 << 10;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../builtin/", $path)))),*]
    };
}

/// Every file of the model: path in its folder, content.
const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The folder of the unpacked model, below the user's cache folder; unpacks it when needed.
///
/// # Errors
/// When there is no cache folder or it cannot be written.
pub fn folder() -> io::Result<PathBuf> {
    unpack(&crate::cache::root()?)
}

/// Writes the model to `<cache_root>/ditmesh/models/built-in-<digest>`, as far as it is not there
/// already, and returns that folder.
///
/// # Errors
/// When a file cannot be written; the message names it.
pub fn unpack(cache_root: &Path) -> io::Result<PathBuf> {
    let folder = cache_root.join("ditmesh/models").join(format!("{NAME}-{:016x}", digest(FILES)));
    unpack_files(FILES, &folder)?;
    Ok(folder)
}

fn unpack_files(files: &[(&str, &[u8])], folder: &Path) -> io::Result<()> {
    for (name, content) in files {
        let path = folder.join(name);
        if !holds(&path, content) {
            write(&path, content).map_err(|error| {
                let message =
                    format!("cannot unpack the built-in model to {}: {error}", path.display());
                io::Error::new(error.kind(), message)
            })?;
        }
    }
    Ok(())
}

/// Whether the file `path` is there with exactly this content.
fn holds(path: &Path, content: &[u8]) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    if !file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == content.len() as u64) {
        return false;
    }
    let mut buffer = vec![0; COMPARE_BYTES.min(content.len())];
    content.chunks(COMPARE_BYTES).all(|expected| {
        let found = &mut buffer[..expected.len()];
        file.read_exact(found).is_ok() && found == expected
    })
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{:?}.tmp", std::process::id(), std::thread::current().id()));
    let temporary = PathBuf::from(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// 64-bit FNV-1a over names and content.
fn digest(files: &[(&str, &[u8])]) -> u64 {
    let bytes =
        files.iter().flat_map(|(name, content)| name.bytes().chain(content.iter().copied()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |digest: u64, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SAMPLE: &[(&str, &[u8])] = &[("model_index.json", b"{}"), ("vae/config.json", b"[1, 2]")];

    fn content(folder: &Path) -> Vec<Vec<u8>> {
        SAMPLE.iter().map(|(name, _)| fs::read(folder.join(name)).unwrap()).collect()
    }

    #[test]
    fn what_is_missing_or_altered_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        unpack_files(SAMPLE, &folder).unwrap();
        let expected: Vec<_> = SAMPLE.iter().map(|(_, content)| content.to_vec()).collect();
        assert_eq!(content(&folder), expected);
        fs::write(folder.join("vae/config.json"), b"[1, 3]").unwrap();
        fs::remove_file(folder.join("model_index.json")).unwrap();
        unpack_files(SAMPLE, &folder).unwrap();
        assert_eq!(content(&folder), expected);
        assert_eq!(fs::read_dir(folder.join("vae")).unwrap().count(), 1, "a temporary file stayed");
    }

    #[test]
    fn many_may_unpack_at_once() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| unpack_files(SAMPLE, root.path()).unwrap());
            }
        });
        assert!(SAMPLE.iter().all(|(name, content)| holds(&root.path().join(name), content)));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = unpack_files(SAMPLE, &file.join("x")).unwrap_err();
        assert!(error.to_string().contains("file/x/model_index.json"), "{error}");
    }

    #[test]
    fn the_shipped_model_unpacks_to_a_pipeline_folder() {
        let root = tempfile::tempdir().unwrap();
        let folder = unpack(root.path()).unwrap();
        crate::checkpoint::Checkpoint::open(&folder).unwrap();
        assert_eq!(unpack(root.path()).unwrap(), folder);
        let size: usize = FILES.iter().map(|(_, content)| content.len()).sum();
        assert!(size <= 17 << 20, "the built-in model holds {size} bytes");
    }
}
