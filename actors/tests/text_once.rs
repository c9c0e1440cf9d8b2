//! The text of a picture is conditioned on once: whatever the steps and patches, each rank projects
//! it and computes cross-attention keys and values one time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ditmesh_actors::request::GenerateRequest;
use ditmesh_model::conditioning::{Conditioning, LatentGrid};
use ditmesh_model::error::ModelError;
use ditmesh_model::pipeline::LoadedParts;
use ditmesh_model::spec::ModelSpec;
use ditmesh_model::transformer::{ForwardPass, Transformer};
use ditmesh_transport::InProcessHub;

use crate::harness::{Golden, degrees, run_adapted};

/// A partition that counts its runs. Only [`Transformer::begin`] is given the text, and a
/// [`ForwardPass`] has no way to it but what was made there.
struct Counted {
    inner: Arc<dyn Transformer>,
    begun: Arc<AtomicUsize>,
}

impl Transformer for Counted {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn blocks(&self) -> Range<usize> {
        self.inner.blocks()
    }

    fn bytes_read(&self) -> u64 {
        self.inner.bytes_read()
    }

    fn begin(
        &self,
        conditioning: &Conditioning,
        grid: LatentGrid,
    ) -> Result<Box<dyn ForwardPass>, ModelError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.inner.begin(conditioning, grid)
    }
}

#[test]
fn text_is_conditioned_on_once_per_rank_and_picture() {
    let golden = Golden::load("sigma_8x8", "square");
    let request = GenerateRequest { num_pipeline_patch: Some(4), ..golden.request(2) };
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    let adapt = move |parts: &mut LoadedParts| {
        let inner = Arc::clone(&parts.transformer);
        parts.transformer = Arc::new(Counted { inner, begun: Arc::clone(&counter) });
    };
    let hub = InProcessHub::new();
    let mesh = degrees(2, 2, 1);
    run_adapted(&golden.dir, mesh, &request, || hub.fabric(), Arc::new(adapt));
    // Eight steps, seven of them in four patches.
    assert_eq!(begun.load(Ordering::Relaxed), mesh.world_size());
}
