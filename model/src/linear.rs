//! Linear layers: weights as they are stored, and the product with activations.
//!
//! Owns [`LinearWeight`], the seam behind which weights may be quantised later. On the CPU
//! activations are f32; f16 and bf16 weights are kept in their type and widened to f32 panel by
//! panel in every call, so a layer costs its stored bytes and no more. Biases are f32.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::attention::Precision;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{Epilogue, fused_linear};

/// The matrix `[out, in]` of a linear layer in the form it is kept in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinearWeight {
    /// Single precision.
    F32(Tensor),
    /// IEEE half precision.
    F16(Tensor),
    /// bfloat16.
    Bf16(Tensor),
}

impl LinearWeight {
    /// Wraps a tensor `[out, in]` according to its type.
    ///
    /// # Errors
    /// When the type is none of f32, f16 and bf16.
    pub fn new(tensor: Tensor) -> Result<Self, ModelError> {
        match tensor.dtype() {
            DType::F32 => Ok(Self::F32(tensor)),
            DType::F16 => Ok(Self::F16(tensor)),
            DType::BF16 => Ok(Self::Bf16(tensor)),
            other => Err(ModelError::Invalid(format!(
                "linear weights are {other:?}, expected f32, f16 or bf16"
            ))),
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::F32(tensor) | Self::F16(tensor) | Self::Bf16(tensor) => tensor,
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
        let stack = |part: &str, shape: &[usize], dtype| {
            let read =
                |prefix: &&str| weights.get(&format!("{prefix}.{part}"), shape, dtype, device);
            let parts = prefixes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            interleave(parts, runs).map_err(|source| CheckpointError::Tensor {
                path: weights.path().to_owned(),
                tensor: format!("{}.{part}", prefixes.join(" and ")),
                source: Box::new(source),
            })
        };
        let weight = stack("weight", &[output, input], dtype)?;
        let bias = if bias { Some(stack("bias", &[output], DType::F32)?) } else { None };
        let weight = LinearWeight::new(weight).map_err(|error| CheckpointError::Tensor {
            path: weights.path().to_owned(),
            tensor: format!("{}.weight", prefixes.join(" and ")),
            source: Box::new(candle_core::Error::Msg(error.to_string())),
        })?;
        Ok(Self { weight, bias })
    }

    /// The arithmetic that loses nothing against these weights.
    pub fn precision(&self) -> Precision {
        match self.weight {
            LinearWeight::F32(_) => Precision::Full,
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
        let cut = |tensor: &Tensor| tensor.narrow(0, rows.start, rows.len());
        let bias = self.bias.as_ref().map(cut).transpose()?;
        Ok(fused_linear(x, &cut(self.weight.tensor())?, bias.as_ref(), Epilogue::None)?)
    }

    /// The layer's output after `epilogue`, in one pass over it.
    ///
    /// # Errors
    /// As [`Linear::forward`], or when the epilogue's tensors do not fit.
    pub fn forward_then(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor, ModelError> {
        Ok(fused_linear(x, self.weight.tensor(), self.bias.as_ref(), epilogue)?)
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
            assert_eq!(weight.tensor().dtype(), dtype);
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
