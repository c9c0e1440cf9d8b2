//! A PixArt block with random weights, and the same out of plain candle operations.
#![allow(dead_code, unreachable_pub, clippy::expect_used)]

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor, safetensors};
use ditmesh_model::attention::attention;
use ditmesh_model::checkpoint::Weights;
use ditmesh_model::conditioning::{Conditioning, LatentGrid};
use ditmesh_model::spec::ModelId;
use ditmesh_model::transformer::pixart::{PixArtConfig, PixArtTransformer2DModel};
use ditmesh_model::transformer::{Activation, ForwardPass, Transformer};

/// Text tokens.
pub const TEXT: usize = 120;
const CAPTIONS: usize = 64;

pub struct Size {
    pub name: &'static str,
    pub hidden: usize,
    pub heads: usize,
    /// Tokens are the square of this.
    pub side: usize,
}

pub fn random(shape: &[usize], size: f64) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)? * size
}

/// One block of ours with everything that the plain version needs.
pub struct Block {
    pass: Box<dyn ForwardPass>,
    x: Tensor,
    scale: f64,
    heads: usize,
    weights: HashMap<String, Tensor>,
    /// The block's modulation, six of `[hidden]`.
    modulation: Vec<Tensor>,
    /// `[1, heads, L, width]`.
    text: (Tensor, Tensor),
    bias: Tensor,
}

impl Block {
    pub fn new(size: &Size) -> Result<Self> {
        let config = PixArtConfig {
            num_attention_heads: size.heads,
            attention_head_dim: size.hidden / size.heads,
            in_channels: 4,
            num_layers: 1,
            cross_attention_dim: Some(size.hidden),
            sample_size: 64,
            patch_size: 2,
            caption_channels: Some(CAPTIONS),
            ..PixArtConfig::default()
        };
        let dir = tempfile::tempdir()?;
        let weights = random_weights(size.hidden)?;
        safetensors::save(&weights, dir.path().join("w.safetensors"))?;
        let file = Weights::open(dir.path(), "w").map_err(candle_core::Error::wrap)?;
        let spec = config.spec(ModelId(1), DType::F32, 8, TEXT);
        let device = Device::Cpu;
        let model = PixArtTransformer2DModel::load(&file, &config, spec, 0..1, DType::F32, &device)
            .map_err(candle_core::Error::wrap)?;
        let latent = 2 * size.side;
        let grid =
            LatentGrid { channels: 4, frames: 1, height: latent, width: latent, patch_size: 2 };
        let embeds = random(&[1, TEXT, CAPTIONS], 1.0)?;
        let mask = Tensor::ones((1, TEXT), DType::F32, &device)?;
        let text = Conditioning { embeds: embeds.clone(), mask, pooled: None };
        let mut pass = model.begin(&text, grid).map_err(candle_core::Error::wrap)?;
        pass.set_timestep(0.0).map_err(candle_core::Error::wrap)?;
        let mut block = Self {
            pass,
            x: random(&[1, size.side * size.side, size.hidden], 1.0)?,
            scale: 1.0 / ((size.hidden / size.heads) as f64).sqrt(),
            heads: size.heads,
            weights,
            modulation: Vec::new(),
            text: (embeds.clone(), embeds.clone()),
            bias: Tensor::zeros((1, 1, 1, TEXT), DType::F32, &device)?,
        };
        block.modulation = block.plain_modulation()?;
        let states = block.linear("caption_projection.linear_1", &embeds)?.gelu()?;
        let states = block.linear("caption_projection.linear_2", &states)?;
        let kv = |part: &str| {
            block.linear(&format!("transformer_blocks.0.attn2.{part}"), &states)?.reshape((
                1,
                TEXT,
                size.heads,
                size.hidden / size.heads,
            ))
        };
        block.text = (kv("to_k")?, kv("to_v")?);
        Ok(block)
    }

    /// The block out of our kernels.
    pub fn ours(&self) -> Result<Tensor> {
        let pass = self.pass.as_ref();
        let x = Activation { image: self.x.clone(), text: None };
        let qkv = pass.project_qkv(0, &x).map_err(candle_core::Error::wrap)?;
        let attended = attention(&qkv.q, &qkv.k, &qkv.v, self.scale, None)
            .map_err(candle_core::Error::wrap)?
            .out;
        Ok(pass.project_out(0, x, attended).map_err(candle_core::Error::wrap)?.image)
    }

    /// The modulation at timestep 0, whose sinusoid is 128 ones and 128 zeros.
    fn plain_modulation(&self) -> Result<Vec<Tensor>> {
        let half = (1, 128);
        let (ones, zeros) = (
            Tensor::ones(half, DType::F32, &Device::Cpu)?,
            Tensor::zeros(half, DType::F32, &Device::Cpu)?,
        );
        let x = Tensor::cat(&[ones, zeros], 1)?;
        let x = self.linear("adaln_single.emb.timestep_embedder.linear_1", &x)?.silu()?;
        let x = self.linear("adaln_single.emb.timestep_embedder.linear_2", &x)?.silu()?;
        let hidden = self.x.dim(2)?;
        let all = self.linear("adaln_single.linear", &x)?.reshape((6, hidden))?;
        let all = (all + &self.weights["transformer_blocks.0.scale_shift_table"])?;
        (0..6).map(|i| all.get(i)).collect()
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.weights[&format!("{name}.weight")].t()?;
        let y = x.flatten_to(D::Minus2)?.matmul(&weight)?;
        let y = y.broadcast_add(&self.weights[&format!("{name}.bias")])?;
        let mut shape = x.dims().to_vec();
        *shape.last_mut().expect("rank") = y.dim(1)?;
        y.reshape(shape)
    }

    /// The block out of candle's operations.
    pub fn plain(&self) -> Result<Tensor> {
        let at = |part: &str| format!("transformer_blocks.0.{part}");
        let (batch, n, hidden) = self.x.dims3()?;
        let heads = |x: Tensor| x.reshape((batch, n, self.heads, hidden / self.heads));
        let [shift, scale, gate, shift_2, scale_2, gate_2] = &self.modulation[..] else {
            candle_core::bail!("six modulations");
        };
        let y = plain_norm(&self.x, shift, scale)?;
        let part = |name: &str| heads(self.linear(&at(name), &y)?);
        let (q, k, v) = (part("attn1.to_q")?, part("attn1.to_k")?, part("attn1.to_v")?);
        let y = plain_attention(&q, &k, &v, self.scale, None)?.reshape((batch, n, hidden))?;
        let x = (&self.x + self.linear(&at("attn1.to_out.0"), &y)?.broadcast_mul(gate)?)?;
        let q = heads(self.linear(&at("attn2.to_q"), &x)?)?;
        let (k, v) = &self.text;
        let y = plain_attention(&q, k, v, self.scale, Some(&self.bias))?;
        let x = (&x + self.linear(&at("attn2.to_out.0"), &y.reshape((batch, n, hidden))?)?)?;
        let y = plain_norm(&x, shift_2, scale_2)?;
        let y = self.linear(&at("ff.net.0.proj"), &y)?.gelu()?;
        &x + self.linear(&at("ff.net.2"), &y)?.broadcast_mul(gate_2)?
    }
}

/// Random weights of a model of one block.
fn random_weights(hidden: usize) -> Result<HashMap<String, Tensor>> {
    let mut weights = HashMap::new();
    let mut linear = |name: &str, input: usize, output: usize| -> Result<()> {
        let size = 1.0 / (input as f64).sqrt();
        weights.insert(format!("{name}.weight"), random(&[output, input], size)?);
        weights.insert(format!("{name}.bias"), random(&[output], 0.1)?);
        Ok(())
    };
    for attention in ["attn1", "attn2"] {
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            linear(&format!("transformer_blocks.0.{attention}.{part}"), hidden, hidden)?;
        }
    }
    linear("transformer_blocks.0.ff.net.0.proj", hidden, 4 * hidden)?;
    linear("transformer_blocks.0.ff.net.2", 4 * hidden, hidden)?;
    linear("caption_projection.linear_1", CAPTIONS, hidden)?;
    linear("caption_projection.linear_2", hidden, hidden)?;
    linear("adaln_single.emb.timestep_embedder.linear_1", 256, hidden)?;
    linear("adaln_single.emb.timestep_embedder.linear_2", hidden, hidden)?;
    linear("adaln_single.linear", hidden, 6 * hidden)?;
    linear("proj_out", hidden, 32)?;
    for (name, shape) in [
        ("pos_embed.proj.weight", vec![hidden, 4, 2, 2]),
        ("pos_embed.proj.bias", vec![hidden]),
        ("scale_shift_table", vec![2, hidden]),
        ("transformer_blocks.0.scale_shift_table", vec![6, hidden]),
    ] {
        weights.insert(name.to_owned(), random(&shape, 0.3)?);
    }
    Ok(weights)
}

pub fn plain_softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
}

pub fn plain_norm(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(variance + 1e-6)?.sqrt()?)?;
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

/// `[B, n, H, d]` to `[B, n, H, d]` through the whole matrix of scores.
pub fn plain_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let mut scores = (heads_first(q)?.matmul(&heads_first(k)?.t()?)? * scale)?;
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    plain_softmax(&scores)?.matmul(&heads_first(v)?)?.transpose(1, 2)?.contiguous()
}
