//! Convolution of stride 1 that keeps the size, over a picture or over a band of its rows.
//!
//! Owns the product by im2col in bands of a few rows (one matrix product per band, bounded
//! memory). Invariant: what lies above and below the rows given is either in the [`Halo`] or zero;
//! left and right is always zero.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::planes::with_elements;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::{matmul, threads};

/// Bytes of unfolded input that a convolution holds at a time.
pub const COLUMN_BYTES_MAX: usize = 32 << 20;

/// The rows next to a band that belong to its neighbours: f32 `[B, C, kernel / 2, W]` each, or
/// `None` at the edge of the picture, where zeros stand.
#[derive(Clone, Debug, Default)]
pub struct Halo {
    /// Rows above.
    pub above: Option<Tensor>,
    /// Rows below.
    pub below: Option<Tensor>,
}

/// `Conv2d` with an odd kernel, stride 1 and padding `kernel / 2`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// f32 `[output, input * kernel * kernel]`.
    weight: Tensor,
    bias: Vec<f32>,
    input: usize,
    kernel: usize,
}

impl Conv2d {
    /// A convolution by `weight`, f32 `[output, input, kernel, kernel]`, and `bias`.
    ///
    /// # Errors
    /// When the kernel is not square and odd, or there is not one bias for each output.
    pub fn new(weight: &Tensor, bias: Vec<f32>) -> Result<Self, ModelError> {
        let (output, input, kernel, across) = weight.dims4()?;
        if kernel != across || kernel % 2 == 0 || bias.len() != output {
            return Err(ModelError::Invalid(format!(
                "convolution by {:?} with {} biases, expected \
                 an odd square kernel and {output} biases",
                weight.dims(),
                bias.len()
            )));
        }
        let weight = weight.reshape((output, input * kernel * kernel))?;
        Ok(Self { weight, bias, input, kernel })
    }

    /// Reads `<prefix>.weight` `[output, input, kernel, kernel]` and `<prefix>.bias` `[output]`.
    pub(super) fn load(
        weights: &Weights,
        prefix: &str,
        input: usize,
        output: usize,
        kernel: usize,
        device: &Device,
    ) -> Result<Self, CheckpointError> {
        let name = format!("{prefix}.weight");
        let bias = format!("{prefix}.bias");
        let shape = [output, input, kernel, kernel];
        let fail = |tensor: &str| {
            let (path, tensor) = (weights.path().to_owned(), tensor.to_owned());
            move |source| CheckpointError::Tensor { path, tensor, source: Box::new(source) }
        };
        let weight = weights.get(&name, &shape, DType::F32, device)?;
        let values = weights.get(&bias, &[output], DType::F32, &Device::Cpu)?;
        Ok(Self {
            weight: weight.reshape((output, input * kernel * kernel)).map_err(fail(&name))?,
            bias: values.to_vec1().map_err(fail(&bias))?,
            input,
            kernel,
        })
    }

    /// Rows a neighbour's edge reaches into: `kernel / 2`.
    pub fn reach(&self) -> usize {
        self.kernel / 2
    }

    /// f32 `[B, input, H, W]` to `[B, output, H, W]`.
    ///
    /// # Errors
    /// When shapes do not fit, or the tensor backend fails.
    pub fn forward(&self, x: &Tensor, halo: &Halo) -> Result<Tensor, ModelError> {
        let (_, channels, _, _) = x.dims4()?;
        if channels != self.input {
            return Err(ModelError::Invalid(format!(
                "convolution of {} channels got a picture {:?}",
                self.input,
                x.dims()
            )));
        }
        let x = self.with_halo(x, halo)?;
        if x.device().is_cpu() {
            return self.on_cpu(&x);
        }
        let (reach, output) = (self.reach(), self.bias.len());
        let padded = x.pad_with_zeros(3, reach, reach)?;
        let weight = self.weight.reshape((output, self.input, self.kernel, self.kernel))?;
        let bias = Tensor::from_slice(&self.bias, (1, output, 1, 1), x.device())?;
        Ok(padded.conv2d(&weight, 0, 1, 1, 1)?.broadcast_add(&bias)?)
    }

    /// The rows of `x` between those above and below, contiguous.
    fn with_halo(&self, x: &Tensor, halo: &Halo) -> Result<Tensor, ModelError> {
        let (batch, channels, _, width) = x.dims4()?;
        if self.reach() == 0 {
            return Ok(x.contiguous()?);
        }
        let shape = (batch, channels, self.reach(), width);
        let side = |rows: &Option<Tensor>| match rows {
            Some(rows) if rows.dims() == [batch, channels, self.reach(), width] => Ok(rows.clone()),
            Some(rows) => Err(ModelError::Invalid(format!(
                "halo has shape {:?}, expected {shape:?}",
                rows.dims()
            ))),
            None => Ok(Tensor::zeros(shape, DType::F32, x.device())?),
        };
        Ok(Tensor::cat(&[&side(&halo.above)?, x, &side(&halo.below)?], 2)?)
    }

    /// `x` has its halo rows; the result has not.
    fn on_cpu(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, channels, padded_height, width) = x.dims4()?;
        let height = padded_height - 2 * self.reach();
        let output = self.bias.len();
        let plane = height * width;
        let taps = self.input * self.kernel * self.kernel;
        let band = (COLUMN_BYTES_MAX / (4 * taps * width).max(1)).clamp(1, height.max(1));
        let mut out = vec![0f32; batch * output * plane];
        for (image, out) in out.chunks_mut((output * plane).max(1)).enumerate() {
            for first in (0..height).step_by(band) {
                let rows = band.min(height - first);
                let columns = with_elements(x, |x| {
                    let size = channels * padded_height * width;
                    let picture = &x[image * size..][..size];
                    Ok(self.unfold(picture, padded_height, width, first, rows))
                })?;
                let columns = Tensor::from_vec(columns, (taps, rows * width), &Device::Cpu)?;
                let product = matmul(&self.weight, &columns)?;
                with_elements(&product, |product| {
                    let lines = product.chunks(rows * width).zip(&self.bias).enumerate();
                    for (channel, (line, bias)) in lines {
                        let target = &mut out[channel * plane + first * width..][..rows * width];
                        target.iter_mut().zip(line).for_each(|(out, x)| *out = x + bias);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(Tensor::from_vec(out, (batch, output, height, width), &Device::Cpu)?)
    }

    /// The neighbourhoods of `rows` rows from `first`: row `(channel, ky, kx)`, column `(y, x)`.
    fn unfold(
        &self,
        picture: &[f32],
        height: usize,
        width: usize,
        first: usize,
        rows: usize,
    ) -> Vec<f32> {
        let (kernel, reach) = (self.kernel, self.reach());
        let line = rows * width;
        let mut columns = vec![0f32; self.input * kernel * kernel * line];
        let fill = |(channel, taps): (usize, &mut [f32])| {
            let plane = &picture[channel * height * width..][..height * width];
            for (tap, out) in taps.chunks_mut(line).enumerate() {
                let (ky, kx) = (tap / kernel, tap % kernel);
                // Column x of the result is column x + kx - reach of the picture.
                let (from, to) = (kx.saturating_sub(reach), reach.saturating_sub(kx));
                let len = width.saturating_sub(from + to);
                for (y, out) in out.chunks_mut(width).enumerate() {
                    let source = &plane[(first + y + ky) * width..][..width];
                    out[to..to + len].copy_from_slice(&source[from..from + len]);
                }
            }
        };
        let taps = kernel * kernel * line;
        if threads() > 1 {
            columns.par_chunks_mut(taps).enumerate().for_each(fill);
        } else {
            columns.chunks_mut(taps).enumerate().for_each(fill);
        }
        columns
    }
}
