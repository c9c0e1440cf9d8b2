//! Gaussian noise from a counter: the same numbers for every mesh, any slice on its own.
//!
//! Owns the generator (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011, and Box-Muller) and where in its stream a latent element lies. Does not own seeds:
//! image `i` of a request is given `seed + i` by its caller. Invariants: element `k` of a seed's
//! stream depends on nothing else; `ln`, `sqrt` and `cos` come from `libm`, so that all hosts
//! agree to the bit.

use candle_core::{Device, Tensor};

use crate::conditioning::LatentGrid;
use crate::error::ModelError;
use crate::rows::RowSet;

/// Normal numbers that one counter value gives.
const BLOCK: usize = 4;
/// Rounds of Philox.
const ROUNDS: usize = 10;
/// Multipliers of the two halves of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the two key words grow by each round (golden ratio, square root of 3 less 1).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Initial noise of the token rows `rows` of one image: f32 `[1, C, F, rows * patch_size, W]` on
/// the CPU, mean 0 and deviation 1, not yet scaled by a scheduler's `init_noise_sigma`.
///
/// The element at `(c, f, y, x)` is number `((c * F + f) * H + y) * W + x` of the seed's stream,
/// with `y` counted in the whole image.
///
/// # Errors
/// When a row lies outside the image.
pub fn latents(seed: u64, grid: LatentGrid, rows: &RowSet) -> Result<Tensor, ModelError> {
    let LatentGrid { channels, frames, height, width, patch_size } = grid;
    if let Some(last) = rows.ranges().last()
        && last.end * patch_size > height
    {
        return Err(ModelError::Invalid(format!(
            "token rows {last:?} of {patch_size} latent rows do not lie in a latent of \
             height {height}"
        )));
    }
    let strip_height = rows.len() * patch_size;
    let mut noise = vec![0f32; channels * frames * strip_height * width];
    let mut at = 0;
    for plane in 0..channels * frames {
        for range in rows.ranges() {
            let start = (plane * height + range.start * patch_size) * width;
            let len = range.len() * patch_size * width;
            gaussian(seed, start as u64, &mut noise[at..at + len]);
            at += len;
        }
    }
    let shape = (1, channels, frames, strip_height, width);
    Ok(Tensor::from_vec(noise, shape, &Device::Cpu)?)
}

/// Fills `out` with numbers `start..start + out.len()` of the normal stream of `seed`.
pub fn gaussian(seed: u64, start: u64, out: &mut [f32]) {
    let mut counter = start / BLOCK as u64;
    let mut skip = (start % BLOCK as u64) as usize;
    let mut rest = out;
    while !rest.is_empty() {
        let block = normals(philox(seed, counter));
        let take = rest.len().min(BLOCK - skip);
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&block[skip..skip + take]);
        rest = later;
        counter = counter.wrapping_add(1);
        skip = 0;
    }
}

/// Philox4x32-10: four random words for a counter under a key.
fn philox(key: u64, counter: u64) -> [u32; 4] {
    let mut key = [key as u32, (key >> 32) as u32];
    let mut word = [counter as u32, (counter >> 32) as u32, 0, 0];
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(word[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(word[2]);
        word = [
            (b >> 32) as u32 ^ word[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ word[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    word
}

/// Box-Muller on two pairs of words.
fn normals(words: [u32; 4]) -> [f32; BLOCK] {
    let [a, b] = pair(words[0], words[1]);
    let [c, d] = pair(words[2], words[3]);
    [a, b, c, d]
}

/// Two independent normal numbers from two uniform words.
fn pair(radius: u32, angle: u32) -> [f32; 2] {
    /// One part in 2^32.
    const ULP: f64 = 1.0 / 4_294_967_296.0;
    // In (0, 1], so that the logarithm is finite.
    let u = (f64::from(radius) + 1.0) * ULP;
    let turn = f64::from(angle) * ULP;
    let length = libm::sqrt(-2.0 * libm::log(u));
    let cos = |turn: f64| libm::cos(std::f64::consts::TAU * turn);
    // sin(x) = cos(x - 90 degrees)
    [(length * cos(turn)) as f32, (length * cos(turn - 0.25)) as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
        assert_eq!(philox(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }
}
