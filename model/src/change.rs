//! How much values change from one time to the next, as two sums that can be added up.
//!
//! Owns the arithmetic on host memory, in f64 beyond a few values at a time. Does not own what is
//! compared or what follows from it: [`crate::kv_cache`] measures keys and values with it (how
//! stale PipeFusion's patches are), [`crate::step_cache`] the residual of the first block.

use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::error::ModelError;

/// Values summed in f32, lane by lane, before they go to the f64 sum.
const CHUNK: usize = 64;
/// Lanes of a chunk.
const LANES: usize = 8;

/// Sums over some values: of what changed, and of what was there before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Sum of `|new - old|` or of `(new - old)^2`.
    pub difference: f64,
    /// Sum of `|old|` or of `old^2`.
    pub reference: f64,
}

impl Change {
    /// Sums of squares of two arrays of one length.
    pub fn of_squares(new: &[f32], old: &[f32]) -> Self {
        sums(new, old, |x| x * x)
    }

    /// Sums of absolute values of two tensors of one shape, f32, in any memory.
    ///
    /// # Errors
    /// When shapes or types disagree.
    pub fn of_magnitudes(new: &Tensor, old: &Tensor) -> Result<Self, ModelError> {
        if new.dims() != old.dims() {
            return Err(ModelError::Invalid(format!(
                "a change between shapes {:?} and {:?}",
                old.dims(),
                new.dims()
            )));
        }
        let (new, old) = (new.to_device(&Device::Cpu)?, old.to_device(&Device::Cpu)?);
        on_host(&new.contiguous()?, |new| {
            on_host(&old.contiguous()?, |old| Ok(sums(new, old, f32::abs)))
        })
    }

    /// Adds the sums of other values.
    pub fn add(&mut self, other: Self) {
        self.difference += other.difference;
        self.reference += other.reference;
    }

    /// `difference / reference`; 0 where nothing is and nothing was.
    pub fn ratio(self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { self.difference / self.reference }
    }
}

/// Calls `work` with the values of a contiguous f32 tensor in host memory.
pub(crate) fn on_host<T>(
    tensor: &Tensor,
    work: impl FnOnce(&[f32]) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            work(values.get(start..end).unwrap_or_default())
        }
        _ => Err(ModelError::Invalid(format!(
            "a change is measured on contiguous f32 values in host memory, not {:?}",
            tensor.dtype()
        ))),
    }
}

fn sums(new: &[f32], old: &[f32], size: impl Fn(f32) -> f32 + Copy) -> Change {
    let mut total = Change::default();
    for (new, old) in new.chunks(CHUNK).zip(old.chunks(CHUNK)) {
        let (mut difference, mut reference) = ([0f32; LANES], [0f32; LANES]);
        let (new, new_rest) = new.as_chunks::<LANES>();
        let (old, old_rest) = old.as_chunks::<LANES>();
        for (new, old) in new.iter().zip(old) {
            for lane in 0..LANES {
                difference[lane] += size(new[lane] - old[lane]);
                reference[lane] += size(old[lane]);
            }
        }
        for (&new, &old) in new_rest.iter().zip(old_rest) {
            difference[0] += size(new - old);
            reference[0] += size(old);
        }
        let whole = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum::<f64>();
        total.add(Change { difference: whole(difference), reference: whole(reference) });
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, phase: f64) -> Vec<f32> {
        (0..len).map(|i| (i as f64 * 0.37 + phase).sin() as f32).collect()
    }

    #[test]
    fn sums_are_those_of_f64() {
        for len in [0, 1, 7, 8, 63, 64, 65, 1000] {
            let (new, old) = (wave(len, 0.3), wave(len, 0.0));
            let pairs = || new.iter().zip(&old).map(|(&n, &o)| (f64::from(n), f64::from(o)));
            let squares = Change {
                difference: pairs().map(|(n, o)| (n - o) * (n - o)).sum(),
                reference: pairs().map(|(_, o)| o * o).sum(),
            };
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
            let found = Change::of_squares(&new, &old);
            assert!(close(found.difference, squares.difference), "{len}: {found:?} {squares:?}");
            assert!(close(found.reference, squares.reference), "{len}: {found:?} {squares:?}");
        }
    }

    #[test]
    fn magnitudes_of_strided_tensors_are_relative_l1() -> Result<(), ModelError> {
        let old = Tensor::from_vec(vec![1f32, -2.0, 3.0, -4.0], (2, 2), &Device::Cpu)?.t()?;
        let new = (&old * 1.5)?;
        let change = Change::of_magnitudes(&new, &old)?;
        assert_eq!(change, Change { difference: 5.0, reference: 10.0 });
        assert_eq!((change.ratio(), Change::default().ratio()), (0.5, 0.0));
        assert!(Change::of_magnitudes(&new, &old.narrow(0, 0, 1)?).is_err());
        Ok(())
    }
}
