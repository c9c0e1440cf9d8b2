//! Why a checkpoint could not be opened or read.
//!
//! Owns the error type of everything that comes from a model folder. Every message names the file,
//! the tensor or key, what was expected and what was found; where a user can act it says how.

use std::path::PathBuf;

use thiserror::Error;

/// Why a model folder, or a part of it, could not be loaded.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The operating system refused a file.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that must be there is not.
    #[error("{} is not there; expected {expected}", path.display())]
    MissingFile {
        /// The folder or file looked for.
        path: PathBuf,
        /// What was looked for, in words.
        expected: String,
    },
    /// A file is larger than anything of its kind may be.
    #[error(
        "{} holds {found} bytes, but at most {limit} bytes are read of such a file",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// The checkpoint lacks a tensor that the configuration asks for.
    #[error(
        "{}: tensor `{tensor}` is missing; expected shape {expected:?}; is the file \
         of the same model as config.json?",
        path.display()
    )]
    Missing {
        /// The weight file or index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape expected.
        expected: Vec<usize>,
    },
    /// The checkpoint holds a tensor that the configuration has no place for.
    #[error(
        "{}: tensor `{tensor}` of shape {found:?} is not part of the model \
         that config.json describes; remove it or correct the configuration",
        path.display()
    )]
    Extra {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error(
        "{}: tensor `{tensor}` has shape {found:?}, expected {expected:?} from config.json",
        path.display()
    )]
    Misshapen {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape expected.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A weight file ends before its last tensor does.
    #[error(
        "{}: file is truncated: its header describes {expected} bytes and \
         it holds {found}; download it again",
        path.display()
    )]
    Truncated {
        /// The weight file.
        path: PathBuf,
        /// Bytes the header asks for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The header of a safetensors file makes no sense.
    #[error("{}: not a valid safetensors header: {reason}", path.display())]
    Header {
        /// The weight file.
        path: PathBuf,
        /// What is wrong, with the numbers that disagree.
        reason: String,
    },
    /// A file is not the JSON it should be.
    #[error("{}: broken json: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's message with line and column.
        reason: String,
    },
    /// A configuration value that this program does not support, or that cannot be.
    #[error("{}: `{key}` is {found}, expected {expected}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A configuration key that nothing knows.
    #[error("{}: unknown key `{key}`; the nearest known key is `{nearest}`", path.display())]
    UnknownKey {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known key that looks most like it.
        nearest: String,
    },
    /// A tensor is stored in a number format that this program does not read.
    #[error(
        "{}: tensor `{tensor}` is stored as {found}; expected one of \
         F64, F32, F16, BF16, I64, U32, U8",
        path.display()
    )]
    Dtype {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format in the file.
        found: String,
    },
    /// A tokenizer file that cannot be used.
    #[error("{}: not a usable tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that this host does not hold could not be had from elsewhere.
    #[error("{}: tensor `{tensor}` is not on this host: {cause}", path.display())]
    Fetch {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The source's words.
        cause: String,
    },
    /// The tensor backend could not hold a tensor.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Tensor {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The backend's error.
        source: Box<candle_core::Error>,
    },
}
