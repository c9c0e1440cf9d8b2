//! From little-endian bytes of a stored number format to f32.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// The numbers of a tensor of floats; `None` for any other format.
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F64 => each(bytes, |value| f64::from_le_bytes(value) as f32),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |value| f16::from_le_bytes(value).to_f32()),
        Dtype::BF16 => each(bytes, |value| bf16::from_le_bytes(value).to_f32()),
        _ => return None,
    })
}

/// The numbers of a mask of any bool, integer or float format; `None` for any other.
pub(super) fn mask(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::BOOL => each(bytes, |[value]| if value == 0 { 0.0 } else { 1.0 }),
        Dtype::U8 => each(bytes, |value| f32::from(u8::from_le_bytes(value))),
        Dtype::I8 => each(bytes, |value| f32::from(i8::from_le_bytes(value))),
        Dtype::U16 => each(bytes, |value| f32::from(u16::from_le_bytes(value))),
        Dtype::I16 => each(bytes, |value| f32::from(i16::from_le_bytes(value))),
        Dtype::U32 => each(bytes, |value| u32::from_le_bytes(value) as f32),
        Dtype::I32 => each(bytes, |value| i32::from_le_bytes(value) as f32),
        Dtype::U64 => each(bytes, |value| u64::from_le_bytes(value) as f32),
        Dtype::I64 => each(bytes, |value| i64::from_le_bytes(value) as f32),
        _ => return floats(dtype, bytes),
    })
}

fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|chunk| read(*chunk)).collect()
}
