//! The weight of a linear layer in the order in which the blocked kernels read it.
//!
//! Owns that order and the only copy of the weight. A product with a plain matrix packs it anew for
//! every few hundred rows on the left; a weight is the same in every call, so it is packed once,
//! when it is loaded.
//!
//! The columns of the right side (output features) lie in blocks of two registers, each over the
//! whole depth in pieces of [`DEPTH`] steps: the block that begins with column `c` begins at
//! element `inputs * c`. Which registers are meant depends on the instruction set, so a packed
//! weight is for one only.

#![allow(unsafe_code)]

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::blocked::{DEPTH, register_lanes, suits};
use super::gemm::Matrix;
use super::isa::Isa;
use super::micro::{COLUMN_STEP, block_width, pack};
use super::vector::Octet;

/// A matrix f32 `[out, in]` on the CPU, packed.
pub struct PackedWeight {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    data: Vec<f32>,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { isa, inputs, outputs, .. } = self;
        write!(f, "PackedWeight([{outputs}, {inputs}], {isa:?})")
    }
}

impl PackedWeight {
    /// Whether a layer of so many output features is packed on this processor.
    pub fn suits(inputs: usize, outputs: usize) -> bool {
        inputs > 0 && suits(Isa::detect(), usize::MAX, outputs)
    }

    /// Packs `[out, in]`; `None` when it is no f32 matrix on the CPU or the blocked kernels are not
    /// made for it.
    ///
    /// # Errors
    /// When the tensor is no matrix, or candle fails.
    pub fn new(weight: &Tensor) -> Result<Option<Self>> {
        let (outputs, inputs) = weight.dims2()?;
        let is_plain = weight.device().is_cpu() && weight.dtype() == DType::F32;
        if !is_plain || !Self::suits(inputs, outputs) {
            return Ok(None);
        }
        Self::from_rows(weight.flatten_all()?.to_vec1()?, inputs).map(Some)
    }

    /// Packs rows of `inputs` elements each, where they are: a layer is not in memory twice, except
    /// while the buffer grows of one whose outputs are no multiple of eight.
    ///
    /// # Errors
    /// When the rows are not whole, or this processor does not [suit](Self::suits).
    pub fn from_rows(mut data: Vec<f32>, inputs: usize) -> Result<Self> {
        let outputs = data.len() / inputs.max(1);
        if data.len() != outputs * inputs || !Self::suits(inputs, outputs) {
            candle_core::bail!("{} elements in rows of {inputs} cannot be packed", data.len());
        }
        let isa = Isa::detect();
        match isa {
            // SAFETY: `suits` said that the set is supported.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => unsafe {
                pack_avx2(&mut data, inputs, register_lanes(isa));
            },
            _ => candle_core::bail!("weights are not packed for {isa:?}"),
        }
        Ok(Self { isa, inputs, outputs, data })
    }

    /// Input features.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Output features.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Some of the columns of the right side, or `None` when there are not these.
    pub(super) fn columns(&self, outputs: Range<usize>) -> Option<PackedColumns<'_>> {
        let inside = outputs.start <= outputs.end && outputs.end <= self.outputs;
        inside.then_some(PackedColumns { weight: self, outputs })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn pack_avx2(data: &mut Vec<f32>, inputs: usize, lanes: usize) {
    // SAFETY: this function enables the set of the type.
    unsafe { pack_in_place::<std::arch::x86_64::__m256>(data, inputs, lanes) }
}

/// Rows of `inputs` elements to blocks of columns: a block takes the place of its rows.
///
/// # Safety
/// The processor has the set of `H`.
#[inline(always)]
unsafe fn pack_in_place<H: Octet>(data: &mut Vec<f32>, inputs: usize, lanes: usize) {
    let outputs = data.len() / inputs;
    data.resize(inputs * outputs.next_multiple_of(COLUMN_STEP), 0.0);
    let mut rows = Vec::new();
    for first in (0..outputs).step_by(2 * lanes) {
        let inside = (2 * lanes).min(outputs - first);
        let columns = inside.next_multiple_of(COLUMN_STEP);
        let block = &mut data[inputs * first..][..inputs * columns];
        rows.clear();
        rows.extend_from_slice(&block[..inputs * inside]);
        let (row_stride, col_stride) = (1, inputs);
        let right = Matrix { data: &rows, rows: inputs, cols: inside, row_stride, col_stride };
        for depth in (0..inputs).step_by(DEPTH) {
            let steps = DEPTH.min(inputs - depth);
            let to = &mut block[columns * depth..][..columns * steps];
            let width = |left| block_width(lanes, left);
            // SAFETY: passed on to the caller.
            unsafe { pack::<H>(right.rows_from(depth, steps), columns, 1.0, to, width) };
        }
    }
}

/// Columns of a right side that is packed.
#[derive(Clone)]
pub(super) struct PackedColumns<'a> {
    weight: &'a PackedWeight,
    outputs: Range<usize>,
}

impl<'a> PackedColumns<'a> {
    pub(super) fn isa(&self) -> Isa {
        self.weight.isa
    }

    pub(super) fn depth(&self) -> usize {
        self.weight.inputs
    }

    pub(super) fn len(&self) -> usize {
        self.outputs.len()
    }

    /// `count` of them from `first` on.
    pub(super) fn part(&self, first: usize, count: usize) -> Self {
        let start = self.outputs.start + first;
        Self { outputs: start..start + count, ..self.clone() }
    }

    /// The block that column `column` of these lies in.
    pub(super) fn block(&self, column: usize) -> PackedBlock<'a> {
        let wide = 2 * register_lanes(self.weight.isa);
        let at = self.outputs.start + column;
        let start = at / wide * wide;
        let columns = wide.min(self.weight.outputs - start).next_multiple_of(COLUMN_STEP);
        let depth = self.weight.inputs;
        PackedBlock {
            data: &self.weight.data[depth * start..],
            depth,
            columns,
            skipped: at - start,
            inside: (start + wide).min(self.outputs.end) - at,
        }
    }
}

/// A block of packed columns over the whole depth.
pub(super) struct PackedBlock<'a> {
    /// It and the blocks after it.
    data: &'a [f32],
    depth: usize,
    /// Columns, with those that only fill up.
    pub(super) columns: usize,
    /// Columns before those that are wanted.
    pub(super) skipped: usize,
    /// Columns that are wanted.
    pub(super) inside: usize,
}

impl<'a> PackedBlock<'a> {
    /// `steps` steps from `depth` on, which is a multiple of [`DEPTH`].
    pub(super) fn piece(&self, depth: usize, steps: usize) -> &'a [f32] {
        &self.data[self.columns * depth..][..self.columns * steps]
    }

    /// What lies in memory from there on.
    pub(super) fn from(&self, depth: usize) -> &'a [f32] {
        self.data.get(self.columns * depth..).unwrap_or_default()
    }

    /// What lies in memory from `depth` of the next block on.
    pub(super) fn after(&self, depth: usize) -> &'a [f32] {
        self.data.get(self.columns * (self.depth + depth)..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_no_blocked_kernel_reads_is_not_packed() -> Result<()> {
        let weight = Tensor::ones((40, 8), DType::F32, &Device::Cpu)?;
        assert!(PackedWeight::new(&weight.to_dtype(DType::F16)?)?.is_none());
        assert!(PackedWeight::new(&weight.narrow(1, 0, 0)?)?.is_none());
        if let Some(packed) = PackedWeight::new(&weight)? {
            assert_eq!((packed.outputs(), packed.inputs()), (40, 8));
            assert_eq!(packed.columns(3..40).map(|columns| columns.len()), Some(37));
            assert!(packed.columns(3..41).is_none());
        }
        Ok(())
    }
}
