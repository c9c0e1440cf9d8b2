//! Linear layers: weights as they are stored, and the product with activations.
//!
//! Owns [`LinearWeight`], the seam behind which weights may be quantised later. On the CPU
//! activations are f32; f16 and bf16 weights are kept in their type and widened to f32 panel by
//! panel in every call, so a layer costs its stored bytes and no more. Biases are f32.

use candle_core::{DType, Device, Tensor};

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
        Self::load_stacked(weights, &[prefix], input, output, bias, dtype, device)
    }

    /// Reads several layers of one input and `output` features each as one layer, whose outputs
    /// follow each other in the order of `prefixes` (q, k, v in one product).
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
        let stack = |part: &str, shape: &[usize], dtype| {
            let read =
                |prefix: &&str| weights.get(&format!("{prefix}.{part}"), shape, dtype, device);
            let parts = prefixes.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            cat(parts).map_err(|source| CheckpointError::Tensor {
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

    /// The layer's output: `x` is f32 `[.., in]`, the result f32 `[.., out]`.
    ///
    /// # Errors
    /// When `x` has another last dimension, or the tensor backend fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.forward_then(x, Epilogue::None)
    }

    /// The layer's output after `epilogue`, in one pass over it.
    ///
    /// # Errors
    /// As [`Linear::forward`], or when the epilogue's tensors do not fit.
    pub fn forward_then(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor, ModelError> {
        Ok(fused_linear(x, self.weight.tensor(), self.bias.as_ref(), epilogue)?)
    }
}

fn cat(mut parts: Vec<Tensor>) -> candle_core::Result<Tensor> {
    match parts.len() {
        1 => Ok(parts.remove(0)),
        _ => Tensor::cat(&parts, 0),
    }
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
}
