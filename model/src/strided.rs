//! Copying tensors of any strides to where their elements are wanted in row-major order.
//!
//! Owns one walk over strides that copies the longest contiguous runs. What crosses the network is
//! written into its frame by it and put together from frames by it: one copy on either side.

use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::error::ModelError;

/// Copies the elements of an f32 tensor in host memory to `target` in row-major order.
///
/// # Errors
/// When the tensor is not f32 in host memory, or `target` has not exactly its number of elements.
pub fn copy_into(tensor: &Tensor, target: &mut [f32]) -> Result<(), ModelError> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        return Err(ModelError::Invalid("only f32 tensors in host memory are copied".into()));
    };
    let shape = Strided { dims: layout.dims(), strides: layout.stride() };
    if shape.elements() != target.len() {
        return Err(ModelError::Invalid(format!(
            "a tensor of shape {:?} does not fill {} elements",
            layout.dims(),
            target.len()
        )));
    }
    shape.copy(data.get(layout.start_offset()..).unwrap_or_default(), target)
}

/// Joins tensors along `axis` into one contiguous tensor; a single one is returned as it is. The
/// other axes must agree.
///
/// # Errors
/// When there is no tensor, or shapes disagree.
pub fn join(pieces: &[Tensor], axis: usize) -> Result<Tensor, ModelError> {
    let [first, rest @ ..] = pieces else {
        return Err(ModelError::Invalid("there is nothing to join".into()));
    };
    if rest.is_empty() {
        return Ok(first.clone());
    }
    if !first.device().is_cpu() {
        return Ok(Tensor::cat(pieces, axis)?);
    }
    let mut dims = first.dims().to_vec();
    for piece in rest {
        let mut expected = piece.dims().to_vec();
        if let (Some(to), Some(from)) = (expected.get_mut(axis), dims.get(axis)) {
            *to = *from;
        }
        if expected != dims {
            return Err(ModelError::Invalid(format!(
                "tensors of shapes {:?} and {:?} cannot be joined along axis {axis}",
                first.dims(),
                piece.dims()
            )));
        }
        if let Some(total) = dims.get_mut(axis) {
            *total += piece.dim(axis)?;
        }
    }
    let outer: usize = dims.iter().take(axis).product();
    let elements: usize = dims.iter().product();
    let mut joined = vec![0.0; elements];
    for (index, row) in joined.chunks_mut((elements / outer.max(1)).max(1)).enumerate() {
        let mut left = row;
        for piece in pieces {
            let part = flat_prefix(piece, axis, index)?;
            let (target, after) = left.split_at_mut(part.elem_count().min(left.len()));
            copy_into(&part, target)?;
            left = after;
        }
    }
    Ok(Tensor::from_vec(joined, dims, &Device::Cpu)?)
}

/// Element `index` of the axes before `axis`, counted in row-major order.
fn flat_prefix(tensor: &Tensor, axis: usize, mut index: usize) -> Result<Tensor, ModelError> {
    let mut part = tensor.clone();
    for at in (0..axis).rev() {
        let size = tensor.dim(at)?.max(1);
        part = part.narrow(at, index % size, 1)?;
        index /= size;
    }
    Ok(part)
}

/// Sizes and strides of some trailing axes.
#[derive(Clone, Copy)]
struct Strided<'a> {
    dims: &'a [usize],
    strides: &'a [usize],
}

impl Strided<'_> {
    fn elements(self) -> usize {
        self.dims.iter().product()
    }

    fn is_contiguous(self) -> bool {
        let mut expected = 1;
        self.dims.iter().zip(self.strides).rev().all(|(&dim, &stride)| {
            let fits = dim == 1 || stride == expected;
            expected *= dim;
            fits
        })
    }

    fn copy(self, data: &[f32], target: &mut [f32]) -> Result<(), ModelError> {
        let outside = || ModelError::Invalid("a tensor reaches beyond its storage".into());
        if target.is_empty() {
            return Ok(());
        }
        if self.is_contiguous() {
            target.copy_from_slice(data.get(..target.len()).ok_or_else(outside)?);
            return Ok(());
        }
        let (Some(&stride), Some(dims), Some(strides)) =
            (self.strides.first(), self.dims.get(1..), self.strides.get(1..))
        else {
            return Err(outside());
        };
        let inner = Strided { dims, strides };
        for (index, part) in target.chunks_mut(inner.elements().max(1)).enumerate() {
            inner.copy(data.get(index * stride..).ok_or_else(outside)?, part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: &[usize]) -> Result<Tensor, ModelError> {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    #[test]
    fn any_strides_are_copied_in_row_major_order() -> Result<(), ModelError> {
        let x = numbered(&[2, 5, 4, 3])?;
        for view in [
            x.clone(),
            x.narrow(1, 1, 3)?,
            x.narrow(2, 1, 2)?,
            x.narrow(3, 2, 1)?,
            x.transpose(1, 2)?,
            x.narrow(2, 0, 2)?.transpose(0, 3)?,
            x.narrow(1, 0, 0)?,
        ] {
            let mut copied = vec![-1.0; view.elem_count()];
            copy_into(&view, &mut copied)?;
            assert_eq!(copied, view.flatten_all()?.to_vec1::<f32>()?, "{:?}", view.layout());
            assert!(copy_into(&view, &mut vec![0.0; view.elem_count() + 1]).is_err());
        }
        Ok(())
    }

    #[test]
    fn joining_equals_cat_on_every_axis() -> Result<(), ModelError> {
        let x = numbered(&[2, 5, 4, 3])?;
        for axis in 0..4 {
            let pieces = [x.narrow(axis, 0, 1)?, x.narrow(axis, 1, 1)?, x.clone()];
            let joined = join(&pieces, axis)?;
            assert!(joined.is_contiguous());
            let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>());
            let expected = Tensor::cat(&pieces, axis)?;
            assert_eq!(joined.dims(), expected.dims());
            assert_eq!(flat(&joined)?, flat(&expected)?, "axis {axis}");
        }
        assert!(join(&[x.clone(), x.narrow(1, 0, 2)?], 2).is_err());
        assert!(join(&[], 0).is_err());
        Ok(())
    }
}
