//! The header of a safetensors file: which tensor lies where.
//!
//! Owns parsing and checking; reads no tensor data. Invariants of what it returns: every range
//! lies inside the file, no two overlap, and each is exactly as long as shape and dtype say.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use serde::Deserialize;

use super::CheckpointError;

/// Bytes of a header beyond which a file is refused (the largest published ones are below 1 MiB).
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the length field in front of the header.
const LENGTH_BYTES: usize = 8;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Number format as candle names it, if it has it.
    pub(super) dtype: Option<DType>,
    /// Number format as the file names it.
    pub(super) stored: String,
    /// Shape.
    pub(super) shape: Vec<usize>,
    /// Bytes in the file.
    pub(super) range: Range<usize>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// How many bytes the header of a weight file takes, its length field included, by the file's first
/// eight bytes; `None` when it is longer than any header is.
pub fn header_bytes(length: [u8; LENGTH_BYTES]) -> Option<u64> {
    let length = u64::from_le_bytes(length);
    (length <= HEADER_BYTES_MAX).then_some(LENGTH_BYTES as u64 + length)
}

/// Reads and checks a header without its file.
pub(super) fn parse_alone(
    path: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    parse_of(path, bytes, None)
}

/// The length field and the header text of a file, as slices of `bytes`.
fn raw<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], CheckpointError> {
    let bad = |reason: String| CheckpointError::Header { path: path.to_owned(), reason };
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(format!(
            "the file holds {} bytes, a header needs at least {LENGTH_BYTES}",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(bad(format!(
            "it claims to be {length} bytes long, more than the \
             {HEADER_BYTES_MAX} that are accepted"
        )));
    }
    bytes.get(..LENGTH_BYTES + length as usize).ok_or_else(|| CheckpointError::Truncated {
        path: path.to_owned(),
        expected: LENGTH_BYTES as u64 + length,
        found: bytes.len() as u64,
    })
}

/// Reads and checks the header of the file `bytes`.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    parse_of(path, bytes, Some(bytes.len()))
}

/// Without the file's length the tensors end where the last one does.
fn parse_of(
    path: &Path,
    bytes: &[u8],
    file_bytes: Option<usize>,
) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let bad = |reason: String| CheckpointError::Header { path: path.to_owned(), reason };
    let header = raw(path, bytes)?;
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&header[LENGTH_BYTES..])
            .map_err(|error| bad(format!("it is not a json object: {error}")))?;
    let mut entries = BTreeMap::new();
    let mut end = header.len();
    for (name, value) in json {
        if name == "__metadata__" {
            continue;
        }
        let raw: RawEntry = serde_json::from_value(value)
            .map_err(|error| bad(format!("tensor `{name}`: {error}")))?;
        let entry =
            entry(&raw, header.len()).map_err(|why| bad(format!("tensor `{name}`: {why}")))?;
        end = end.max(entry.range.end);
        entries.insert(name, entry);
    }
    let file_bytes = file_bytes.unwrap_or(end);
    if end > file_bytes {
        return Err(CheckpointError::Truncated {
            path: path.to_owned(),
            expected: end as u64,
            found: file_bytes as u64,
        });
    }
    check_tiling(&entries, header.len(), file_bytes).map_err(bad)?;
    Ok(entries)
}

/// Checks one tensor's numbers against each other and moves its range to file offsets.
fn entry(raw: &RawEntry, data_start: usize) -> Result<Entry, String> {
    let (start, end) = raw.data_offsets;
    let Some(element_bits) = element_bits(&raw.dtype) else {
        return Err(format!("unknown dtype {}", raw.dtype));
    };
    let bytes = raw
        .shape
        .iter()
        .try_fold(element_bits, |product, &size| product.checked_mul(size))
        .map(|bits| bits.div_ceil(8));
    let (Some(bytes), Some(file_start), Some(file_end)) =
        (bytes, data_start.checked_add(start), data_start.checked_add(end))
    else {
        return Err(format!("shape {:?} or offsets {start}..{end} overflow", raw.shape));
    };
    if end.checked_sub(start) != Some(bytes) {
        return Err(format!(
            "offsets {start}..{end} do not hold the {bytes} bytes of shape {:?} in {}",
            raw.shape, raw.dtype
        ));
    }
    Ok(Entry {
        dtype: candle_dtype(&raw.dtype),
        stored: raw.dtype.clone(),
        shape: raw.shape.clone(),
        range: file_start..file_end,
    })
}

/// Tensors must cover the data exactly: no overlap, no gap, nothing after the last.
fn check_tiling(
    entries: &BTreeMap<String, Entry>,
    data_start: usize,
    file_bytes: usize,
) -> Result<(), String> {
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut at = data_start;
    for (name, entry) in order {
        let (start, end) = (entry.range.start, entry.range.end);
        if start < at {
            return Err(format!(
                "tensor `{name}` at data offset {} overlaps the one before it, which ends at {}",
                start - data_start,
                at - data_start
            ));
        }
        if start > at {
            return Err(format!(
                "nothing describes data offsets {}..{} in front of tensor `{name}`",
                at - data_start,
                start - data_start
            ));
        }
        at = end;
    }
    match file_bytes - at {
        0 => Ok(()),
        extra => Err(format!("{extra} bytes follow the last tensor, expected none")),
    }
}

/// Bits of one element of a stored dtype.
fn element_bits(name: &str) -> Option<usize> {
    Some(match name {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "F4" => 4,
        _ => return None,
    })
}

/// The dtypes that are read.
fn candle_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "U32" => DType::U32,
        "U8" => DType::U8,
        _ => return None,
    })
}
