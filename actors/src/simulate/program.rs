//! A member's program with a duration on every action.
//!
//! Owns what each operation costs in a simulation and how many bytes a frame has: those of the
//! plan's message, plus a joint text stream's share where one travels.

use ditmesh_model::phase::{ForwardShape, Phase};
use ditmesh_model::spec::TextStream;

use super::{Setting, SpanKind};
use crate::cost::device::DeviceProfile;
use crate::cost::phase::{self, PhaseContext};
use crate::plan::mesh::Coordinates;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::{Op, Patch};
use crate::plan::{Action, Plan};
use crate::request::Dtype;

/// One action.
#[derive(Clone, Copy, Debug)]
pub(super) enum Timed {
    Compute(f64, SpanKind),
    Send { to: usize, tag: u64, bytes: u64, step: usize },
    Recv { from: usize, tag: u64 },
    StepDone(usize),
}

/// The program of a member, the controller included.
pub(super) fn timed<'a>(
    setting: &'a Setting<'a>,
    member: usize,
) -> Box<dyn Iterator<Item = Timed> + 'a> {
    let plan = setting.plan;
    let Some(device) = setting.cluster.devices.get(member).filter(|_| member < plan.controller())
    else {
        let ops = plan.controller_program().ops.into_iter();
        let at = plan.mesh.coordinates(0);
        return Box::new(ops.flat_map(move |op| {
            let actions = plan.expand(at, op).into_iter();
            actions.filter_map(move |action| transfer(setting, &action, at))
        }));
    };
    let at = plan.mesh.coordinates(member);
    let profile = &device.profile;
    Box::new(
        plan.program(member).ops.into_iter().flat_map(move |op| of_op(setting, profile, at, op)),
    )
}

fn of_op(setting: &Setting<'_>, device: &DeviceProfile, at: Coordinates, op: Op) -> Vec<Timed> {
    let (plan, model, dtype) = (setting.plan, setting.model, setting.dtype);
    let other = |seconds| vec![Timed::Compute(seconds, SpanKind::Other)];
    match &op {
        Op::Encode => other(phase::encode(model, plan.branches(), dtype, device)),
        Op::Condition => {
            let blocks = plan.blocks(at.stage).len();
            other(phase::condition(model, blocks, plan.batch(), dtype, device))
        }
        Op::Denoise { patch, .. } => {
            let shape = plan.latent_shape(1, plan.rows(at.sp, *patch).len());
            other(phase::denoise(shape.iter().product(), device))
        }
        Op::StepDone { step } => vec![Timed::StepDone(*step)],
        Op::Forward { patch, blocks, .. } => {
            let shape = plan.forward_shape(at, *patch, blocks.clone());
            forward(setting, device, at, *patch, &shape, op.clone())
        }
        _ => {
            let actions = plan.expand(at, op).into_iter();
            let timed = |action: Action| match &action {
                Action::Layer { flops, .. } => {
                    // The decoder is f32 throughout.
                    let rate = device.gemm_flops_per_s.of(Dtype::F32);
                    Some(Timed::Compute(*flops as f64 / rate + device.phase_s, SpanKind::Other))
                }
                _ => transfer(setting, &action, at),
            };
            actions.filter_map(timed).collect()
        }
    }
}

fn forward(
    setting: &Setting<'_>,
    device: &DeviceProfile,
    at: Coordinates,
    patch: Patch,
    shape: &ForwardShape,
    op: Op,
) -> Vec<Timed> {
    let plan = setting.plan;
    let context = PhaseContext {
        model: setting.model,
        shape,
        text_tokens: text_tokens(setting, patch),
        dtype: setting.dtype,
    };
    let timed = |action: Action| match &action {
        Action::Compute(phase) => {
            let kind = match phase {
                Phase::Attend(_) => SpanKind::Attend,
                _ => SpanKind::Linear,
            };
            Some(Timed::Compute(phase::seconds(phase, &context, device), kind))
        }
        _ => transfer(setting, &action, at),
    };
    plan.expand(at, op).into_iter().filter_map(timed).collect()
}

/// Text tokens that run beside a patch.
fn text_tokens(setting: &Setting<'_>, patch: Patch) -> usize {
    let joint = setting.model.spec.text_stream == TextStream::Joint;
    let runs = setting.text_with_every_patch || !matches!(patch, Patch::Strip(1..));
    if joint && runs { setting.plan.text_tokens() } else { 0 }
}

fn transfer(setting: &Setting<'_>, action: &Action, at: Coordinates) -> Option<Timed> {
    match action {
        Action::Send(to, message) => Some(Timed::Send {
            to: *to,
            tag: message.tag().0,
            bytes: wire_bytes(setting, message, at),
            step: if is_of_step(message) { usize::from(message.step) } else { usize::MAX },
        }),
        Action::Recv(from, message) => Some(Timed::Recv { from: *from, tag: message.tag().0 }),
        Action::Compute(_) | Action::Layer { .. } => None,
    }
}

fn is_of_step(message: &Message) -> bool {
    use MessageKind::{BandHalo, BandLatents, BandMap, BandMoments, FinalRows, InitialLatents};
    use MessageKind::{PixelRows, Result, TextEmbeds, TextMask};
    !matches!(
        message.kind,
        TextEmbeds
            | TextMask
            | InitialLatents
            | FinalRows
            | Result
            | BandLatents
            | BandMoments
            | BandHalo
            | BandMap
            | PixelRows
    )
}

/// Bytes of a frame on the wire. Hidden states, queries, keys and values bring their share of a
/// joint text stream: text is dealt to the sequence ranks like the image.
fn wire_bytes(setting: &Setting<'_>, message: &Message, at: Coordinates) -> u64 {
    use MessageKind::{Activation, RingFresh, RingKv, UlyssesOut, UlyssesQkv};
    let bytes = message.bytes() as u64;
    match message.kind {
        Activation | UlyssesQkv | UlyssesOut | RingKv | RingFresh => {
            bytes * with_text(setting, message, at) / UNIT
        }
        _ => bytes,
    }
}

/// One, in the fixed point of [`with_text`].
const UNIT: u64 = 1 << 20;

/// How much more a message of image tokens is with the text tokens that go with it.
fn with_text(setting: &Setting<'_>, message: &Message, at: Coordinates) -> u64 {
    let plan: &Plan = setting.plan;
    let patch = message.patch();
    let text = text_tokens(setting, patch);
    let image: usize = (0..plan.mesh.sequence()).map(|sp| plan.rows(sp, patch).len()).sum();
    let image = image * plan.grid.tokens_per_row();
    if text == 0 || image == 0 || at.sp >= plan.mesh.sequence() {
        return UNIT;
    }
    UNIT + UNIT * text as u64 / image as u64
}
