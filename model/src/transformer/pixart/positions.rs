//! Sinusoidal embeddings: of timesteps and sizes, and of the patches' places.
//!
//! Owns the numbers, computed as diffusers does: positions and frequencies rounded to f32 or kept
//! in f64 exactly where it does so. Sines come from the `libm` crate, so all hosts agree.

use candle_core::{Device, Result, Tensor};

use super::config::PixArtConfig;
use super::tensors::SINUSOID;
use crate::conditioning::LatentGrid;
use crate::rows::RowSet;

/// Longest period of the sinusoids.
const PERIOD_MAX: f64 = 10_000.0;

/// `get_timestep_embedding` with `flip_sin_to_cos` and `downscale_freq_shift = 0`: cosines, then
/// sines, f32 `[values, 256]`.
///
/// Frequencies are rounded to f32 as diffusers does. At a timestep of 999 their last bit shows as
/// 1e-6 in the model's output, and PyTorch's own `exp` rounds a few of them the other way.
pub(super) fn sinusoid(values: &[f64], device: &Device) -> Result<Tensor> {
    let half = SINUSOID / 2;
    let mut rows = Vec::with_capacity(values.len() * SINUSOID);
    for &value in values {
        let angle = |index: usize| {
            let exponent = -(PERIOD_MAX.ln() as f32) * index as f32 / half as f32;
            f64::from(value as f32 * libm::exp(f64::from(exponent)) as f32)
        };
        rows.extend((0..half).map(|index| libm::cos(angle(index)) as f32));
        rows.extend((0..half).map(|index| libm::sin(angle(index)) as f32));
    }
    Tensor::from_vec(rows, (values.len(), SINUSOID), device)
}

/// The position embedding of a grid: half of the channels depend on the column alone and half on
/// the row alone, so two small tables stand for it.
pub(super) struct Positions {
    /// f32 `[1, columns, hidden / 2]`.
    columns: Tensor,
    /// f32 `[rows, 1, hidden / 2]`.
    rows: Tensor,
}

impl Positions {
    /// Tables for `grid`, which may differ from the size the model was trained at in both axes.
    pub(super) fn new(config: &PixArtConfig, grid: LatentGrid, device: &Device) -> Result<Self> {
        let half = config.hidden() / 2;
        let table = |count: usize| -> Vec<f32> {
            let base = (config.sample_size / config.patch_size) as f64;
            let stretch = (count as f64 / base) as f32;
            let scale = config.interpolation_scale() as f32;
            let places = (0..count).map(|index| index as f32 / stretch / scale);
            places.flat_map(|place| half_embedding(f64::from(place), half)).collect()
        };
        let (rows, columns) = (grid.token_rows(), grid.width / grid.patch_size);
        Ok(Self {
            columns: Tensor::from_vec(table(columns), (1, columns, half), device)?,
            rows: Tensor::from_vec(table(rows), (rows, 1, half), device)?,
        })
    }

    /// The embedding of the tokens in `rows`, f32 `[n, hidden]`: column half first.
    pub(super) fn of_rows(&self, rows: &RowSet) -> Result<Tensor> {
        let (count, columns, half) = (rows.len(), self.columns.dim(1)?, self.columns.dim(2)?);
        let parts = rows.ranges().iter().map(|range| self.rows.narrow(0, range.start, range.len()));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let row_half = Tensor::cat(&parts, 0)?.broadcast_as((count, columns, half))?;
        let column_half = self.columns.broadcast_as((count, columns, half))?;
        Tensor::cat(&[column_half, row_half], 2)?.reshape((count * columns, 2 * half))
    }
}

/// Sines, then cosines, of one coordinate at `width / 2` frequencies, in f64.
fn half_embedding(place: f64, width: usize) -> Vec<f32> {
    let count = width / 2;
    let angle = |index: usize| place / libm::pow(PERIOD_MAX, index as f64 / (width as f64 / 2.0));
    let sines = (0..count).map(|index| libm::sin(angle(index)) as f32);
    sines.chain((0..count).map(|index| libm::cos(angle(index)) as f32)).collect()
}
