//! The one attention layer of the decoder: a single head over all pixels of the coarsest level.
//!
//! Under bands of rows it needs the whole map for its keys and values; the map is small there, so
//! it is replicated. Queries are those of the own rows only.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::blocks::Loader;
use super::group_norm::GroupNorm;
use crate::attention::attention;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::linear::{Linear, LinearWeight};

/// The two generations of names for query, key, value and output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Naming([&'static str; 4]);

impl Naming {
    const NEW: Self = Self(["to_q", "to_k", "to_v", "to_out.0"]);
    /// Checkpoints saved before diffusers 0.15, some with 1x1 convolutions as weights.
    const OLD: Self = Self(["query", "key", "value", "proj_attn"]);

    /// The names that `weights` uses below `prefix`.
    pub(super) fn of(weights: &Weights, prefix: &str) -> Self {
        let old = weights.contains(&format!("{prefix}.{}.weight", Self::OLD.0[0]));
        if old { Self::OLD } else { Self::NEW }
    }

    /// Query, key, value, output.
    pub(super) fn all(self) -> [&'static str; 4] {
        self.0
    }

    /// `[width, width]`, or `[width, width, 1, 1]` where `weights` has that.
    pub(super) fn weight_shape(self, weights: &Weights, name: &str, width: usize) -> Vec<usize> {
        match weights.shape(name) {
            Some(shape) if shape.len() == 4 => vec![width, width, 1, 1],
            _ => vec![width, width],
        }
    }
}

/// Group norm, attention over pixels, output projection, residual.
#[derive(Debug)]
pub(super) struct PixelAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl PixelAttention {
    pub(super) fn load(
        loader: &Loader<'_>,
        prefix: &str,
        width: usize,
    ) -> Result<Self, CheckpointError> {
        let (weights, device) = (loader.weights, loader.device);
        let norm = loader.group_norm(&format!("{prefix}.group_norm"), width)?;
        let naming = Naming::of(weights, prefix);
        let read = |name: &str| {
            let weight = format!("{prefix}.{name}.weight");
            let shape = naming.weight_shape(weights, &weight, width);
            let matrix = weights.get(&weight, &shape, DType::F32, device)?;
            let bias = format!("{prefix}.{name}.bias");
            let bias = weights.get(&bias, &[width], DType::F32, device)?;
            let matrix = matrix
                .reshape((width, width))
                .map_err(ModelError::from)
                .and_then(LinearWeight::new)
                .map_err(|error| CheckpointError::Tensor {
                    path: weights.path().to_owned(),
                    tensor: weight,
                    source: Box::new(candle_core::Error::Msg(error.to_string())),
                })?;
            Ok(Linear::new(matrix, Some(bias)))
        };
        let [q, k, v, out] = naming.all();
        Ok(Self { norm, q: read(q)?, k: read(k)?, v: read(v)?, out: read(out)? })
    }

    /// Attends from the rows `own` of a whole map, f32 `[B, C, H, W]`, to all of it: f32
    /// `[B, C, own, W]`. Keys and values of the whole map are computed here.
    pub(super) fn forward(&self, map: &Tensor, own: Range<usize>) -> Result<Tensor, ModelError> {
        let (batch, channels, height, width) = map.dims4()?;
        let tokens = self.norm.forward(map)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let heads = |y: Tensor, pixels: usize| y.reshape((batch, pixels, 1, channels));
        let k = heads(self.k.forward(&tokens)?, height * width)?;
        let v = heads(self.v.forward(&tokens)?, height * width)?;
        let pixels = own.len() * width;
        let queries = tokens.narrow(1, own.start * width, pixels)?.contiguous()?;
        let q = heads(self.q.forward(&queries)?, pixels)?;
        let scale = 1.0 / (channels as f64).sqrt();
        let attended =
            attention(&q, &k, &v, scale, None)?.out.reshape((batch, pixels, channels))?;
        let x = map.narrow(2, own.start, own.len())?;
        let y = self.out.forward(&attended)?.transpose(1, 2)?.reshape(x.shape())?;
        Ok((x + y)?)
    }
}
