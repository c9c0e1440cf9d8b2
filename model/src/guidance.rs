//! Classifier-free guidance (arXiv 2207.12598), in one fixed order of operations.
//!
//! Invariant: every mesh combines the two branches by this function, so they agree to the bit
//! whether the branches ran as a batch, one after the other, or on two ranks.

use candle_core::Tensor;

use crate::error::ModelError;

/// `uncond + guidance_scale * (cond - uncond)`, element by element; both f32 of one shape.
///
/// # Errors
/// When the shapes differ, or the tensor backend fails.
pub fn combine(uncond: &Tensor, cond: &Tensor, guidance_scale: f64) -> Result<Tensor, ModelError> {
    if uncond.dims() != cond.dims() {
        return Err(ModelError::Invalid(format!(
            "the unconditional prediction is {:?} and the conditional one {:?}",
            uncond.dims(),
            cond.dims()
        )));
    }
    let difference = cond.sub(uncond)?;
    Ok(uncond.add(&difference.affine(guidance_scale, 0.0)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn extrapolates_from_uncond_through_cond() -> Result<(), ModelError> {
        let uncond = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
        let cond = Tensor::new(&[2f32, 0.0], &Device::Cpu)?;
        assert_eq!(combine(&uncond, &cond, 4.5)?.to_vec1::<f32>()?, [5.5, -7.0]);
        assert_eq!(combine(&uncond, &cond, 0.0)?.to_vec1::<f32>()?, [1.0, 2.0]);
        assert!(combine(&uncond, &Tensor::new(&[1f32], &Device::Cpu)?, 1.0).is_err());
        Ok(())
    }
}
