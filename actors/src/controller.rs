//! The controller's part of a run on the data plane: it sends what the user gave and receives the
//! result. It has no device and makes no tensors.
//!
//! Owns nothing beyond one run. Ends early when the run is aborted on its links or they close; who
//! does that is the coordinator.

use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::Transport;
use ditmesh_transport::error::TransportError;
use ditmesh_transport::ids::{Epoch, PeerId, RunId};
use ditmesh_transport::link::{PostRecv, Received, SendFrame};
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointStore};
use crate::executor::error::ExecuteError;
use crate::executor::wire_tensor;
use crate::plan::Plan;
use crate::plan::message::{Message, MessageKind};
use crate::plan::program::Op;
use crate::request::{FloatTensor, Output, PromptEmbeds, RgbImage};
use crate::trace_context;

/// Tensors that came with a request, and where its checkpoints go.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Initial latents.
    pub latents: Option<Arc<FloatTensor>>,
    /// Embeddings in place of the prompt.
    pub prompt_embeds: Option<Arc<PromptEmbeds>>,
    /// Where a run that does not begin with the first step goes on.
    pub resume: Option<Arc<Checkpoint>>,
    /// Keeps the run's newest checkpoint, when somebody wants it.
    pub checkpoints: Option<Arc<CheckpointStore>>,
}

/// Why the controller's part failed.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// A frame could not be sent or did not come.
    #[error("{what} with rank {peer}: {source}")]
    Frame {
        /// Which message.
        what: String,
        /// The rank.
        peer: usize,
        /// What the transport said.
        source: Box<TransportError>,
    },
    /// The result is not what the plan says.
    #[error(transparent)]
    Result(#[from] ExecuteError),
    /// The request promised a tensor that is not there.
    #[error("the run expects {0}, the request carries none")]
    MissingInput(&'static str),
    /// The run took longer than any run may.
    #[error("no result within {0:?}")]
    TooLong(Duration),
}

impl ControllerError {
    /// Whether a link is to blame, so that another mesh may do better.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Frame { .. })
    }
}

/// Sends the inputs of `run` and waits for its pictures, in their order, at most `limit`.
///
/// # Errors
/// [`ControllerError`].
pub async fn run(
    plan: &Plan,
    transport: &dyn Transport,
    run: RunId,
    epoch: Epoch,
    inputs: &Inputs,
    limit: Duration,
) -> Result<Vec<Output>, ControllerError> {
    let work = carry_out(plan, transport, run, epoch, inputs);
    tokio::time::timeout(limit, work).await.unwrap_or(Err(ControllerError::TooLong(limit)))
}

async fn carry_out(
    plan: &Plan,
    transport: &dyn Transport,
    run: RunId,
    epoch: Epoch,
    inputs: &Inputs,
) -> Result<Vec<Output>, ControllerError> {
    let mut sends = Vec::new();
    let mut expected = Vec::new();
    for op in plan.controller_program().ops {
        match op {
            Op::Send { peer, message } => {
                let payload = payload(plan, &message, inputs)?;
                let fail = failure(peer, &message);
                let link = transport.link(PeerId(peer as u32)).map_err(&fail)?;
                let bytes: &[u8] = bytemuck::cast_slice(&payload);
                let mut region = transport.allocate(bytes.len());
                region.bytes_mut().iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                let payload = region.freeze(bytes.len());
                let meta = wire_tensor::meta(&message, epoch);
                let sent = link.send(SendFrame { run, tag: message.tag(), meta, payload });
                sends.push((peer, message, sent));
            }
            Op::Recv { peer, message } => expected.push((peer, message)),
            _ => {}
        }
    }
    let mut output = None;
    // All frames of a checkpoint are posted at once, and those of the next one when it is complete:
    // ranks wait for that, see `Op::StepDone` in the executor.
    for frames in expected.chunk_by(|(_, a), (_, b)| (a.kind, a.step) == (b.kind, b.step)) {
        let mut posted = Vec::with_capacity(frames.len());
        for (peer, message) in frames {
            let link = transport.link(PeerId(*peer as u32)).map_err(failure(*peer, message))?;
            let len = message.bytes();
            let region = transport.allocate(len);
            posted.push(link.post_recv(PostRecv { run, tag: message.tag(), region, len }));
        }
        for ((peer, message), received) in frames.iter().zip(posted) {
            let received = received.await.map_err(failure(*peer, message))?;
            trace_context::link_current(received.meta.traceparent.as_deref());
            wire_tensor::check(&received, message, *peer, epoch)?;
            if message.kind != MessageKind::Checkpoint {
                output = Some(to_outputs(plan, &received)?);
            } else if let Some(store) = &inputs.checkpoints {
                let bytes = received.region.bytes().get(..received.len).unwrap_or_default();
                let rows = wire_tensor::floats(bytes).map_err(ExecuteError::from)?;
                store.put(plan, *peer, message, rows);
            }
        }
    }
    for (peer, message, sent) in sends {
        sent.await.map_err(failure(peer, &message))?;
    }
    for peer in plan.peers(plan.controller()) {
        if let Ok(link) = transport.link(PeerId(peer as u32)) {
            link.end_run(run);
        }
    }
    output.ok_or(ControllerError::MissingInput("a result"))
}

fn failure(peer: usize, message: &Message) -> impl Fn(TransportError) -> ControllerError + use<> {
    let what = message.to_string();
    move |source| ControllerError::Frame { what: what.clone(), peer, source: Box::new(source) }
}

/// The elements of an input message; the unconditional branch comes first.
fn payload(plan: &Plan, message: &Message, inputs: &Inputs) -> Result<Vec<f32>, ControllerError> {
    let embeds = inputs.prompt_embeds.as_ref();
    let missing = ControllerError::MissingInput;
    match message.kind {
        MessageKind::InitialLatents => {
            Ok(inputs.latents.as_ref().ok_or(missing("latents"))?.data.clone())
        }
        MessageKind::Resume => {
            Ok(inputs.resume.as_ref().ok_or(missing("a checkpoint"))?.state.data.clone())
        }
        MessageKind::TextEmbeds => {
            let embeds = embeds.ok_or(missing("prompt_embeds"))?;
            let negative = embeds.negative_prompt_embeds.as_ref();
            branches(plan, negative, &embeds.prompt_embeds)
        }
        _ => {
            let embeds = embeds.ok_or(missing("prompt_attention_mask"))?;
            let negative = embeds.negative_prompt_attention_mask.as_ref();
            branches(plan, negative, &embeds.prompt_attention_mask)
        }
    }
}

fn branches(
    plan: &Plan,
    negative: Option<&FloatTensor>,
    positive: &FloatTensor,
) -> Result<Vec<f32>, ControllerError> {
    let mut data = Vec::new();
    if plan.run.is_guided() {
        let negative = negative.ok_or(ControllerError::MissingInput("negative_prompt_embeds"))?;
        data.extend_from_slice(&negative.data);
    }
    data.extend_from_slice(&positive.data);
    Ok(data)
}

fn to_outputs(plan: &Plan, received: &Received) -> Result<Vec<Output>, ControllerError> {
    let bytes = received.region.bytes().get(..received.len).unwrap_or_default();
    // The plan has a picture at least, and the frame was checked against its shape.
    let images = bytes.chunks_exact((bytes.len() / plan.images().max(1)).max(1));
    let output = |bytes: &[u8]| {
        if plan.run.latent_output {
            let floats = wire_tensor::floats(bytes).map_err(ExecuteError::from)?;
            let grid = &plan.grid;
            let shape = vec![1, grid.channels, grid.height, grid.width];
            return Ok(Output::Latents(FloatTensor { shape, data: floats.to_vec() }));
        }
        let (width, height) = (plan.run.width, plan.run.height);
        Ok(Output::Image(RgbImage { width, height, data: bytes.to_vec() }))
    };
    images.map(output).collect()
}
