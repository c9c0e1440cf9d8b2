//! `exp` in f32 as branch-free arithmetic, so that loops over it vectorise.
//!
//! Owns the approximation (Cephes `expf`: range reduction by multiples of ln 2 in two parts and a
//! degree-6 polynomial; relative error below 2e-7) and nothing else.

/// Adding it rounds an f32 of magnitude below 2^22 to an integer, kept in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2, high part (exact in 10 bits) and the rest.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this `exp` is subnormal; it is flushed to zero.
const LOWEST: f32 = -87.336_54;
/// Above this the result no longer fits; it saturates there.
const HIGHEST: f32 = 88.0;

/// `e^x`: 0 below -87.3 (also for -inf), saturated above 88; NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Written so that a NaN fails the comparison and passes through.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let power_of_two = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = y * power_of_two;
    if x < LOWEST { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_two_ulp_of_the_true_value() {
        let mut worst = 0f64;
        for step in 0..2_000_000u32 {
            let x = -87.3 + step as f32 * (175.2 / 2_000_000.0);
            let want = libm::exp(f64::from(x));
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn extremes_are_flushed_saturated_or_kept() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e4), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }
}
