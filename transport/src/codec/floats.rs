//! Rows of 16-bit floats, and of 32-bit ones, in little-endian order.
//!
//! Owns rounding (to nearest, ties to even) and what becomes of numbers out of range. The loops
//! have no branches, so that compilers make vector code of them.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Magnitude bits of a float.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Bits of infinity.
const INFINITE: u32 = 0x7f80_0000;
/// Bits of 65,504, the largest half, as a float.
const F16_MOST: u32 = 0x477f_e000;
/// Elements that are converted at a time.
const BLOCK_ELEMENTS: usize = 64;

pub(super) fn write_f32(values: &[f32], record: &mut [u8]) {
    let (record, _) = record.as_chunks_mut::<4>();
    record.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_le_bytes());
}

pub(super) fn read_f32(record: &[u8], values: &mut [f32]) {
    let (record, _) = record.as_chunks::<4>();
    values.iter_mut().zip(record).for_each(|(value, from)| *value = f32::from_le_bytes(*from));
}

pub(super) fn write_bf16(values: &[f32], record: &mut [u8]) {
    let (record, _) = record.as_chunks_mut::<2>();
    record.iter_mut().zip(values).for_each(|(to, value)| *to = to_bf16(*value).to_le_bytes());
}

pub(super) fn read_bf16(record: &[u8], values: &mut [f32]) {
    let (record, _) = record.as_chunks::<2>();
    for (value, from) in values.iter_mut().zip(record) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
    }
}

/// The upper half of a float, rounded.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A finite number does not round to infinity, NaN does not round to anything else.
    let beyond = u32::from(magnitude < INFINITE && rounded & 0x7fff == 0x7f80);
    let kept = bits >> 16 | u32::from(magnitude > INFINITE) << 6;
    (if magnitude < INFINITE { rounded - beyond } else { kept }) as u16
}

pub(super) fn write_f16(values: &[f32], record: &mut [u8]) {
    let mut halves = [f16::ZERO; BLOCK_ELEMENTS];
    let mut inside = [0.0; BLOCK_ELEMENTS];
    let records = record.chunks_mut(2 * BLOCK_ELEMENTS);
    for (values, record) in values.chunks(BLOCK_ELEMENTS).zip(records) {
        let (halves, inside) = (&mut halves[..values.len()], &mut inside[..values.len()]);
        for (inside, &value) in inside.iter_mut().zip(values) {
            let (sign, magnitude) = (value.to_bits() & !MAGNITUDE, value.to_bits() & MAGNITUDE);
            let limited = magnitude.min(F16_MOST);
            *inside = f32::from_bits(sign | if magnitude < INFINITE { limited } else { magnitude });
        }
        halves.convert_from_f32_slice(inside);
        let (record, _) = record.as_chunks_mut::<2>();
        record.iter_mut().zip(&*halves).for_each(|(to, half)| *to = half.to_le_bytes());
    }
}

pub(super) fn read_f16(record: &[u8], values: &mut [f32]) {
    let mut halves = [f16::ZERO; BLOCK_ELEMENTS];
    let records = record.chunks(2 * BLOCK_ELEMENTS);
    for (values, record) in values.chunks_mut(BLOCK_ELEMENTS).zip(records) {
        let halves = &mut halves[..values.len()];
        let (record, _) = record.as_chunks::<2>();
        halves.iter_mut().zip(record).for_each(|(half, from)| *half = f16::from_le_bytes(*from));
        halves.convert_to_f32_slice(values);
    }
}
