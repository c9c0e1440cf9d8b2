//! Behaviour of the actors crate on whole runs: one binary, so that candle is linked once.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]

mod batches;
mod engine;
#[cfg(feature = "cuda")]
mod gpu;
mod harness;
mod interleave;
#[cfg(feature = "builtin")]
mod memory;
mod meshes;
mod oracle;
mod paper;
mod paper_table;
mod parallel_vae;
mod pipefusion;
mod planner;
mod plans;
mod random_meshes;
mod replicas;
mod resume;
mod staleness;
mod step_cache;
mod sync_every;
mod text_once;
mod timeline;
mod tracking;
mod wire;
