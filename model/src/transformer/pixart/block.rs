//! One PixArt block: the weights and the arithmetic on both sides of self-attention.
//!
//! Owns `BasicTransformerBlock` with `ada_norm_single` as diffusers has it: there is no norm before
//! cross-attention and its result has no gate. Does not attend to image tokens itself.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::config::PixArtConfig;
use super::tensors::block_prefix;
use super::text::Text;
use crate::attention::{Precision, attention_in};
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{Epilogue, layer_norm_modulate};
use crate::linear::Linear;

/// Rows of a modulation table, in the order of the checkpoint.
const SHIFT_MSA: usize = 0;
const SCALE_MSA: usize = 1;
const GATE_MSA: usize = 2;
const SHIFT_MLP: usize = 3;
const SCALE_MLP: usize = 4;
const GATE_MLP: usize = 5;

/// Weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    /// f32 `[6, hidden]`.
    table: Tensor,
    /// Head by head, q, k and v of each.
    qkv: Linear,
    attention_out: Linear,
    cross_q: Linear,
    cross_kv: Linear,
    cross_out: Linear,
    widen: Linear,
    narrow: Linear,
    heads: usize,
    head_dim: usize,
    eps: f64,
}

/// Keys and values of a run's text in one block, each a view `[B, L, heads, head_dim]`.
pub(super) struct TextKv {
    keys: Tensor,
    values: Tensor,
}

impl Block {
    pub(super) fn load(
        weights: &Weights,
        config: &PixArtConfig,
        index: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let (hidden, prefix) = (config.hidden(), block_prefix(index));
        let projections = |attention: &str, parts: &[&str], runs: usize| {
            let names: Vec<_> =
                parts.iter().map(|part| format!("{prefix}.{attention}.{part}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let bias = config.attention_bias;
            Linear::load_interleaved(weights, &names, [hidden; 2], runs, bias, dtype, device)
        };
        let linear = |part: &str, input: usize, output: usize| {
            Linear::load(weights, &format!("{prefix}.{part}"), input, output, true, dtype, device)
        };
        let table = format!("{prefix}.scale_shift_table");
        Ok(Self {
            table: weights.get(&table, &[6, hidden], DType::F32, device)?,
            qkv: projections("attn1", &["to_q", "to_k", "to_v"], config.num_attention_heads)?,
            attention_out: linear("attn1.to_out.0", hidden, hidden)?,
            cross_q: projections("attn2", &["to_q"], 1)?,
            cross_kv: projections("attn2", &["to_k", "to_v"], 1)?,
            cross_out: linear("attn2.to_out.0", hidden, hidden)?,
            widen: linear("ff.net.0.proj", hidden, 4 * hidden)?,
            narrow: linear("ff.net.2", 4 * hidden, hidden)?,
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
            eps: config.norm_eps,
        })
    }

    /// The block's modulation at a timestep, f32 `[6, hidden]`.
    pub(super) fn modulation(&self, of_blocks: &Tensor) -> Result<Tensor, ModelError> {
        Ok((&self.table + of_blocks)?)
    }

    /// Arithmetic of attention in this block.
    pub(super) fn precision(&self) -> Precision {
        self.cross_q.precision()
    }

    /// Keys and values of the text.
    pub(super) fn text_kv(&self, text: &Text) -> Result<TextKv, ModelError> {
        let both = self.cross_kv.forward(&text.states)?;
        Ok(TextKv { keys: self.part(&both, 2, 0)?, values: self.part(&both, 2, 1)? })
    }

    /// Norm and modulation before self-attention: `x` f32 `[B, n, hidden]`.
    pub(super) fn modulate(&self, x: &Tensor, modulation: &Tensor) -> Result<Tensor, ModelError> {
        let (shift, scale) = (modulation.get(SHIFT_MSA)?, modulation.get(SCALE_MSA)?);
        Ok(layer_norm_modulate(x, &shift, &scale, self.eps)?)
    }

    /// Queries, keys and values of `heads`, f32 `[B, n, heads, 3, head_dim]`: the weights lie head
    /// by head, so any run of heads is one product whose result is laid out as it travels.
    pub(super) fn project_heads(
        &self,
        modulated: &Tensor,
        heads: Range<usize>,
    ) -> Result<Tensor, ModelError> {
        if heads.end > self.heads {
            return Err(ModelError::Invalid(format!(
                "heads {heads:?} are not in a block of {} heads",
                self.heads
            )));
        }
        let (batch, tokens, _) = modulated.dims3()?;
        let of_head = 3 * self.head_dim;
        let rows = heads.start * of_head..heads.end * of_head;
        let all = self.qkv.forward_rows(modulated, rows)?;
        Ok(all.reshape((batch, tokens, heads.len(), 3, self.head_dim))?)
    }

    /// Part `index` of a product of `parts` stacked projections, as a view
    /// `[B, n, heads, head_dim]`.
    fn part(&self, all: &Tensor, parts: usize, index: usize) -> Result<Tensor, ModelError> {
        let (batch, tokens, _) = all.dims3()?;
        let split = all.reshape((batch, tokens, parts, self.heads, self.head_dim))?;
        Ok(split.narrow(2, index, 1)?.squeeze(2)?)
    }

    /// Everything behind self-attention: `x` f32 `[B, n, hidden]`, `attended`
    /// `[B, n, heads, head_dim]`. At its widest the feed-forward holds six maps of the size of `x`;
    /// what came before is gone by then.
    pub(super) fn project_out(
        &self,
        x: Tensor,
        attended: Tensor,
        modulation: &Tensor,
        text: &TextKv,
        key_bias: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let (batch, tokens, _) = x.dims3()?;
        let gate = modulation.get(GATE_MSA)?;
        let x = self.add_to(x, &self.attention_out, flat(attended)?, Some(&gate))?;

        let q = self.cross_q.forward(&x)?.reshape((batch, tokens, self.heads, self.head_dim))?;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let (keys, values) = (&text.keys, &text.values);
        let read = attention_in(self.precision(), &q, keys, values, scale, Some(key_bias))?.out;
        drop(q);
        let x = self.add_to(x, &self.cross_out, flat(read)?, None)?;

        let (shift, scale) = (modulation.get(SHIFT_MLP)?, modulation.get(SCALE_MLP)?);
        let normed = layer_norm_modulate(&x, &shift, &scale, self.eps)?;
        let wide = self.widen.forward_then(&normed, Epilogue::GeluTanh)?;
        drop(normed);
        self.add_to(x, &self.narrow, wide, Some(&modulation.get(GATE_MLP)?))
    }

    /// `x + gate * layer(y)`; both are given up.
    fn add_to(
        &self,
        x: Tensor,
        layer: &Linear,
        y: Tensor,
        gate: Option<&Tensor>,
    ) -> Result<Tensor, ModelError> {
        layer.forward_then(&y, Epilogue::Residual { residual: &x, gate })
    }
}

/// `[B, n, heads, head_dim]` as `[B, n, hidden]`.
fn flat(x: Tensor) -> Result<Tensor, ModelError> {
    Ok(x.flatten_from(2)?)
}
