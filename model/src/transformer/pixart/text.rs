//! The text side of PixArt: caption projection and the mask of cross-attention.
//!
//! Owns the projection and which text tokens are kept. Text never changes during a run, so all of
//! this happens once, when a run begins.

use candle_core::{DType, Device, Tensor};

use super::config::PixArtConfig;
use crate::checkpoint::{CheckpointError, Weights};
use crate::conditioning::Conditioning;
use crate::error::ModelError;
use crate::kernels::Epilogue;
use crate::linear::Linear;

/// Added to the scores of a masked key (diffusers' value).
const MASKED: f64 = -10_000.0;

/// `PixArtAlphaTextProjection`: linear, tanh gelu, linear.
#[derive(Debug)]
pub(super) struct CaptionProjection {
    first: Linear,
    second: Linear,
    captions: usize,
}

/// Projected text of a run.
pub(super) struct Text {
    /// f32 `[B, L, hidden]`; `L` counts only tokens up to the last that some row attends to.
    pub(super) states: Tensor,
    /// Bias of the scores, f32 `[B, L]`.
    pub(super) key_bias: Tensor,
}

impl CaptionProjection {
    pub(super) fn load(
        weights: &Weights,
        config: &PixArtConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, captions) = (config.hidden(), config.caption_channels.unwrap_or(0));
        let linear = |part: &str, input: usize| {
            let name = format!("caption_projection.{part}");
            Linear::load(weights, &name, input, hidden, true, dtype, device)
        };
        Ok(Self {
            first: linear("linear_1", captions)?,
            second: linear("linear_2", hidden)?,
            captions,
        })
    }

    /// Projects the text of a run.
    pub(super) fn project(&self, conditioning: &Conditioning) -> Result<Text, ModelError> {
        let (embeds, mask) = (&conditioning.embeds, &conditioning.mask);
        let (batch, tokens, width) = embeds.dims3()?;
        if width != self.captions || mask.dims() != [batch, tokens] || tokens == 0 {
            return Err(ModelError::Invalid(format!(
                "prompt embeddings are {:?} with a mask {:?}, expected [B, L, {}] and [B, L]",
                embeds.dims(),
                mask.dims(),
                self.captions
            )));
        }
        let mask = mask.to_dtype(DType::F32)?;
        let kept = kept_tokens(&mask.to_vec2::<f32>()?);
        let embeds = embeds.narrow(1, 0, kept)?.to_dtype(DType::F32)?;
        let states = self.second.forward(&self.first.forward_then(&embeds, Epilogue::GeluTanh)?)?;
        let key_bias = mask.narrow(1, 0, kept)?.affine(-MASKED, MASKED)?.contiguous()?;
        Ok(Text { states, key_bias })
    }
}

/// Tokens up to the last one that any row attends to. Those behind it would get weights of exactly
/// 0 (`exp(-10000)`), so leaving them out changes nothing; with a row that is masked as a whole, in
/// which the mask shifts all scores alike, all tokens stay.
fn kept_tokens(mask: &[Vec<f32>]) -> usize {
    let last = |row: &Vec<f32>| row.iter().rposition(|&keep| keep != 0.0);
    let lasts: Option<Vec<usize>> = mask.iter().map(last).collect();
    match lasts.and_then(|lasts| lasts.into_iter().max()) {
        Some(last) => last + 1,
        None => mask.first().map_or(0, Vec::len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_behind_every_prompt_is_left_out() {
        let rows =
            |rows: &[&[f32]]| kept_tokens(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>());
        assert_eq!(rows(&[&[1.0, 1.0, 0.0, 0.0], &[1.0, 0.0, 1.0, 0.0]]), 3);
        assert_eq!(rows(&[&[1.0, 1.0]]), 2);
        assert_eq!(rows(&[&[0.0, 0.0, 0.0], &[1.0, 0.0, 0.0]]), 3);
    }
}
