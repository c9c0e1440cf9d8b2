//! What is computed: loading a diffusers checkpoint and running its parts on one device.
//!
//! Owns the numerics (transformer blocks in phases, attention with log-sum-exp, text encoders,
//! VAE decoder, noise schedulers, noise). Knows nothing of networks, actors, async runtimes or
//! where its peers are: a parallel method sits between the phases of a block and reaches peers
//! only through [`exchange::Exchanger`].

pub mod attention;
#[cfg(feature = "builtin")]
pub mod builtin;
pub mod cache;
pub mod change;
pub mod checkpoint;
pub mod conditioning;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod exchange;
pub mod forward;
pub mod guidance;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod noise;
pub mod phase;
pub mod pipeline;
pub mod probe;
pub mod proceed;
#[cfg(feature = "builtin")]
pub mod random_pipeline;
pub mod rows;
pub mod scheduler;
pub mod spec;
pub mod step_cache;
pub mod strided;
pub mod text;
pub mod transformer;
pub mod vae;
