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
//! - Results are the same to the bit from run to run for a given pool size and instruction set.
//!   Row kernels contain no fused multiply-add, so they agree across instruction sets too.
//! - The instruction set is chosen once, at run time: AVX-512, AVX2 with FMA, or portable.

mod access;
mod activation;
mod exp;
mod flash;
mod fused_linear;
mod gemm;
mod isa;
mod merge;
mod norm;
mod parallel;
mod softmax;

pub use activation::{gelu_tanh, silu};
pub use flash::flash_attention;
pub use fused_linear::{Epilogue, fused_linear};
pub use gemm::matmul;
pub use isa::Isa;
pub use merge::merge_partials;
pub use norm::layer_norm_modulate;
pub use parallel::threads;
pub use softmax::softmax_last_dim;
