//! Both ends of every edge hold the same floats to the bit after every message, whatever the plan,
//! whatever other runs come in between, and wherever a run is cut off.
#![allow(clippy::unwrap_used)]

use ditmesh_model::spec::{Family, ModelId, ModelSpec, TextStream};
use ditmesh_model::vae::VaeSpec;
use ditmesh_transport::frame::Dtype;
use proptest::prelude::*;

use super::*;
use crate::plan::program::Op;
use crate::plan::resolve;
use crate::request::{Degrees, GenerateRequest, Wire, WireDtype};

fn model() -> ModelSpec {
    ModelSpec {
        id: ModelId(1),
        family: Family::PixArt,
        text_stream: TextStream::Cross,
        long_skips: false,
        blocks: 4,
        heads: 4,
        head_dim: 3,
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

/// What a plan of these tests differs in.
#[derive(Clone, Debug)]
struct Case {
    stages: u32,
    ulysses: u32,
    patches: u32,
    rows: u32,
    images: usize,
    guided: bool,
    steps: u32,
    sync_every: u32,
    dtype: WireDtype,
    refresh_every: u32,
}

fn case() -> impl Strategy<Value = Case> {
    let mesh = (2u32..=4, 1u32..=3, 1u32..=5, 5u32..=9);
    let batch = (1usize..=4, any::<bool>());
    let steps = (1u32..=7, 0u32..=3);
    let wire = (prop::sample::select(WireDtype::NAMES[1..].to_vec()), 0u32..=4);
    (mesh, batch, steps, wire).prop_map(|(mesh, batch, steps, wire)| Case {
        stages: mesh.0,
        ulysses: mesh.1,
        patches: mesh.2,
        rows: mesh.3,
        images: batch.0,
        guided: batch.1,
        steps: steps.0,
        sync_every: steps.1,
        dtype: wire.0.1,
        refresh_every: wire.1,
    })
}

fn plan(case: &Case) -> Plan {
    let degrees = Degrees {
        pipefusion_degree: case.stages,
        ulysses_degree: case.ulysses,
        ..Degrees::default()
    };
    let wire = Wire {
        pipefusion: case.dtype,
        residual: true,
        refresh_every: case.refresh_every,
        ..Wire::default()
    };
    let request = GenerateRequest {
        height: Some(case.rows * 16),
        width: Some(48),
        num_inference_steps: case.steps,
        num_pipeline_patch: Some(case.patches),
        sync_every: case.sync_every,
        guidance_scale: if case.guided { 4.5 } else { 1.0 },
        wire: Some(wire),
        ..GenerateRequest::default()
    };
    let mut run = resolve::resolve(&request, &model(), degrees).unwrap();
    run.images = vec![run.images[0].clone(); case.images];
    run.vae_parallel = false;
    Plan::new(degrees, &model(), &run).unwrap()
}

/// Activations whose values drift from step to step, as those of a denoising model do.
struct Values(u64);

impl Values {
    fn next(&mut self) -> f32 {
        // xorshift64*: the high bits are as good as random.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        high as f32 / (1 << 23) as f32 - 1.0
    }

    /// Outliers of some hundreds among numbers around one.
    fn activation(&mut self, message: &Message) -> Vec<f32> {
        let drift = 1.0 + 0.05 * f32::from(message.step);
        let count = message.shape.iter().product();
        let value = |index: usize| if index.is_multiple_of(7) { 300.0 } else { 1.0 };
        (0..count).map(|index| drift * value(index) + 0.1 * self.next()).collect()
    }
}

/// One run's edges: for every rank the messages to the next stage, in order, and both ends.
struct Edges {
    ends: Vec<Reconstructions>,
    /// Sender, receiver, message.
    messages: std::vec::IntoIter<(usize, usize, Message)>,
    values: Values,
}

impl Edges {
    fn of(plan: &Plan, seed: u64) -> Self {
        let ranks = plan.mesh.world_size();
        let ends =
            (0..ranks).map(|rank| Reconstructions::new(plan, plan.mesh.coordinates(rank)).unwrap());
        let ends = ends.collect();
        let mut messages = Vec::new();
        for rank in 0..ranks {
            let sent = plan.program(rank).ops.into_iter().filter_map(|op| match op {
                Op::Send { peer, message } if message.kind == MessageKind::Activation => {
                    Some((rank, peer, message))
                }
                _ => None,
            });
            messages.extend(sent);
        }
        // Stages take turns within a step: what matters is that each edge keeps its order.
        messages.sort_by_key(|(_, _, message)| message.step);
        Self { ends, messages: messages.into_iter(), values: Values(seed | 1) }
    }

    /// Sends the next message over its edge; false when there is none.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        let Some((from, to, message)) = self.messages.next() else { return Ok(false) };
        let values = self.values.activation(&message);
        let mut payload = vec![0; message.bytes()];
        let largest = self.largest_change(from, &message, &values);
        self.ends[from].write(&message, &values, &mut payload).unwrap();
        let mut read = vec![f32::NAN; values.len()];
        self.ends[to].read(&message, &payload, &mut read).unwrap();
        let (sender, receiver) = (&self.ends[from], &self.ends[to]);
        let bits = |floats: &[f32]| floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&sender.sent), bits(&receiver.received), "{}", &message);
        // The receiver goes on with what it holds, and is no further off than this one change is
        // coarse: what earlier ones lost is made good.
        let coarse = largest / if message.dtype == Dtype::I8Rows { 200.0 } else { 100.0 };
        for Piece { own, held, .. } in receiver.pieces(&message) {
            prop_assert_eq!(bits(&read[own.clone()]), bits(&receiver.received[held]));
            for (read, value) in read[own.clone()].iter().zip(&values[own]) {
                prop_assert!((read - value).abs() <= coarse, "{}: {} {}", &message, read, value);
            }
        }
        Ok(true)
    }

    /// The largest number that is coded.
    fn largest_change(&self, from: usize, message: &Message, values: &[f32]) -> f32 {
        let sender = &self.ends[from];
        let pairs = sender.pieces(message).into_iter().flat_map(|Piece { own, held, .. }| {
            let held = if message.residual { sender.sent[held].to_vec() } else { Vec::new() };
            let held = held.into_iter().chain(std::iter::repeat(0.0));
            values[own]
                .iter()
                .zip(held)
                .map(|(value, held)| (value - held).abs())
                .collect::<Vec<_>>()
        });
        pairs.fold(0.0, f32::max)
    }

    fn floats(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        self.ends.iter().map(|end| (end.sent.clone(), end.received.clone())).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_of_an_edge_hold_the_same_after_every_message(case in case(), seed: u64) {
        let mut edges = Edges::of(&plan(&case), seed);
        let mut messages = 0;
        while edges.step()? {
            messages += 1;
        }
        prop_assert!(messages >= case.steps);
    }

    /// Two runs in one pipeline, in any order, one cut off anywhere and another in its place: each
    /// holds what it holds alone.
    #[test]
    fn runs_in_between_and_runs_cut_off_change_nothing(
        cases in (case(), case()),
        seed: u64,
        turns in prop::collection::vec(any::<bool>(), 1..200),
        cut in 0usize..60,
    ) {
        let plans = [plan(&cases.0), plan(&cases.1)];
        let alone = [0, 1].map(|run| {
            let mut edges = Edges::of(&plans[run], seed);
            while edges.step().unwrap() {}
            edges.floats()
        });
        let mut kept = Edges::of(&plans[0], seed);
        let mut other = Edges::of(&plans[1], seed ^ 0x5555);
        let mut turns = turns.into_iter().cycle();
        for _ in 0..cut {
            if turns.next() == Some(true) { kept.step()? } else { other.step()? };
        }
        // Aborted: its ends are gone, and a run of the same plan begins with its own.
        drop(other);
        let mut next = Edges::of(&plans[1], seed);
        let (mut more_kept, mut more_next) = (true, true);
        while more_kept || more_next {
            match turns.next() {
                Some(true) if more_kept => more_kept = kept.step()?,
                _ if more_next => more_next = next.step()?,
                _ => more_kept = kept.step()?,
            }
        }
        prop_assert!(kept.floats() == alone[0]);
        prop_assert!(next.floats() == alone[1]);
    }
}
