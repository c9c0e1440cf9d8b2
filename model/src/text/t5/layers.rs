//! The layers of a T5 encoder block: RMS norm, self-attention with relative bias, feed-forward.

use candle_core::{D, DType, Device, Tensor};

use super::config::{FeedForward, T5EncoderConfig};
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{gelu_tanh, matmul, softmax_last_dim};
use crate::linear::Linear;

/// Where the relative position bias is; the first block's, which all share.
const RELATIVE_BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

/// What loading a layer needs.
pub(super) struct Loader<'a> {
    pub(super) weights: &'a Weights,
    pub(super) config: &'a T5EncoderConfig,
    pub(super) dtype: DType,
    pub(super) device: &'a Device,
}

impl Loader<'_> {
    fn linear(
        &self,
        names: &[&str],
        input: usize,
        output: usize,
    ) -> Result<Linear, CheckpointError> {
        Linear::load_stacked(self.weights, names, input, output, false, self.dtype, self.device)
    }
}

/// Names and shapes of every tensor but the embedding.
pub(super) fn shapes(config: &T5EncoderConfig) -> Vec<(String, Vec<usize>)> {
    let (model, inner) = (config.d_model, config.num_heads * config.d_kv);
    let mut shapes = vec![
        (RELATIVE_BIAS.to_owned(), vec![config.relative_attention_num_buckets, config.num_heads]),
        ("encoder.final_layer_norm.weight".to_owned(), vec![model]),
    ];
    for index in 0..config.num_layers {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("encoder.block.{index}.layer.{name}.weight"), shape.to_vec()));
        };
        for name in ["q", "k", "v"] {
            add(&format!("0.SelfAttention.{name}"), &[inner, model]);
        }
        add("0.SelfAttention.o", &[model, inner]);
        add("0.layer_norm", &[model]);
        add("1.layer_norm", &[model]);
        for name in feed_forward_inputs(config.feed_forward_proj) {
            add(&format!("1.DenseReluDense.{name}"), &[config.d_ff, model]);
        }
        add("1.DenseReluDense.wo", &[model, config.d_ff]);
    }
    shapes
}

fn feed_forward_inputs(kind: FeedForward) -> &'static [&'static str] {
    match kind {
        FeedForward::Relu => &["wi"],
        FeedForward::GatedGelu => &["wi_0", "wi_1"],
    }
}

/// Norm by the root mean square, without mean and bias.
#[derive(Debug)]
pub(super) struct RmsNorm {
    gain: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn load(loader: &Loader<'_>, prefix: &str) -> Result<Self, CheckpointError> {
        let name = format!("{prefix}.weight");
        let shape = [loader.config.d_model];
        let gain = loader.weights.get(&name, &shape, DType::F32, loader.device)?;
        Ok(Self { gain, eps: loader.config.layer_norm_epsilon })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let variance = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?;
        Ok(x.broadcast_mul(&variance.sqrt()?.recip()?)?.broadcast_mul(&self.gain)?)
    }
}

/// Bias of the attention scores by the distance of two tokens.
#[derive(Debug)]
pub(super) struct RelativeBias {
    /// f32 `[buckets, heads]`.
    table: Tensor,
    max_distance: usize,
}

impl RelativeBias {
    pub(super) fn load(loader: &Loader<'_>) -> Result<Self, CheckpointError> {
        let config = loader.config;
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let table = loader.weights.get(RELATIVE_BIAS, &shape, DType::F32, loader.device)?;
        Ok(Self { table, max_distance: config.relative_attention_max_distance })
    }

    /// f32 `[1, heads, length, length]`, queries before keys.
    pub(super) fn forward(&self, length: usize) -> Result<Tensor, ModelError> {
        let (buckets, heads) = self.table.dims2()?;
        let pairs = (0..length).flat_map(|query| (0..length).map(move |key| (query, key)));
        let rows: Vec<u32> =
            pairs.map(|(query, key)| bucket(query, key, buckets, self.max_distance)).collect();
        let rows = Tensor::from_vec(rows, length * length, self.table.device())?;
        let bias = self.table.index_select(&rows, 0)?.reshape((length, length, heads))?;
        Ok(bias.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }
}

/// Half of the buckets for keys after the query; in each half, the nearer half exact and the
/// farther half logarithmic up to `max_distance`. Logarithms in f32, as transformers has them.
fn bucket(query: usize, key: usize, buckets: usize, max_distance: usize) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = query.abs_diff(key);
    let within = if distance < exact {
        distance
    } else {
        let span = libm::log(max_distance as f64 / exact as f64) as f32;
        let share = libm::logf(distance as f32 / exact as f32) / span;
        let far = exact + (share * (half - exact) as f32) as usize;
        far.min(half - 1)
    };
    (within + if key > query { half } else { 0 }) as u32
}

/// One encoder block.
#[derive(Debug)]
pub(super) struct Block {
    attention_norm: RmsNorm,
    qkv: Linear,
    out: Linear,
    heads: usize,
    head_dim: usize,
    feed_forward_norm: RmsNorm,
    kind: FeedForward,
    inputs: Vec<Linear>,
    output: Linear,
}

impl Block {
    pub(super) fn load(loader: &Loader<'_>, index: usize) -> Result<Self, CheckpointError> {
        let config = loader.config;
        let (model, inner) = (config.d_model, config.num_heads * config.d_kv);
        let layer = |name: &str| format!("encoder.block.{index}.layer.{name}");
        let [q, k, v] = ["q", "k", "v"].map(|name| layer(&format!("0.SelfAttention.{name}")));
        let kind = config.feed_forward_proj;
        let inputs = feed_forward_inputs(kind).iter().map(|name| {
            loader.linear(&[&layer(&format!("1.DenseReluDense.{name}"))], model, config.d_ff)
        });
        Ok(Self {
            attention_norm: RmsNorm::load(loader, &layer("0.layer_norm"))?,
            qkv: loader.linear(&[&q, &k, &v], model, inner)?,
            out: loader.linear(&[&layer("0.SelfAttention.o")], inner, model)?,
            heads: config.num_heads,
            head_dim: config.d_kv,
            feed_forward_norm: RmsNorm::load(loader, &layer("1.layer_norm"))?,
            kind,
            inputs: inputs.collect::<Result<_, _>>()?,
            output: loader.linear(&[&layer("1.DenseReluDense.wo")], config.d_ff, model)?,
        })
    }

    /// `x` is f32 `[B, L, d_model]`, `bias` f32 `[1 or B, heads, L, L]`.
    pub(super) fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor, ModelError> {
        let x = (x + self.attend(&self.attention_norm.forward(x)?, bias)?)?;
        Ok((&x + self.feed_forward(&self.feed_forward_norm.forward(&x)?)?)?)
    }

    /// Self-attention; T5 does not scale the scores.
    fn attend(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, length, _) = x.dims3()?;
        let qkv = self.qkv.forward(x)?.reshape((batch, length, 3, self.heads, self.head_dim))?;
        let part = |index: usize| qkv.narrow(2, index, 1)?.squeeze(2)?.transpose(1, 2);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = matmul(&q, &k.transpose(2, 3)?)?.broadcast_add(bias)?;
        let attended = matmul(&softmax_last_dim(&scores)?, &v)?;
        let inner = self.heads * self.head_dim;
        let attended = attended.transpose(1, 2)?.reshape((batch, length, inner))?;
        self.out.forward(&attended)
    }

    fn feed_forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let mut inner = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            inner.push(input.forward(x)?);
        }
        let hidden = match (self.kind, inner.as_slice()) {
            (FeedForward::GatedGelu, [gate, value]) => (gelu_tanh(gate)? * value)?,
            (_, inner) => inner[0].relu()?,
        };
        self.output.forward(&hidden)
    }
}
