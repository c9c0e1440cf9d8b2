//! Floats as fewer bytes: what a payload of [`Dtype::Bf16`], [`Dtype::F16`] or [`Dtype::I8Rows`]
//! holds of an f32 tensor, and the change to an earlier one.
//!
//! Owns the arithmetic of both directions, on slices of whole rows (a row is the innermost
//! dimension). Does not know shapes, messages or why anybody wants fewer bytes. Pure.
//!
//! Invariants: a row does not depend on the others, so any run of whole rows can be written or read
//! alone; writing the floats that were read gives the same codes; two ends that hold the same
//! floats and apply the same payload hold the same floats again, to the bit, because both do the
//! same operations in the same order.
//!
//! Of numbers that are not finite: the 16-bit types keep them, and a finite number beyond a type's
//! range becomes the nearest one inside. A row of 8-bit codes that has one comes out as NaN from
//! end to end, so that it cannot pass for a picture.

mod floats;
mod rows;
#[cfg(test)]
mod tests;

use crate::error::TransportError;
use crate::frame::Dtype;

/// Writes `values`, whole rows of `row` elements, as a payload of `dtype`.
///
/// # Errors
/// [`TransportError::Mismatch`] when `payload` has not exactly their length or `values` are no
/// whole rows, [`TransportError::Malformed`] for an element type that floats do not travel in.
pub fn encode(
    dtype: Dtype,
    row: usize,
    values: &[f32],
    payload: &mut [u8],
) -> Result<(), TransportError> {
    let write = writer(dtype)?;
    let bytes = check(dtype, row, values.len(), payload.len())?;
    for (values, record) in values.chunks_exact(row).zip(payload.chunks_exact_mut(bytes)) {
        write(values, record);
    }
    Ok(())
}

/// Reads a payload of `dtype` into `values`, whole rows of `row` elements.
///
/// # Errors
/// As [`encode`].
pub fn decode(
    dtype: Dtype,
    row: usize,
    payload: &[u8],
    values: &mut [f32],
) -> Result<(), TransportError> {
    let read = reader(dtype)?;
    let bytes = check(dtype, row, values.len(), payload.len())?;
    for (values, record) in values.chunks_exact_mut(row).zip(payload.chunks_exact(bytes)) {
        read(record, values);
    }
    Ok(())
}

/// Writes the change from `held` to `values`, and moves `held` to where it takes a receiver that
/// holds the same: near `values`, and by its own error away from them, which the next change
/// makes good.
///
/// # Errors
/// As [`encode`], and when `held` has another length than `values`.
pub fn encode_change(
    dtype: Dtype,
    row: usize,
    values: &[f32],
    held: &mut [f32],
    payload: &mut [u8],
) -> Result<(), TransportError> {
    let (write, read) = (writer(dtype)?, reader(dtype)?);
    let bytes = check(dtype, row, values.len(), payload.len())?;
    same_len(values.len(), held.len())?;
    let mut change = vec![0.0; row];
    let rows = values.chunks_exact(row).zip(held.chunks_exact_mut(row));
    for ((values, held), record) in rows.zip(payload.chunks_exact_mut(bytes)) {
        change.iter_mut().zip(values.iter().zip(&*held)).for_each(|(d, (x, h))| *d = x - h);
        write(&change, record);
        read(record, &mut change);
        held.iter_mut().zip(&change).for_each(|(h, d)| *h += d);
    }
    Ok(())
}

/// Moves `held` by a payload that [`encode_change`] wrote.
///
/// # Errors
/// As [`encode`].
pub fn decode_change(
    dtype: Dtype,
    row: usize,
    payload: &[u8],
    held: &mut [f32],
) -> Result<(), TransportError> {
    let read = reader(dtype)?;
    let bytes = check(dtype, row, held.len(), payload.len())?;
    let mut change = vec![0.0; row];
    for (held, record) in held.chunks_exact_mut(row).zip(payload.chunks_exact(bytes)) {
        read(record, &mut change);
        held.iter_mut().zip(&change).for_each(|(h, d)| *h += d);
    }
    Ok(())
}

/// The body of the fuzz target `codec` and of its test: no payload may panic its reader, whatever
/// its description says. The first two bytes are the element type and the row.
pub fn decode_anything(bytes: &[u8]) {
    let [dtype, row, payload @ ..] = bytes else { return };
    let Some(dtype) = Dtype::from_code(*dtype) else { return };
    let row = usize::from(*row);
    let rows = payload.len().checked_div(dtype.row_bytes(row)).unwrap_or(0);
    let mut values = vec![0.0; rows * row];
    let read = decode(dtype, row, payload, &mut values);
    let mut held = vec![1.0; rows * row];
    let changed = decode_change(dtype, row, payload, &mut held);
    assert_eq!(read.is_ok(), changed.is_ok());
    if read.is_ok() {
        let mut again = vec![0; payload.len()];
        assert!(encode(dtype, row, &values, &mut again).is_ok(), "what was read can be written");
    }
}

type WriteRow = fn(&[f32], &mut [u8]);
type ReadRow = fn(&[u8], &mut [f32]);

fn writer(dtype: Dtype) -> Result<WriteRow, TransportError> {
    Ok(match dtype {
        Dtype::F32 => floats::write_f32,
        Dtype::F16 => floats::write_f16,
        Dtype::Bf16 => floats::write_bf16,
        Dtype::I8Rows => rows::write,
        other => return Err(no_floats(other)),
    })
}

fn reader(dtype: Dtype) -> Result<ReadRow, TransportError> {
    Ok(match dtype {
        Dtype::F32 => floats::read_f32,
        Dtype::F16 => floats::read_f16,
        Dtype::Bf16 => floats::read_bf16,
        Dtype::I8Rows => rows::read,
        other => return Err(no_floats(other)),
    })
}

fn no_floats(dtype: Dtype) -> TransportError {
    TransportError::malformed(format!("floats do not travel as {dtype:?}"))
}

/// Bytes of a row, once all lengths agree.
fn check(
    dtype: Dtype,
    row: usize,
    elements: usize,
    payload: usize,
) -> Result<usize, TransportError> {
    if row == 0 || !elements.is_multiple_of(row) {
        return Err(TransportError::mismatch("elements and rows", elements, row));
    }
    let bytes = dtype.row_bytes(row);
    let expected = elements / row * bytes;
    if payload == expected {
        return Ok(bytes);
    }
    Err(TransportError::mismatch("payload bytes and rows", payload, expected))
}

fn same_len(values: usize, held: usize) -> Result<(), TransportError> {
    if values == held {
        return Ok(());
    }
    Err(TransportError::mismatch("elements and those held", values, held))
}
