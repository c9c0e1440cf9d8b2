//! The few numpy and torch array functions whose rounding the schedules depend on.

/// `np.linspace(start, stop, num)`.
pub(super) fn linspace(start: f64, stop: f64, num: usize) -> Vec<f64> {
    let step = (stop - start) / num.saturating_sub(1).max(1) as f64;
    let mut values: Vec<f64> = (0..num).map(|i| i as f64 * step + start).collect();
    if let [_, .., last] = values.as_mut_slice() {
        *last = stop;
    }
    values
}

/// `torch.linspace(start, stop, num, dtype=torch.float32)`: from both ends, rounded once.
pub(super) fn linspace_f32(start: f64, stop: f64, num: usize) -> Vec<f32> {
    let (start, stop) = (start as f32, stop as f32);
    let step = (stop - start) / num.saturating_sub(1).max(1) as f32;
    let at = |i: usize| {
        if i < num / 2 {
            f64::from(start) + f64::from(step) * i as f64
        } else {
            f64::from(stop) - f64::from(step) * (num - 1 - i) as f64
        }
    };
    (0..num).map(|i| at(i) as f32).collect()
}

/// `np.arange(start, 0, -step)` for positive numbers.
pub(super) fn arange_down(start: f64, step: f64) -> Vec<f64> {
    let delta = (start - step) - start;
    let num = (start / step).ceil() as usize;
    (0..num).map(|i| start + i as f64 * delta).collect()
}

/// Karras et al. 2022, rho 7: from the largest sigma to the smallest.
pub(super) fn karras(sigma_max: f64, sigma_min: f64, num: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (libm::pow(sigma_min, 1.0 / RHO), libm::pow(sigma_max, 1.0 / RHO));
    linspace(0.0, 1.0, num).iter().map(|ramp| libm::pow(high + ramp * (low - high), RHO)).collect()
}

/// Evenly spaced in the logarithm, from the largest sigma to the smallest.
pub(super) fn exponential(sigma_max: f64, sigma_min: f64, num: usize) -> Vec<f64> {
    let logs = linspace(libm::log(sigma_max), libm::log(sigma_min), num);
    logs.into_iter().map(libm::exp).collect()
}
