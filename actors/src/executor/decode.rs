//! Decoding on one rank: its band of the latent to pixels, and the picture put together of bands.
//!
//! Owns the [`BandExchanger`] over the rank's frames, and the pixel rows on the output rank. Does
//! not own who decodes what ([`crate::parallel::vae`]).

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use ditmesh_model::error::ModelError;
use ditmesh_model::pipeline::LoadedParts;
use ditmesh_model::vae::exchange::BandExchanger;
use ditmesh_model::vae::phase::{BandExchange, DecodeShape};
use ditmesh_model::vae::{DecodeTask, to_rgb8};

use super::error::ExecuteError;
use super::mailbag::Mailbag;
use crate::plan::Plan;
use crate::plan::mesh::Coordinates;
use crate::plan::message::Message;

/// The decoders of one picture, as the numerics see them.
struct BandGroup<'a> {
    bag: &'a mut Mailbag,
    /// Ranks in member order.
    ranks: Vec<usize>,
    /// The error behind a [`ModelError::Exchange`], with its type kept.
    error: Option<ExecuteError>,
}

impl BandGroup<'_> {
    fn keep(&mut self, error: ExecuteError) -> ModelError {
        let text = error.to_string();
        self.error = Some(error);
        ModelError::Exchange(text)
    }
}

impl BandExchanger for BandGroup<'_> {
    fn start(
        &mut self,
        exchange: &BandExchange,
        pieces: Vec<Option<Tensor>>,
    ) -> Result<(), ModelError> {
        for (member, piece) in pieces.into_iter().enumerate() {
            let (Some(piece), Some(&rank)) = (piece, self.ranks.get(member)) else { continue };
            let message = Message::of_band(exchange.id, piece.dims().to_vec());
            if let Err(error) = self.bag.send(rank, &message, &piece) {
                return Err(self.keep(error));
            }
        }
        Ok(())
    }

    fn wait(
        &mut self,
        exchange: &BandExchange,
        deadline: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError> {
        let mut pieces = Vec::with_capacity(exchange.receive.len());
        for (member, shape) in exchange.receive.iter().enumerate() {
            let (Some(shape), Some(&rank)) = (shape, self.ranks.get(member)) else {
                pieces.push(None);
                continue;
            };
            let message = Message::of_band(exchange.id, shape.clone());
            match self.bag.receive(rank, &message, deadline) {
                Ok(piece) => pieces.push(Some(piece)),
                Err(error) => return Err(self.keep(error)),
            }
        }
        Ok(pieces)
    }

    fn proceed(&mut self) -> Result<(), ModelError> {
        match self.bag.check_abort() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.keep(error)),
        }
    }
}

/// What a rank holds of a picture while it is decoded.
#[derive(Default)]
pub(super) struct Picture {
    /// Latent rows that were dealt to this rank.
    pub(super) latents: Option<Tensor>,
    /// Pixel rows by rank, u8 `[rows, width, 3]`.
    pub(super) bands: Vec<(usize, Tensor)>,
}

/// The rows of the whole latent `[1, C, F, H, W]` that decoder `rank` starts from.
pub(super) fn rows_for(plan: &Plan, rank: usize, whole: &Tensor) -> Result<Tensor, ExecuteError> {
    let shape = plan.decode_shape(plan.mesh.coordinates(rank));
    let shape = shape.ok_or(ExecuteError::Order { op: "dealing latents", missing: "a band" })?;
    let rows = shape.latent_rows(shape.member);
    Ok(whole.narrow(3, rows.start, rows.len())?)
}

/// Decodes this rank's band of `rows` (`[1, C, 1, rows, W]`, see [`DecodeShape::latent_rows`]) to
/// u8 `[band * f, width, 3]`.
pub(super) fn band(
    plan: &Plan,
    parts: &LoadedParts,
    (at, shape): (Coordinates, &DecodeShape),
    rows: &Tensor,
    (bag, wait_limit): (&mut Mailbag, Duration),
) -> Result<Tensor, ExecuteError> {
    let decoder = parts.vae()?;
    let task = DecodeTask { shape, wait_limit };
    let mut group = BandGroup { bag, ranks: plan.decode_ranks(at.data), error: None };
    let pixels = match decoder.decode_band(rows, &task, &mut group) {
        Ok(pixels) => pixels,
        Err(error) => return Err(group.error.take().unwrap_or(ExecuteError::Model(error))),
    };
    let missing = ExecuteError::Order { op: "decoding", missing: "a band" };
    let bytes = to_rgb8(&pixels.ok_or(missing)?)?;
    let dims = [shape.band().len() * plan.model.vae_scale_factor, plan.run.width as usize, 3];
    if bytes.len() != dims.iter().product::<usize>() {
        let what = format!("the VAE made {} bytes for a picture of {dims:?}", bytes.len());
        return Err(ModelError::Invalid(what).into());
    }
    Ok(Tensor::from_vec(bytes, &dims, &Device::Cpu)?)
}

/// The picture of its bands, in member order.
pub(super) fn assemble(
    plan: &Plan,
    at: Coordinates,
    mut bands: Vec<(usize, Tensor)>,
) -> Result<Tensor, ExecuteError> {
    let ranks = plan.decode_ranks(at.data);
    bands.sort_by_key(|(rank, _)| ranks.iter().position(|other| other == rank));
    let bands: Vec<Tensor> = bands.into_iter().map(|(_, rows)| rows).collect();
    Ok(Tensor::cat(&bands, 0)?)
}
