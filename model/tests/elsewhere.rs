//! A pipeline whose weights are not in its folder: each tensor is brought when it is read, and no
//! other; what is loaded is the same to the bit.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device};
use ditmesh_model::checkpoint::{Checkpoint, HEADER_SUFFIX, TensorSource, header_bytes};
use ditmesh_model::pipeline::{LoadedParts, Parts, describe};
use ditmesh_model::spec::ModelId;

use crate::fixture;

const PIPELINE: &str = "pipelines/sigma_8x8";

/// Brings tensors out of a whole folder.
#[derive(Debug)]
struct Whole {
    from: PathBuf,
    to: tempfile::TempDir,
    id: ModelId,
    brought: Mutex<Vec<(PathBuf, Range<usize>)>>,
}

impl TensorSource for Whole {
    fn model_id(&self) -> ModelId {
        self.id
    }

    fn bring(&self, file: &Path, range: Range<usize>) -> Result<PathBuf, String> {
        let mut brought = self.brought.lock().map_err(|error| error.to_string())?;
        let whole = fs::read(self.from.join(file)).map_err(|error| error.to_string())?;
        let path = self.to.path().join(brought.len().to_string());
        fs::write(&path, &whole[range.clone()]).map_err(|error| error.to_string())?;
        brought.push((file.to_owned(), range));
        Ok(path)
    }
}

impl Whole {
    fn all(&self) -> Result<Vec<(PathBuf, Range<usize>)>, String> {
        Ok(self.brought.lock().map_err(|error| error.to_string())?.clone())
    }
}

/// A copy of the pipeline with headers in place of weights.
fn without_weights(from: &Path) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let to = tempfile::tempdir()?;
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        fs::create_dir_all(to.path().join(&folder))?;
        for entry in fs::read_dir(from.join(&folder))? {
            let name = folder.join(entry?.file_name());
            let source = from.join(&name);
            if source.is_dir() {
                folders.push(name);
            } else if name.extension().is_some_and(|extension| extension == "safetensors") {
                let whole = fs::read(&source)?;
                let length = header_bytes(whole[..8].try_into()?).ok_or("a long header")?;
                let header = format!("{}{HEADER_SUFFIX}", to.path().join(&name).display());
                fs::write(header, &whole[..length as usize])?;
            } else {
                fs::copy(&source, to.path().join(&name))?;
            }
        }
    }
    Ok(to)
}

#[test]
fn only_what_is_read_is_brought_and_it_is_the_same() -> Result<(), Box<dyn Error>> {
    let from = fixture::path(PIPELINE);
    let folder = without_weights(&from)?;
    let id = describe(&from, DType::F32)?.id;
    let source = Arc::new(Whole {
        from: from.clone(),
        to: tempfile::tempdir()?,
        id,
        brought: Mutex::default(),
    });
    assert!(LoadedParts::load(folder.path(), DType::F32, &parts(1), &Device::Cpu).is_err());
    let checkpoint = Checkpoint::open_from(folder.path(), source.clone())?;
    assert_eq!(checkpoint.model_id()?, id, "not the digest of what is there");
    let far = LoadedParts::load_from(checkpoint, DType::F32, &parts(1), &Device::Cpu)?;
    let near = LoadedParts::load(&from, DType::F32, &parts(1), &Device::Cpu)?;
    assert_eq!(far.bytes_read(), near.bytes_read());
    let so_far = source.all()?;
    let bytes: usize = so_far.iter().map(|(_, range)| range.len()).sum();
    assert_eq!(bytes as u64, far.bytes_read());
    assert!(so_far.iter().all(|(file, _)| file.starts_with("transformer")), "{so_far:?}");
    let whole = fs::metadata(from.join("transformer/diffusion_pytorch_model.safetensors"))?.len();
    assert!((bytes as u64) < whole, "{bytes} of {whole}");
    // What a run needs later comes later.
    assert_eq!(far.vae()?.bytes_read(), near.vae()?.bytes_read());
    let later = source.all()?;
    assert!(later[so_far.len()..].iter().all(|(file, _)| file.starts_with("vae")));
    Ok(())
}

#[test]
fn what_cannot_be_brought_is_named() -> Result<(), Box<dyn Error>> {
    #[derive(Debug)]
    struct Nobody;
    impl TensorSource for Nobody {
        fn model_id(&self) -> ModelId {
            ModelId(1)
        }
        fn bring(&self, _: &Path, _: Range<usize>) -> Result<PathBuf, String> {
            Err("nobody has it".into())
        }
    }
    let folder = without_weights(&fixture::path(PIPELINE))?;
    let checkpoint = Checkpoint::open_from(folder.path(), Arc::new(Nobody))?;
    let loaded = LoadedParts::load_from(checkpoint, DType::F32, &parts(1), &Device::Cpu);
    let error = loaded.err().ok_or("loaded from nobody")?.to_string();
    for part in
        ["diffusion_pytorch_model.safetensors", "tensor `", "not on this host", "nobody has it"]
    {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    Ok(())
}

fn parts(blocks: usize) -> Parts {
    Parts { blocks: 0..blocks, text_encoder: None, vae: false }
}
