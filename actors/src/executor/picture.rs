//! From final latents to the picture: rows put together, decoded whole or in bands.
//!
//! Owns no state beside the executor's. How a band is decoded is in `decode.rs`.

use candle_core::Tensor;
use ditmesh_model::rows::RowSet;

use super::error::ExecuteError;
use super::{Executor, decode};
use crate::plan::program::Patch;
use crate::request::Event;

impl Executor {
    /// Puts the rows of all sequence ranks together in raster order.
    pub(super) fn gather(&mut self) -> Result<(), ExecuteError> {
        let group = self.plan.mesh.sequence_group(self.at);
        let mut rows = std::mem::take(&mut self.final_rows);
        if !self.plan.rows(self.at.sp, Patch::All).is_empty() {
            rows.push((self.rank, self.latents.get(Patch::All)?));
        }
        let sets: Vec<(RowSet, Tensor)> = rows
            .into_iter()
            .filter_map(|(rank, x)| Some((group.iter().position(|&r| r == rank)?, x)))
            .map(|(sp, x)| (self.plan.rows(sp, Patch::All), x))
            .collect();
        let height = self.plan.grid.patch_size;
        let mut whole = Vec::with_capacity(self.plan.grid.token_rows());
        for row in 0..self.plan.grid.token_rows() {
            let found = sets.iter().find_map(|(set, x)| Some((set.position(row)?, x)));
            let missing = ExecuteError::Order { op: "gathering", missing: "a row" };
            let (position, x) = found.ok_or(missing)?;
            whole.push(x.narrow(3, position * height, height)?);
        }
        self.result = Some(Tensor::cat(&whole, 3)?);
        Ok(())
    }

    /// This rank's band (or the whole latent) to pixels.
    pub(super) fn decode(&mut self) -> Result<(), ExecuteError> {
        let output = self.plan.is_output(self.at);
        let shape = self.plan.decode_shape(self.at);
        let missing = ExecuteError::Order { op: "decoding", missing: "latents" };
        let shape = shape.ok_or(ExecuteError::Order { op: "decoding", missing: "a band" })?;
        let rows = match output {
            true => {
                let whole = self.result.take().ok_or(missing)?;
                decode::rows_for(&self.plan, self.rank, &whole)?
            }
            false => self.picture.latents.take().ok_or(missing)?,
        };
        let rows = rows.to_device(&self.device)?;
        // The pictures of a batch, which are never cut into bands, one after another.
        let mut pictures = Vec::with_capacity(self.plan.images());
        for image in 0..self.plan.images() {
            let place = (&mut self.bag, self.wait_limit);
            let latents = rows.narrow(0, image, 1)?;
            let part = (self.at, &shape);
            pictures.push(decode::band(&self.plan, &self.parts, part, &latents, place)?);
        }
        let rows = Tensor::cat(&pictures, 0)?;
        if output && shape.active() > 1 {
            self.picture.bands.push((self.rank, rows));
            return Ok(());
        }
        self.result = Some(rows);
        self.report(Event::Decoded);
        Ok(())
    }

    pub(super) fn assemble(&mut self) -> Result<(), ExecuteError> {
        let bands = std::mem::take(&mut self.picture.bands);
        self.result = Some(decode::assemble(&self.plan, self.at, bands)?);
        self.report(Event::Decoded);
        Ok(())
    }
}
