//! The weights of one component: one safetensors file or several shards, read tensor by tensor.
//!
//! Owns finding the files, the index of names and the count of bytes read. Does not own what a
//! name means. Invariant: a tensor's bytes are touched, or brought from elsewhere, only by
//! [`Weights::get`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::header::{self, Entry};
use super::mapping::Mapping;
use super::source::HEADER_SUFFIX;
use super::{CheckpointError, TensorSource, config};

/// Variants looked for, in this order; the plain one first, as diffusers does.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];
/// Bytes of a shard index beyond which it is refused.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Weights of a component: memory-mapped, or brought tensor by tensor.
#[derive(Debug)]
pub struct Weights {
    files: Vec<Holding>,
    index: BTreeMap<String, (usize, Entry)>,
    bytes_read: AtomicU64,
}

/// One weight file.
#[derive(Debug)]
enum Holding {
    Here(Mapping),
    /// Its header is here.
    Elsewhere {
        path: PathBuf,
        origin: Origin,
    },
}

/// Where the weights of a component are, when they are not here.
#[derive(Clone, Debug)]
struct Origin {
    /// The component's folder, relative to the model's.
    component: PathBuf,
    source: Arc<dyn TensorSource>,
}

/// `<stem>.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `<stem>.safetensors`, or the shards of `<stem>.safetensors.index.json`, or else the
    /// `fp16` or `bf16` variant of either, in the folder `component`. Reads headers only.
    ///
    /// # Errors
    /// When none is there, a shard is missing, or a header is invalid or does not fit its file.
    pub fn open(component: &Path, stem: &str) -> Result<Self, CheckpointError> {
        Self::find(component, stem, None)
    }

    /// Opens weights of which the folder `dir` holds the headers alone; each tensor comes from
    /// `source` when it is read. `component` is the folder relative to the model's.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub(super) fn open_from(
        dir: &Path,
        component: &Path,
        stem: &str,
        source: &Arc<dyn TensorSource>,
    ) -> Result<Self, CheckpointError> {
        let origin = Origin { component: component.to_owned(), source: Arc::clone(source) };
        Self::find(dir, stem, Some(&origin))
    }

    fn find(
        component: &Path,
        stem: &str,
        origin: Option<&Origin>,
    ) -> Result<Self, CheckpointError> {
        for variant in VARIANTS {
            let single = component.join(format!("{stem}{variant}.safetensors"));
            if is_there(&single, origin) {
                return Self::from_files(&[single], origin);
            }
            let index = component.join(format!("{stem}.safetensors.index{variant}.json"));
            if index.is_file() {
                return Self::from_index(component, &index, origin);
            }
        }
        let mut expected = format!(
            "{stem}.safetensors or {stem}.safetensors.index.json (or their fp16 or bf16 variant)"
        );
        let has_bin = std::fs::read_dir(component).is_ok_and(|mut dir| {
            dir.any(|file| file.is_ok_and(|f| f.path().extension().is_some_and(|e| e == "bin")))
        });
        if has_bin {
            expected.push_str(
                "; .bin files are not read: save the model again with safe_serialization=True",
            );
        }
        Err(CheckpointError::MissingFile { path: component.to_owned(), expected })
    }

    /// Opens the shards that `index` names and checks that each holds what the index says.
    fn from_index(
        component: &Path,
        index: &Path,
        origin: Option<&Origin>,
    ) -> Result<Self, CheckpointError> {
        let json = config::read_json_bounded(index, INDEX_BYTES_MAX)?;
        let bad = |reason: String| CheckpointError::Json { path: index.to_owned(), reason };
        let map: ShardIndex = serde_json::from_value(json)
            .map_err(|error| bad(format!("expected weight_map: {error}")))?;
        let names: BTreeSet<&String> = map.weight_map.values().collect();
        if let Some(name) =
            names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref()))
        {
            return Err(bad(format!("shard `{name}` is not a plain file name")));
        }
        let paths: Vec<PathBuf> = names.iter().map(|name| component.join(name)).collect();
        if let Some(path) = paths.iter().find(|path| !is_there(path, origin)) {
            let expected = format!("a shard named by {}", index.display());
            return Err(CheckpointError::MissingFile { path: path.clone(), expected });
        }
        let weights = Self::from_files(&paths, origin)?;
        for (tensor, shard) in &map.weight_map {
            let held = weights.index.get(tensor).map(|(file, _)| weights.files[*file].path());
            if held != Some(&component.join(shard)) {
                let reason =
                    format!("tensor `{tensor}` is not in shard {shard}, where the index puts it");
                return Err(bad(reason));
            }
        }
        Ok(weights)
    }

    fn from_files(paths: &[PathBuf], origin: Option<&Origin>) -> Result<Self, CheckpointError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut index = BTreeMap::new();
        for path in paths {
            let (file, entries) = Holding::open(path, origin)?;
            for (name, entry) in entries {
                if index.contains_key(&name) {
                    let reason = format!("tensor `{name}` is in another shard too");
                    return Err(CheckpointError::Header { path: path.clone(), reason });
                }
                index.insert(name, (files.len(), entry));
            }
            files.push(file);
        }
        Ok(Self { files, index, bytes_read: AtomicU64::new(0) })
    }

    /// The tensor `name`, converted from its stored format to `dtype`, on `device`.
    ///
    /// # Errors
    /// When it is missing, has another shape than `shape`, or is stored in a format that is not
    /// read (F64, F32, F16, BF16, I64, U32 and U8 are).
    pub fn get(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, CheckpointError> {
        self.read(name, shape, |bytes, stored| {
            Tensor::from_raw_buffer(bytes, stored, shape, device)?.to_dtype(dtype)
        })
    }

    /// Reads a tensor of `shape` as f32 elements in row-major order.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn get_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        self.read(name, shape, |bytes, stored| {
            if stored == DType::F32 {
                let (elements, _) = bytes.as_chunks();
                return Ok(elements.iter().map(|&element| f32::from_le_bytes(element)).collect());
            }
            let tensor = Tensor::from_raw_buffer(bytes, stored, shape, &Device::Cpu)?;
            tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        })
    }

    /// Makes something of the bytes of a tensor of `shape` and the type they are stored in.
    fn read<T>(
        &self,
        name: &str,
        shape: &[usize],
        make: impl Fn(&[u8], DType) -> candle_core::Result<T>,
    ) -> Result<T, CheckpointError> {
        let (file, entry) = self.expect(name, shape)?;
        let path = file.path();
        let Some(stored) = entry.dtype else {
            return Err(CheckpointError::Dtype {
                path: path.to_owned(),
                tensor: name.to_owned(),
                found: entry.stored.clone(),
            });
        };
        let make = |bytes: &[u8]| {
            make(bytes, stored).map_err(|source| CheckpointError::Tensor {
                path: path.to_owned(),
                tensor: name.to_owned(),
                source: Box::new(source),
            })
        };
        let made = match file {
            Holding::Here(file) => {
                let bytes = file.bytes().get(entry.range.clone()).unwrap_or_default();
                let made = make(bytes)?;
                // It was copied; a partition of gigabytes is not to be in memory twice.
                file.release(entry.range.clone());
                made
            }
            Holding::Elsewhere { origin, .. } => {
                make(origin.bring(path, name, entry.range.clone())?.bytes())?
            }
        };
        self.bytes_read.fetch_add(entry.range.len() as u64, Ordering::Relaxed);
        Ok(made)
    }

    /// Finds `name` and checks its shape.
    fn expect(&self, name: &str, shape: &[usize]) -> Result<(&Holding, &Entry), CheckpointError> {
        let Some((file, entry)) = self.index.get(name) else {
            return Err(CheckpointError::Missing {
                path: self.path().to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
            });
        };
        let file = &self.files[*file];
        if entry.shape != shape {
            return Err(CheckpointError::Misshapen {
                path: file.path().to_owned(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        Ok((file, entry))
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The shape of the tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// Stored bytes of the tensor, if it is there (what [`Weights::get`] would read).
    pub fn stored_bytes(&self, name: &str) -> Option<u64> {
        self.index.get(name).map(|(_, entry)| entry.range.len() as u64)
    }

    /// All names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Stored bytes of the tensors that [`Weights::get`] returned so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// The weight file, or its folder when there are several.
    pub fn path(&self) -> &Path {
        match self.files.as_slice() {
            [only] => only.path(),
            [first, ..] => first.path().parent().unwrap_or(first.path()),
            [] => Path::new(""),
        }
    }

    /// Checks the whole component without reading data: every tensor of `expected` is there in
    /// its shape, and nothing else but names that start with an entry of `ignorable`.
    ///
    /// # Errors
    /// The first tensor that is missing, misshapen or extra.
    pub fn check(
        &self,
        expected: &[(String, Vec<usize>)],
        ignorable: &[&str],
    ) -> Result<(), CheckpointError> {
        let mut known = BTreeSet::new();
        for (name, shape) in expected {
            self.expect(name, shape)?;
            known.insert(name.as_str());
        }
        let extra = self.index.iter().find(|(name, _)| {
            !known.contains(name.as_str())
                && !ignorable.iter().any(|prefix| name.starts_with(prefix))
        });
        match extra {
            None => Ok(()),
            Some((name, (file, entry))) => Err(CheckpointError::Extra {
                path: self.files[*file].path().to_owned(),
                tensor: name.clone(),
                found: entry.shape.clone(),
            }),
        }
    }
}

impl Holding {
    /// Opens a weight file, or the header that stands for one.
    fn open(
        path: &Path,
        origin: Option<&Origin>,
    ) -> Result<(Self, BTreeMap<String, Entry>), CheckpointError> {
        if let (Some(origin), false) = (origin, path.is_file()) {
            let header = Mapping::open(&header_path(path))?;
            let entries = header::parse_alone(path, header.bytes())?;
            return Ok((
                Self::Elsewhere { path: path.to_owned(), origin: origin.clone() },
                entries,
            ));
        }
        let file = Mapping::open(path)?;
        let entries = header::parse(path, file.bytes())?;
        Ok((Self::Here(file), entries))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Here(file) => file.path(),
            Self::Elsewhere { path, .. } => path,
        }
    }
}

impl Origin {
    /// The bytes of one tensor.
    fn bring(
        &self,
        path: &Path,
        tensor: &str,
        range: Range<usize>,
    ) -> Result<Mapping, CheckpointError> {
        let failed = |cause: String| CheckpointError::Fetch {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            cause,
        };
        let file = self.component.join(path.file_name().unwrap_or_default());
        let expected = range.len();
        let brought = Mapping::open(&self.source.bring(&file, range).map_err(failed)?)?;
        match brought.bytes().len() {
            found if found == expected => Ok(brought),
            found => Err(failed(format!("{found} bytes came, {expected} were asked for"))),
        }
    }
}

fn is_there(path: &Path, origin: Option<&Origin>) -> bool {
    path.is_file() || (origin.is_some() && header_path(path).is_file())
}

fn header_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(HEADER_SUFFIX);
    PathBuf::from(name)
}
