//! Rows of 8-bit codes behind a scale: element `i` of a row is `scale * code[i]`.
//!
//! Owns the choice of the scale: the largest magnitude of a row over 127, so that codes are within
//! -127..=127 and the error is at most half a scale. The loops have no branches, so that compilers
//! make vector code of them.

use crate::frame::ROW_SCALE_BYTES;

/// Largest code.
const CODE_MAX: f32 = 127.0;
/// Rows with no magnitude above this are zeros: the inverse of their scale is no normal number.
const SMALLEST: f32 = f32::from_bits(0x0d80_0000); // 2^-100
/// Added to a number below 2^22, leaves it rounded to an integer in the lower bits.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// Scale of a row whose largest magnitude is `most`, and its inverse.
fn scale(most: f32) -> (f32, f32) {
    if !most.is_finite() {
        return (f32::NAN, 0.0);
    }
    if most < SMALLEST {
        return (0.0, 0.0);
    }
    let scale = most / CODE_MAX;
    // The largest floats must not come back as infinity.
    let scale = if (scale * CODE_MAX).is_finite() { scale } else { scale.next_down() };
    (scale, CODE_MAX / most)
}

pub(super) fn write(values: &[f32], record: &mut [u8]) {
    // Magnitudes compare as integers, and what is not finite is above all that is.
    let magnitude = |value: &f32| (value.to_bits() & 0x7fff_ffff) as i32;
    let most = values.iter().fold(0, |most: i32, value| most.max(magnitude(value)));
    let (scale, inverse) = scale(f32::from_bits(most as u32));
    let Some((head, codes)) = record.split_first_chunk_mut::<ROW_SCALE_BYTES>() else { return };
    *head = scale.to_le_bytes();
    if !scale.is_finite() {
        return codes.fill(0);
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse + ROUNDER).to_bits() as u8;
    }
}

pub(super) fn read(record: &[u8], values: &mut [f32]) {
    let Some((head, codes)) = record.split_first_chunk::<ROW_SCALE_BYTES>() else { return };
    let scale = f32::from_le_bytes(*head);
    for (value, code) in values.iter_mut().zip(codes) {
        *value = f32::from(code.cast_signed()) * scale;
    }
}
