//! Linear layers: weights as they are stored, and the product with activations.
//!
//! Owns [`LinearWeight`], the seam behind which weights may be quantised later. On the CPU
//! activations are f32; f32 weights are packed for the kernels when they are loaded, f16 and bf16
//! weights are kept in their type and widened to f32 panel by panel in every call, so a layer costs
//! its stored bytes and no more. Biases are f32.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::attention::Precision;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{Epilogue, PackedWeight, fused_linear, packed_linear};

/// The matrix `[out, in]` of a linear layer in the form it is kept in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinearWeight {
    /// Single precision.
    F32(Tensor),
    /// Single precision on the CPU, in the order in which its kernels read it.
    Packed(Arc<PackedWeight>),
    /// IEEE half precision.
    F16(Tensor),
    /// bfloat16.
    Bf16(Tensor),
}

impl LinearWeight {
    /// Wraps a tensor `[out, in]` according to its type and device; packs it where that pays.
    ///
    /// # Errors
    /// When the type is none of f32, f16 and bf16.
    pub fn new(tensor: Tensor) -> Result<Self, ModelError> {
        match tensor.dtype() {
            DType::F32 => Ok(match PackedWeight::new(&tensor)? {
                Some(packed) => Self::Packed(Arc::new(packed)),
                None => Self::F32(tensor),
            }),
            DType::F16 => Ok(Self::F16(tensor)),
            DType::BF16 => Ok(Self::Bf16(tensor)),
            other => Err(ModelError::Invalid(format!(
                "linear weights are {other:?}, expected f32, f16 or bf16"
            ))),
        }
    }

    /// `epilogue(x W^T + bias)` of some output features, or of all; `bias` is that of these.
    fn times(
        &self,
        x: &Tensor,
        rows: Option<Range<usize>>,
        bias: Option<&Tensor>,
        epilogue: Epilogue<'_>,
    ) -> candle_core::Result<Tensor> {
        match self {
            Self::F32(tensor) | Self::F16(tensor) | Self::Bf16(tensor) => match rows {
                None => fused_linear(x, tensor, bias, epilogue),
                Some(rows) => {
                    fused_linear(x, &tensor.narrow(0, rows.start, rows.len())?, bias, epilogue)
                }
            },
            Self::Packed(packed) => {
                packed_linear(x, packed, rows.unwrap_or(0..packed.outputs()), bias, epilogue)
            }
        }
    }
}

/// `x W^T + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer of given parts: `bias` is f32 `[out]`.
    pub fn new(weight: LinearWeight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Reads `<prefix>.weight` `[output, input]` in `dtype` and, with `bias`, `<prefix>.bias`
    /// `[output]` in f32.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        input: usize,
        output: usize,
        bias: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        Self::load_interleaved(weights, &[prefix], [input, output], 1, bias, dtype, device)
    }

    /// Reads several layers of one input and `output` features each as one layer, whose outputs
    /// follow each other in the order of `prefixes` (k, v in one product).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_stacked(
        weights: &Weights,
        prefixes: &[&str],
        input: usize,
        output: usize,
        bias: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        Self::load_interleaved(weights, prefixes, [input, output], 1, bias, dtype, device)
    }

    /// Reads several layers of `[input, output]` features each as one layer, whose outputs follow
    /// each other run by run: `runs` equal runs of output features, in each of them those of the
    /// layers in the order of `prefixes`. One run puts layer after layer; a run for each attention
    /// head puts q, k and v of a head together.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, or the runs do not divide the outputs.
    pub fn load_interleaved(
        weights: &Weights,
        prefixes: &[&str],
        [input, output]: [usize; 2],
        runs: usize,
        bias: bool,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let failed = |part: &str, source: candle_core::Error| CheckpointError::Tensor {
            path: weights.path().to_owned(),
            tensor: format!("{}.{part}", prefixes.join(" and ")),
            source: Box::new(source),
        };
        let stack = |part: &str, shape: &[usize], dtype| {
            let read =
                |prefix: &&str| weights.get(&format!("{prefix}.{part}"), shape, dtype, device);
            let parts = prefixes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            interleave(parts, runs).map_err(|source| failed(part, source))
        };
        let is_packed = device.is_cpu()
            && output.is_multiple_of(runs.max(1))
            && dtype == DType::F32
            && PackedWeight::suits(input, output * prefixes.len());
        let weight = if is_packed {
            let mut rows = Stacked::new(prefixes.len(), output / runs.max(1) * input);
            for (index, prefix) in prefixes.iter().enumerate() {
                let part = weights.get_f32(&format!("{prefix}.weight"), &[output, input])?;
                rows.put(index, part).map_err(|source| failed("weight", source))?;
            }
            let packed = PackedWeight::from_rows(rows.elements, input);
            LinearWeight::Packed(Arc::new(packed.map_err(|source| failed("weight", source))?))
        } else {
            let weight = LinearWeight::new(stack("weight", &[output, input], dtype)?);
            weight.map_err(|error| failed("weight", candle_core::Error::wrap(error)))?
        };
        let bias = if bias { Some(stack("bias", &[output], DType::F32)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// The arithmetic that loses nothing against these weights.
    pub fn precision(&self) -> Precision {
        match self.weight {
            LinearWeight::F32(_) | LinearWeight::Packed(_) => Precision::Full,
            LinearWeight::F16(_) | LinearWeight::Bf16(_) => Precision::Half,
        }
    }

    /// The layer's output: `x` is f32 `[.., in]`, the result f32 `[.., out]`.
    ///
    /// # Errors
    /// When `x` has another last dimension, or the tensor backend fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.forward_then(x, Epilogue::None)
    }

    /// Some of the layer's output features: `x` is f32 `[.., in]`, the result f32 `[.., rows]`.
    ///
    /// # Errors
    /// When the layer has not these features, or as [`Linear::forward`].
    pub fn forward_rows(&self, x: &Tensor, rows: Range<usize>) -> Result<Tensor, ModelError> {
        let cut = |bias: &Tensor| bias.narrow(0, rows.start, rows.len());
        let bias = self.bias.as_ref().map(cut).transpose()?;
        Ok(self.weight.times(x, Some(rows), bias.as_ref(), Epilogue::None)?)
    }

    /// The layer's output after `epilogue`, in one pass over it.
    ///
    /// # Errors
    /// As [`Linear::forward`], or when the epilogue's tensors do not fit.
    pub fn forward_then(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor, ModelError> {
        Ok(self.weight.times(x, None, self.bias.as_ref(), epilogue)?)
    }
}

/// Layers of equal size, run by run in one.
struct Stacked {
    elements: Vec<f32>,
    parts: usize,
    run: usize,
}

impl Stacked {
    /// Of so many parts, in runs of `run` elements.
    fn new(parts: usize, run: usize) -> Self {
        Self { elements: Vec::new(), parts, run }
    }

    fn put(&mut self, index: usize, part: Vec<f32>) -> candle_core::Result<()> {
        if self.run == 0 || !part.len().is_multiple_of(self.run) {
            candle_core::bail!("{} weights do not make runs of {}", part.len(), self.run);
        }
        if self.parts == 1 {
            self.elements = part;
            return Ok(());
        }
        self.elements.resize(self.parts * part.len(), 0.0);
        let places = self.elements.chunks_exact_mut(self.run).skip(index).step_by(self.parts);
        places.zip(part.chunks_exact(self.run)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }
}

/// The rows of `parts`, all of one shape, run by run.
fn interleave(mut parts: Vec<Tensor>, runs: usize) -> candle_core::Result<Tensor> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let rows = parts.first().map_or(0, |part| part.dims().first().copied().unwrap_or(0));
    let run = rows / runs.max(1);
    if run * runs != rows {
        candle_core::bail!("{rows} output features do not make {runs} equal runs");
    }
    let cut = |index: usize| parts.iter().map(move |part| part.narrow(0, index * run, run));
    let pieces = (0..runs).flat_map(cut).collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&pieces, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_type_and_other_types_are_refused() -> Result<(), ModelError> {
        let ones = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
        let x = Tensor::ones((2, 4), DType::F32, &Device::Cpu)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let weight = LinearWeight::new(ones.to_dtype(dtype)?)?;
            let half = matches!(weight, LinearWeight::F16(_) | LinearWeight::Bf16(_));
            assert_eq!(half, dtype != DType::F32);
            let y = Linear::new(weight, None).forward(&x)?;
            assert_eq!(y.to_vec2::<f32>()?, [[4.0; 3]; 2]);
        }
        assert!(LinearWeight::new(ones.to_dtype(DType::I64)?).is_err());
        Ok(())
    }

    #[test]
    fn rows_alternate_run_by_run() -> Result<(), ModelError> {
        let rows = |first: f32| Tensor::arange(first, first + 4.0, &Device::Cpu);
        let both = interleave(vec![rows(0.0)?, rows(10.0)?], 2)?;
        assert_eq!(both.to_vec1::<f32>()?, [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
        assert!(interleave(vec![rows(0.0)?, rows(10.0)?], 3).is_err());
        Ok(())
    }

    #[test]
    fn stacked_elements_alternate_like_rows() -> Result<(), ModelError> {
        let mut stacked = Stacked::new(2, 2);
        stacked.put(1, vec![10.0, 11.0, 12.0, 13.0])?;
        stacked.put(0, vec![0.0, 1.0, 2.0, 3.0])?;
        assert_eq!(stacked.elements, [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
        assert!(Stacked::new(2, 2).put(0, vec![0.0; 5]).is_err());
        Ok(())
    }

    #[test]
    fn some_rows_equal_those_of_the_whole() -> Result<(), ModelError> {
        let weight = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((6, 4))?;
        let bias = Some(Tensor::arange(0f32, 6.0, &Device::Cpu)?);
        let layer = Linear::new(LinearWeight::new(weight)?, bias);
        let x = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((2, 4))?;
        let whole = layer.forward(&x)?.narrow(1, 2, 3)?.to_vec2::<f32>()?;
        assert_eq!(layer.forward_rows(&x, 2..5)?.to_vec2::<f32>()?, whole);
        assert!(layer.forward_rows(&x, 4..7).is_err());
        Ok(())
    }
}
