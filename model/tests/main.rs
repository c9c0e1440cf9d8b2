//! Behaviour of the model crate, in one binary.

mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
mod elsewhere;
mod fixture;
mod noise;
mod pixart;
mod prompt_encoder;
mod schedulers;
mod text;
mod vae;
mod vae_bands;
