//! Group norm in two halves: sums over a picture or a band of it, and applying what they mean.
//!
//! Invariant: [`Moments`] of disjoint bands add up to those of the whole, so the norm of a picture
//! that is spread over ranks needs one exchange of a few numbers (sums in f64).

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::planes::with_elements;
use crate::checkpoint::{CheckpointError, Weights};
use crate::error::ModelError;
use crate::kernels::threads;

/// Added to a variance, as every norm of the decoder has it.
const EPSILON: f64 = 1e-6;

/// Sums over some elements, one for each image and group.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Sum of the elements, `B * groups` numbers.
    pub sums: Vec<f64>,
    /// Sum of their squares.
    pub squares: Vec<f64>,
    /// How many elements of one group were summed.
    pub count: u64,
}

impl Moments {
    /// Adds those of another band of the same pictures.
    pub fn add(&mut self, other: &Self) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| *sum += more);
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, more)| *sum += more);
        self.count += other.count;
    }
}

/// `GroupNorm` with gain and bias for each channel.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    gain: Vec<f32>,
    bias: Vec<f32>,
}

impl GroupNorm {
    /// A norm of `gain.len()` channels in `groups` groups.
    ///
    /// # Errors
    /// When the channels do not divide by the groups, or gain and bias differ in length.
    pub fn new(groups: usize, gain: Vec<f32>, bias: Vec<f32>) -> Result<Self, ModelError> {
        if groups == 0
            || gain.is_empty()
            || !gain.len().is_multiple_of(groups)
            || gain.len() != bias.len()
        {
            return Err(ModelError::Invalid(format!(
                "group norm of {groups} groups cannot have {} gains and {} biases",
                gain.len(),
                bias.len()
            )));
        }
        Ok(Self { groups, gain, bias })
    }

    /// Reads `<prefix>.weight` and `<prefix>.bias`, both `[channels]`.
    pub(super) fn load(
        weights: &Weights,
        prefix: &str,
        channels: usize,
        groups: usize,
    ) -> Result<Self, CheckpointError> {
        let read = |part: &str| {
            let name = format!("{prefix}.{part}");
            let tensor = weights.get(&name, &[channels], DType::F32, &Device::Cpu)?;
            tensor.to_vec1::<f32>().map_err(|source| CheckpointError::Tensor {
                path: weights.path().to_owned(),
                tensor: name,
                source: Box::new(source),
            })
        };
        Ok(Self { groups, gain: read("weight")?, bias: read("bias")? })
    }

    /// The norm of a whole picture, f32 `[B, C, H, W]` to the same.
    ///
    /// # Errors
    /// When the tensor backend fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        self.apply(x, &self.moments(x)?)
    }

    /// Sums over the rows of `x`, f32 `[B, C, H, W]`.
    ///
    /// # Errors
    /// When the tensor backend fails.
    pub fn moments(&self, x: &Tensor) -> Result<Moments, ModelError> {
        let (batch, channels, height, width) = x.dims4()?;
        let count = channels / self.groups * height * width;
        if x.device().is_cpu() {
            let sums = with_elements(x, |x| Ok(sums_of_groups(x, count)))?;
            let (sums, squares) = sums.into_iter().unzip();
            return Ok(Moments { sums, squares, count: count as u64 });
        }
        let grouped = x.reshape((batch * self.groups, count))?;
        let read = |sum: Tensor| sum.to_dtype(DType::F64)?.to_vec1::<f64>();
        Ok(Moments {
            sums: read(grouped.sum(D::Minus1)?)?,
            squares: read(grouped.sqr()?.sum(D::Minus1)?)?,
            count: count as u64,
        })
    }

    /// Normalises `x` by the `moments` of all the rows of its pictures.
    ///
    /// # Errors
    /// When the moments are not those of such pictures, or the tensor backend fails.
    pub fn apply(&self, x: &Tensor, moments: &Moments) -> Result<Tensor, ModelError> {
        let (batch, channels, height, width) = x.dims4()?;
        if moments.sums.len() != batch * self.groups || channels != self.gain.len() {
            return Err(ModelError::Invalid(format!(
                "group norm of {} channels in {} groups got a picture {:?} and sums of {} groups",
                self.gain.len(),
                self.groups,
                x.dims(),
                moments.sums.len()
            )));
        }
        let affine: Vec<(f32, f32)> =
            (0..batch * channels).map(|plane| self.affine(plane, channels, moments)).collect();
        if !x.device().is_cpu() {
            let (scale, shift): (Vec<f32>, Vec<f32>) = affine.into_iter().unzip();
            let on_device = |values| Tensor::from_vec(values, (batch, channels, 1, 1), x.device());
            return Ok(x.broadcast_mul(&on_device(scale)?)?.broadcast_add(&on_device(shift)?)?);
        }
        let plane_len = height * width;
        let out = with_elements(x, |x| {
            let mut out = x.to_vec();
            let normalise = |(plane, (scale, shift)): (&mut [f32], &(f32, f32))| {
                plane.iter_mut().for_each(|x| *x = *x * scale + shift);
            };
            if threads() > 1 {
                out.par_chunks_mut(plane_len).zip(&affine).for_each(normalise);
            } else {
                out.chunks_mut(plane_len).zip(&affine).for_each(normalise);
            }
            Ok(out)
        })?;
        Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
    }

    /// Factor and summand of plane `plane`, counted over images and channels.
    fn affine(&self, plane: usize, channels: usize, moments: &Moments) -> (f32, f32) {
        let channel = plane % channels;
        let group = plane / (channels / self.groups);
        let count = moments.count as f64;
        let mean = moments.sums[group] / count;
        let variance = (moments.squares[group] / count - mean * mean).max(0.0);
        let scale = f64::from(self.gain[channel]) / (variance + EPSILON).sqrt();
        (scale as f32, (f64::from(self.bias[channel]) - mean * scale) as f32)
    }
}

/// Sum and sum of squares of each run of `count` elements.
fn sums_of_groups(x: &[f32], count: usize) -> Vec<(f64, f64)> {
    let sums = |group: &[f32]| {
        let add = |(sum, squares): (f64, f64), &x: &f32| {
            let x = f64::from(x);
            (sum + x, squares + x * x)
        };
        // Runs of 8 keep the additions independent of each other.
        let mut lanes = [(0f64, 0f64); 8];
        let chunks = group.chunks_exact(lanes.len());
        let rest = chunks.remainder();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = add(*lane, x));
        }
        let total = lanes.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        rest.iter().fold(total, add)
    };
    if threads() > 1 {
        x.par_chunks(count).map(sums).collect()
    } else {
        x.chunks(count).map(sums).collect()
    }
}
