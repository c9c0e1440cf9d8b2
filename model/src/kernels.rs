//! CPU kernels: what candle does too slowly on the CPU, or on the wrong threads.
//!
//! Owns matrix products, fused linear layers, tiled attention and the row kernels (softmax,
//! gelu, silu, norm with modulation). Every public function takes and returns candle tensors and
//! runs plain candle operations when a tensor is not on the CPU. Does not own the meaning of a
//! layer (names, weights, shapes of a model).
//!
//! Invariants:
//! - Work is split over the *current* rayon pool; outside of a pool everything runs on the
//!   caller's thread. The global pool is never built, used or configured. (candle's own `matmul`
//!   takes its thread count from the environment and would use it, hence [`matmul`].)
//! - Results are the same to the bit from run to run. With AVX2 or AVX-512, which agree to the bit,
//!   they do not depend on the size of the pool either, except where the `gemm` crate computes
//!   (few rows or columns, or no AVX2: see [`matmul`]'s file).
//!   Row kernels contain no fused multiply-add, so they agree with the portable ones too.
//! - The instruction set is chosen once, at run time: AVX-512, AVX2 with FMA, or portable; the
//!   environment variable `DITMESH_ISA` asks for a lesser one.

mod access;
mod activation;
mod blocked;
mod exp;
mod flash;
mod fused_linear;
mod gemm;
mod isa;
mod merge;
mod micro;
mod norm;
mod packed;
mod parallel;
mod softmax;
mod vector;

pub use activation::{gelu_tanh, silu};
pub use flash::flash_attention;
#[cfg(test)]
pub(crate) use flash::flash_attention_on;
pub use fused_linear::{Epilogue, fused_linear, packed_linear};
pub use gemm::matmul;
pub use isa::Isa;
pub use merge::merge_partials;
pub use norm::layer_norm_modulate;
pub use packed::PackedWeight;
pub use parallel::threads;
pub use softmax::softmax_last_dim;
