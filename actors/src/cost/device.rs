//! What a device sustains: rates of arithmetic and of memory, and what a launch costs.
//!
//! Owns plain numbers in SI units (FLOP/s, bytes/s, seconds, bytes); a multiply-add counts as two
//! operations. Does not own how they are measured.

use serde::{Deserialize, Serialize};

use crate::request::Dtype;

/// A rate for each precision that weights are held in.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(deny_unknown_fields)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Rates {
    /// Weights in 32-bit float.
    pub f32: f64,
    /// Weights in IEEE half.
    pub f16: f64,
    /// Weights in bfloat16.
    pub bf16: f64,
}

impl Rates {
    /// The same rate for all precisions.
    pub const fn all(rate: f64) -> Self {
        Self { f32: rate, f16: rate, bf16: rate }
    }

    /// So many times these.
    fn times(&self, factor: f64) -> Self {
        Self { f32: self.f32 * factor, f16: self.f16 * factor, bf16: self.bf16 * factor }
    }

    /// The rate of one precision.
    pub fn of(&self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::F32 => self.f32,
            Dtype::F16 => self.f16,
            Dtype::Bf16 => self.bf16,
        }
    }
}

/// What one device sustains on the shapes of a transformer block, not its data sheet.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(deny_unknown_fields)]
#[rkyv(attr(allow(missing_docs)))]
pub struct DeviceProfile {
    /// Matrix products of linear layers, FLOP/s.
    pub gemm_flops_per_s: Rates,
    /// Attention (both products and the softmax), FLOP/s counted as `4 * queries * keys * width`.
    pub attention_flops_per_s: Rates,
    /// Reading or writing activations in norms, gates and copies, bytes/s.
    pub memory_bytes_per_s: f64,
    /// What every phase of a forward pass costs beside its arithmetic, seconds.
    pub phase_s: f64,
    /// Memory for weights, caches and activations, bytes; 0 when it is not known.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Model of the processor that it was measured on; empty when that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub processor: String,
}

impl DeviceProfile {
    /// A processor of `threads` compute threads that nobody has measured. Guesses, low on purpose:
    /// a plan over them says so.
    pub fn unmeasured_cpu(threads: usize) -> Self {
        let threads = threads.max(1) as f64;
        Self {
            gemm_flops_per_s: Rates::all(10e9 * threads),
            attention_flops_per_s: Rates::all(7e9 * threads),
            memory_bytes_per_s: 3e9 * threads,
            phase_s: 20e-6,
            memory_bytes: 0,
            processor: String::new(),
        }
    }

    /// What `threads` threads sustain of a processor of which `measured` threads sustain this.
    pub fn in_proportion(&self, threads: usize, measured: usize) -> Self {
        let factor = threads.max(1) as f64 / measured.max(1) as f64;
        Self {
            gemm_flops_per_s: self.gemm_flops_per_s.times(factor),
            attention_flops_per_s: self.attention_flops_per_s.times(factor),
            memory_bytes_per_s: self.memory_bytes_per_s * factor,
            ..self.clone()
        }
    }

    /// Whether every rate is a positive finite number and no cost is negative.
    pub fn is_sound(&self) -> bool {
        let positive = |rate: f64| rate.is_finite() && rate > 0.0;
        let rates = [self.gemm_flops_per_s, self.attention_flops_per_s];
        let rates = rates.iter().flat_map(|rates| [rates.f32, rates.f16, rates.bf16]);
        rates.chain([self.memory_bytes_per_s]).all(positive)
            && self.phase_s.is_finite()
            && self.phase_s >= 0.0
    }
}
