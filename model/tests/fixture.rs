//! Reading fixtures, and how two results are compared.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// What a test returns.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// A file or folder below `fixtures/`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The tensors of a safetensors file below `fixtures/`.
pub(crate) struct Tensors(HashMap<String, Tensor>);

impl Tensors {
    pub(crate) fn load(name: &str) -> Result<Self, Box<dyn Error>> {
        Ok(Self(candle_core::safetensors::load(path(name), &Device::Cpu)?))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Tensor, Box<dyn Error>> {
        Ok(self.0.get(name).ok_or_else(|| format!("fixture lacks {name}"))?.clone())
    }
}

/// A JSON file below `fixtures/`.
pub(crate) fn json(name: &str) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_slice(&std::fs::read(path(name))?)?)
}

/// `||a - b|| / ||b||` in f64 over the whole tensors.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> Result<f64, Box<dyn Error>> {
    if a.dims() != b.dims() {
        return Err(format!("shapes differ: {:?} and {:?}", a.dims(), b.dims()).into());
    }
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (flat(a)?, flat(b)?);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    Ok(gap / norm(&mut b.iter().copied()))
}

/// Prints how far `a` is from `b`, and fails when that is more than `limit`.
pub(crate) fn assert_close(what: &str, a: &Tensor, b: &Tensor, limit: f64) -> Outcome {
    let error = relative_error(a, b)?;
    eprintln!("{what}: relative error {error:.1e}");
    // Not `error > limit`: that would accept a NaN.
    if error <= limit {
        Ok(())
    } else {
        Err(format!("{what}: {error:.1e} is above {limit:.0e}").into())
    }
}

/// Copies a folder, so that a test can damage the copy.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
