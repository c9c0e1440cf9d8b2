//! Properties of plans: sound on the smallest window, every token computed once per step, bytes as
//! the papers say.

use ditmesh_actors::plan::mesh::Coordinates;
use ditmesh_actors::plan::message::MessageKind;
use ditmesh_actors::plan::program::Op;
use ditmesh_actors::plan::{Plan, bytes, check, resolve};
use ditmesh_actors::request::{Degrees, GenerateRequest, StepCache};
use ditmesh_model::spec::{Family, ModelId, ModelSpec, TextStream};
use ditmesh_model::vae::VaeSpec;
use proptest::prelude::*;

use crate::harness::{degrees, ring};

pub fn model(blocks: usize, heads: usize) -> ModelSpec {
    ModelSpec {
        id: ModelId(1),
        family: Family::PixArt,
        text_stream: TextStream::Cross,
        long_skips: false,
        blocks,
        heads,
        head_dim: 8,
        patch_size: 2,
        latent_channels: 4,
        sample_size: 32,
        vae_scale_factor: 8,
        vae: VaeSpec::default(),
        solver_history: 2,
        caption_channels: 24,
        text_tokens: 20,
        block_bytes: 1000,
        other_bytes: 1000,
    }
}

fn plan(model: &ModelSpec, degrees: Degrees, request: &GenerateRequest) -> Plan {
    let run = resolve::resolve(request, model, degrees).unwrap();
    Plan::new(degrees, model, &run).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_sound_and_computes_every_token_once(
        cfg in 1u32..=2,
        stages in 1u32..=4,
        (ulysses, rings) in (1u32..=4, 1u32..=4),
        patches in 1u32..=9,
        (sync_steps, sync_every) in (1u32..=3, 0u32..=3),
        steps in 1u32..=5,
        (rows, columns) in (4u32..=11, 1u32..=4),
        (latent_output, cached) in any::<(bool, bool)>(),
    ) {
        let model = model(5, 6);
        let request = GenerateRequest {
            height: Some(rows * 16),
            width: Some(columns * 16),
            num_inference_steps: steps,
            num_pipeline_patch: Some(patches),
            sync_steps,
            sync_every,
            step_cache: cached.then(StepCache::default),
            output: if latent_output {
                ditmesh_actors::request::OutputKind::Latent
            } else {
                ditmesh_actors::request::OutputKind::Image
            },
            ..GenerateRequest::default()
        };
        let degrees = ring(cfg, stages, ulysses, rings);
        let Ok(run) = resolve::resolve(&request, &model, degrees) else {
            prop_assert!(rings > 1 && ulysses * rings > rows / patches, "{degrees} refused");
            return Ok(());
        };
        let plan = Plan::new(degrees, &model, &run).unwrap();
        check::check(&plan).unwrap();
        tokens_once(&plan);
    }
}

/// Over all ranks of a branch, each (step, block, row) is computed exactly once.
fn tokens_once(plan: &Plan) {
    let rows = plan.grid.token_rows();
    let mut seen = vec![0u32; plan.steps() * plan.model.blocks * rows];
    for rank in 0..plan.mesh.world_size() {
        let at = plan.mesh.coordinates(rank);
        if at.cfg > 0 {
            continue;
        }
        for op in plan.program(rank).ops {
            let Op::Forward { step, patch, blocks } = op else { continue };
            for row in plan.rows(at.sp, patch).ranges().iter().cloned().flatten() {
                for block in blocks.clone() {
                    seen[(step * plan.model.blocks + block) * rows + row] += 1;
                }
            }
        }
    }
    assert!(seen.iter().all(|&count| count == 1));
}

/// A mesh is linked before its runs are known: no run may need an edge that is not there.
#[test]
fn no_run_needs_a_link_that_its_mesh_lacks() {
    let model = model(8, 8);
    let exact = [(1, 4, 4, 1), (1, 8, 2, 1), (2, 2, 4, 1), (1, 2, 8, 1), (2, 1, 3, 1)];
    let rings = [(1, 1, 1, 4), (1, 2, 1, 4), (2, 1, 2, 2), (1, 2, 2, 3), (1, 1, 4, 4)];
    for (cfg, stages, ulysses, rings) in exact.into_iter().chain(rings) {
        let degrees = ring(cfg, stages, ulysses, rings);
        let widest = Plan::widest(degrees, &model).unwrap();
        for (patches, rows) in [(1, 8), (2, 8), (4, 9), (8, 8), (8, 40)] {
            let request = GenerateRequest {
                height: Some(rows * 16),
                num_pipeline_patch: Some(patches),
                step_cache: Some(StepCache::default()),
                ..GenerateRequest::default()
            };
            let Ok(run) = resolve::resolve(&request, &model, degrees) else {
                assert!(rings > 1, "{degrees} with {patches} patches of {rows} rows");
                continue;
            };
            let plan = Plan::new(degrees, &model, &run).unwrap();
            for member in 0..=plan.controller() {
                let links = widest.peers(member);
                let used = plan.peers(member);
                assert!(used.iter().all(|peer| links.contains(peer)), "{degrees}, {patches}");
            }
        }
    }
}

#[test]
fn ulysses_sends_what_the_formula_says() {
    for u in [2, 4] {
        let model = model(4, 8);
        let request = GenerateRequest { num_inference_steps: 3, ..GenerateRequest::default() };
        let plan = plan(&model, degrees(1, 1, u), &request);
        for rank in 0..u as usize {
            let sent = bytes::sent_by_kind(&plan, rank);
            let total = sent[&MessageKind::UlyssesQkv] + sent[&MessageKind::UlyssesOut];
            assert_eq!(total, 3 * bytes::ulysses_step_bytes(&plan), "ulysses {u}, rank {rank}");
        }
    }
}

/// Ring, USP, and both under PipeFusion: what goes around is `2 (R-1)/S` maps per layer.
#[test]
fn sequence_methods_send_what_the_formulas_say() {
    let model = model(4, 8);
    let meshes = [(1, 1, 2), (1, 1, 4), (1, 2, 2), (1, 2, 4), (1, 4, 2), (2, 2, 2), (4, 1, 4)];
    for (stages, ulysses, rings) in meshes {
        for patches in [1, 2] {
            let request = GenerateRequest {
                height: Some(256),
                num_inference_steps: 3,
                num_pipeline_patch: Some(patches),
                ..GenerateRequest::default()
            };
            let plan = plan(&model, ring(1, stages, ulysses, rings), &request);
            for rank in 0..plan.mesh.world_size() {
                let sent = bytes::sent_by_kind(&plan, rank);
                let sum = |kinds: [MessageKind; 2]| -> u64 {
                    kinds.iter().filter_map(|kind| sent.get(kind)).sum()
                };
                let around = sum([MessageKind::RingKv, MessageKind::RingFresh]);
                assert_eq!(around, 3 * bytes::ring_step_bytes(&plan), "{}", plan.mesh.degrees());
                let across = sum([MessageKind::UlyssesQkv, MessageKind::UlyssesOut]);
                assert_eq!(across, 3 * bytes::ulysses_step_bytes(&plan), "{patches} patches");
                assert_eq!(sent.contains_key(&MessageKind::RingFresh), patches > 1);
            }
        }
    }
}

#[test]
fn pipefusion_sends_one_activation_map_per_step() {
    let model = model(4, 8);
    let request = GenerateRequest {
        num_inference_steps: 6,
        num_pipeline_patch: Some(4),
        ..GenerateRequest::default()
    };
    let plan = plan(&model, degrees(1, 4, 1), &request);
    for stage in 0..3 {
        let rank = plan.mesh.rank(Coordinates { data: 0, cfg: 0, stage, sp: 0 });
        let sent = bytes::sent_by_kind(&plan, rank);
        assert_eq!(sent[&MessageKind::Activation], 6 * bytes::activation_bytes(&plan));
    }
    let sent = bytes::sent_by_kind(&plan, 3);
    assert_eq!(sent[&MessageKind::Sample], 5 * bytes::latent_bytes(&plan));
    assert!(!sent.contains_key(&MessageKind::Activation));
}

#[test]
fn cfg_sends_one_latent_per_step() {
    let model = model(4, 8);
    let request = GenerateRequest { num_inference_steps: 6, ..GenerateRequest::default() };
    let plan = plan(&model, degrees(2, 1, 1), &request);
    for rank in 0..2 {
        let sent = bytes::sent_by_kind(&plan, rank);
        assert_eq!(sent[&MessageKind::Prediction], 6 * bytes::latent_bytes(&plan));
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_what_would_fit() {
    let model = model(4, 6);
    let refuse = |request: GenerateRequest, degrees: Degrees, expected: &str| {
        let error = resolve::resolve(&request, &model, degrees).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    let plain = GenerateRequest::default;
    let one = Degrees::default();
    refuse(GenerateRequest { height: Some(100), ..plain() }, one, "96 or 112");
    refuse(GenerateRequest { width: Some(0), ..plain() }, one, "width 0");
    refuse(GenerateRequest { num_inference_steps: 0, ..plain() }, one, "num_inference_steps 0");
    refuse(GenerateRequest { guidance_scale: f32::NAN, ..plain() }, one, "guidance_scale");
    refuse(GenerateRequest { guidance_scale: 1.0, ..plain() }, degrees(2, 1, 1), "cfg_degree");
    refuse(plain(), degrees(1, 5, 1), "4 blocks");
    let low = GenerateRequest { height: Some(64), ..plain() };
    refuse(low, degrees(1, 1, 13), "4 token rows and 6 attention heads");
    refuse(plain(), degrees(3, 1, 1), "two branches");
    let low = GenerateRequest { height: Some(48), ..plain() };
    refuse(low.clone(), ring(1, 1, 1, 4), "3 would fit");
    let strips = GenerateRequest { num_pipeline_patch: Some(3), ..low };
    refuse(strips, ring(1, 1, 1, 2), "3 token rows in 3 patches");
    let no_sync = GenerateRequest { sync_steps: 0, num_pipeline_patch: Some(4), ..plain() };
    refuse(no_sync, degrees(1, 2, 1), "sync_steps 0");
    refuse(plain(), ring(1, 1, 1, 257), "at most 256 ranks");
    let error = resolve::check_degrees(&model, degrees(2, 2, 1), 3).unwrap_err().to_string();
    assert!(error.contains("needs 4 devices, 3 are there"), "{error}");
}

#[test]
fn uneven_rows_warn_and_still_plan() {
    let model = model(4, 6);
    let request = GenerateRequest {
        height: Some(80),
        num_pipeline_patch: Some(4),
        ..GenerateRequest::default()
    };
    let plan = plan(&model, degrees(1, 2, 1), &request);
    assert_eq!(plan.strips.len(), 3);
    assert_eq!(plan.warnings.len(), 1);
}
