//! `ditmesh`: an actor-based engine that spreads one generation of a Diffusion Transformer over
//! the devices of a cluster.
//!
//! Owns the short names an embedding program uses, and the files that pictures and latents are
//! kept in with their recipe. Everything that happens is in `ditmesh-actors`, everything that is
//! computed in `ditmesh-model`. Invariant: as a library it installs no subscriber, no runtime and
//! no panic hook.
//!
//! ```no_run
//! use ditmesh::{Engine, GenerateRequest, Manifest, ModelSource};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::start(Manifest::in_process(ModelSource::Builtin, 2, 1))?;
//! let picture = engine.generate(GenerateRequest::new("a red apple")).blocking_finish()?;
//! # drop(picture);
//! engine.shutdown();
//! # Ok(())
//! # }
//! ```

pub mod atomic_file;
pub mod likeness;
pub mod picture;
pub mod recipe;
pub mod tensor_file;
pub mod trace_file;

pub use ditmesh_actors::client::{ClientError, ClusterClient};
pub use ditmesh_actors::engine::{Engine, EngineError};
pub use ditmesh_actors::generation::{GenerateError, GenerationHandle};
pub use ditmesh_actors::manifest::{self, Manifest, ManifestError};
pub use ditmesh_actors::request::{
    Axis, AxisTraffic, Degrees, Dtype, Event, FloatTensor, GenerateRequest, Generation,
    IMAGES_PER_PROMPT_MAX, ModelSource, OpTime, Output, OutputKind, PromptEmbeds, RankReport,
    Report, Resumption, RgbImage, RunTime, STEP_CACHE_REUSES_MAX, STEP_CACHE_THRESHOLD, StepCache,
    StepDecision, WIRE_REFRESH_EVERY, Wire, WireDtype, WireDtypeError,
};
pub use ditmesh_actors::status::ClusterStatus;
