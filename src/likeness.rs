//! How alike two pictures are, in the two figures that papers give.
//!
//! Owns PSNR and SSIM of 8-bit RGB pictures. Does not own which pictures are compared.

use ditmesh_actors::request::RgbImage;

/// Edge of SSIM's window in pixels.
const WINDOW: usize = 11;
/// Standard deviation of SSIM's window in pixels.
const SIGMA: f64 = 1.5;
/// Largest value of a pixel.
const PEAK: f64 = 255.0;
/// SSIM's constants `(K1 L)^2` and `(K2 L)^2`, with K1 0.01 and K2 0.03.
const C1: f64 = (0.01 * PEAK) * (0.01 * PEAK);
const C2: f64 = (0.03 * PEAK) * (0.03 * PEAK);

/// Peak signal-to-noise ratio in dB over all three channels: infinite for equal pictures. `None`
/// when sizes differ.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    if !same_size(a, b) {
        return None;
    }
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let total: f64 = a.data.iter().zip(&b.data).map(square).sum();
    Some(10.0 * (PEAK * PEAK * a.data.len() as f64 / total).log10())
}

/// Mean structural similarity of the luma (Wang, Bovik, Sheikh, Simoncelli 2004: Gaussian window of
/// 11 x 11 pixels with deviation 1.5, only windows inside the picture): 1 for equal pictures.
/// `None` when sizes differ or are below the window's.
pub fn ssim(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let (width, height) = (a.width as usize, a.height as usize);
    if !same_size(a, b) || width < WINDOW || height < WINDOW {
        return None;
    }
    let (a, b) = (luma(a), luma(b));
    let product =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let mean = |values: &[f64]| windowed(values, width, height);
    let (mean_a, mean_b) = (mean(&a), mean(&b));
    let (aa, bb, ab) = (mean(&product(&a, &a)), mean(&product(&b, &b)), mean(&product(&a, &b)));
    let of_place = |place: usize| {
        let (ma, mb) = (mean_a[place], mean_b[place]);
        let (va, vb) = (aa[place] - ma * ma, bb[place] - mb * mb);
        let covariance = ab[place] - ma * mb;
        let structure = (2.0 * ma * mb + C1) * (2.0 * covariance + C2);
        structure / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    };
    Some((0..mean_a.len()).map(of_place).sum::<f64>() / mean_a.len() as f64)
}

fn same_size(a: &RgbImage, b: &RgbImage) -> bool {
    let pixels = |x: &RgbImage| x.width as usize * x.height as usize * 3;
    (a.width, a.height) == (b.width, b.height)
        && a.data.len() == pixels(a)
        && b.data.len() == pixels(b)
        && !a.data.is_empty()
}

/// ITU-R BT.601 luma.
fn luma(image: &RgbImage) -> Vec<f64> {
    let (pixels, _) = image.data.as_chunks::<3>();
    let of_pixel =
        |&[r, g, b]: &[u8; 3]| 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    pixels.iter().map(of_pixel).collect()
}

/// Weighted means over every window inside the picture, rows then columns.
fn windowed(values: &[f64], width: usize, height: usize) -> Vec<f64> {
    let weights = gaussian();
    let across = |row: &[f64]| -> Vec<f64> {
        row.windows(WINDOW)
            .map(|part| part.iter().zip(&weights).map(|(x, w)| x * w).sum())
            .collect()
    };
    let rows: Vec<Vec<f64>> = values.chunks_exact(width).map(across).collect();
    let columns = width + 1 - WINDOW;
    let down = |top: usize, column: usize| -> f64 {
        rows[top..top + WINDOW].iter().zip(&weights).map(|(row, w)| row[column] * w).sum()
    };
    let tops = 0..height + 1 - WINDOW;
    tops.flat_map(|top| (0..columns).map(move |column| (top, column)))
        .map(|(top, column)| down(top, column))
        .collect()
}

/// One axis of the window; sums to 1.
fn gaussian() -> [f64; WINDOW] {
    let centre = (WINDOW / 2) as f64;
    let bell = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp();
    let total: f64 = (0..WINDOW).map(bell).sum();
    std::array::from_fn(|i| bell(i) / total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn image(width: u32, height: u32, pixel: impl Fn(usize, usize) -> [u8; 3]) -> RgbImage {
        let rows = 0..height as usize;
        let at = |y: usize| (0..width as usize).map(move |x| (x, y));
        let data = rows.flat_map(at).flat_map(|(x, y)| pixel(x, y)).collect();
        RgbImage { width, height, data }
    }

    fn texture(x: usize, y: usize) -> [u8; 3] {
        [(x * 37 + y * 11) % 256, (x * x + 3 * y) % 256, (x * y * 5) % 256].map(|value| value as u8)
    }

    fn moved(x: usize, y: usize) -> [u8; 3] {
        texture(x + 1, y).map(|value| value / 2 + 40)
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
    }

    #[test]
    fn equal_pictures_are_alike() {
        let a = image(20, 16, texture);
        assert_eq!(psnr(&a, &a), Some(f64::INFINITY));
        close(ssim(&a, &a), 1.0);
    }

    #[test]
    fn flat_pictures_differ_by_their_means_alone() {
        let (a, b) = (image(12, 12, |_, _| [100; 3]), image(12, 12, |_, _| [120; 3]));
        close(psnr(&a, &b), 20.0 * (255.0f64 / 20.0).log10());
        close(ssim(&a, &b), (2.0 * 12_000.0 + C1) / (10_000.0 + 14_400.0 + C1));
    }

    /// Values of the definition written out in Python: a two-dimensional window, no separation.
    #[test]
    fn textures_give_the_values_of_the_definition() {
        let (a, b) = (image(19, 14, texture), image(19, 14, moved));
        close(psnr(&a, &b), 11.840451122106959);
        close(ssim(&a, &b), 0.26217537415918524);
        close(ssim(&b, &a), 0.26217537415918524);
    }

    #[test]
    fn pictures_of_other_sizes_are_not_compared() {
        let (a, b) = (image(12, 12, texture), image(12, 13, texture));
        assert_eq!((psnr(&a, &b), ssim(&a, &b)), (None, None));
        let small = image(10, 20, texture);
        assert_eq!(ssim(&small, &small), None);
    }
}
