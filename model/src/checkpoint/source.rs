//! Where tensors come from that a folder does not hold: a seam for whoever can fetch them.
//!
//! A folder that was filled from elsewhere holds every configuration, and of each weight file
//! `NAME.safetensors` its header alone, as `NAME.safetensors.header`. Owns that convention. Does
//! not own how bytes travel or where they are kept.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::spec::ModelId;

/// What is appended to a weight file's name for its header alone.
pub const HEADER_SUFFIX: &str = ".header";

/// Brings tensors of one model.
pub trait TensorSource: Send + Sync + fmt::Debug {
    /// The model whose copy this is. Its digest cannot be taken of a part of it.
    fn model_id(&self) -> ModelId;

    /// A file of this host that holds exactly the bytes `range` of the model's weight file `file`
    /// (relative to the model's folder). Blocks, but never without end.
    ///
    /// # Errors
    /// In words: nobody has them, or what came was not them.
    fn bring(&self, file: &Path, range: Range<usize>) -> Result<PathBuf, String>;
}
