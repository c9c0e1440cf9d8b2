//! The noise generator: slices, moments, golden values.

use ditmesh_model::conditioning::LatentGrid;
use ditmesh_model::noise::{gaussian, latents};
use ditmesh_model::rows::{RowSet, strips};

use crate::fixture::Outcome;

const GRID: LatentGrid =
    LatentGrid { channels: 4, frames: 1, height: 20, width: 13, patch_size: 2 };

#[test]
fn any_slice_equals_the_whole() {
    let mut whole = vec![0f32; 1000];
    gaussian(7, 0, &mut whole);
    for (start, len) in [(0, 1), (1, 2), (3, 9), (4, 4), (997, 3), (501, 0), (250, 500)] {
        let mut slice = vec![0f32; len];
        gaussian(7, start as u64, &mut slice);
        assert_eq!(slice, whole[start..start + len], "{start} {len}");
    }
}

#[test]
fn rows_of_any_rank_are_rows_of_the_whole() -> Outcome {
    let whole = latents(42, GRID, &RowSet::all(GRID.token_rows()))?;
    assert_eq!(whole.dims(), [1, 4, 1, 20, 13]);
    for members in [1, 2, 3] {
        for index in 0..members {
            let rows = RowSet::of_rank(&strips(GRID.token_rows(), 4), index, members);
            let own = latents(42, GRID, &rows)?;
            let mut at = 0;
            for range in rows.ranges() {
                let len = range.len() * GRID.patch_size;
                let expected = whole.narrow(3, range.start * GRID.patch_size, len)?;
                let found = own.narrow(3, at, len)?;
                let flat = |t: candle_core::Tensor| t.flatten_all()?.to_vec1::<f32>();
                assert_eq!(flat(found)?, flat(expected)?);
                at += len;
            }
            assert_eq!(own.dims(), [1, 4, 1, at, 13]);
        }
    }
    assert!(latents(42, GRID, &RowSet::all(11)).is_err(), "rows outside of the image");
    Ok(())
}

#[test]
fn moments_are_those_of_a_normal_distribution() {
    let mut values = vec![0f32; 1 << 20];
    gaussian(123, 0, &mut values);
    let moment = |power: i32| {
        values.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / values.len() as f64
    };
    // Deviations of the sample moments at n = 2^20: 0.001, 0.0014, 0.0038, 0.0096.
    assert!(moment(1).abs() < 0.005, "{}", moment(1));
    assert!((moment(2) - 1.0).abs() < 0.007, "{}", moment(2));
    assert!(moment(3).abs() < 0.02, "{}", moment(3));
    assert!((moment(4) - 3.0).abs() < 0.05, "{}", moment(4));
    let neighbours: f64 = values.windows(2).map(|w| f64::from(w[0] * w[1])).sum();
    assert!((neighbours / values.len() as f64).abs() < 0.005);
    let extreme = values.iter().fold(0f32, |a, b| a.max(b.abs()));
    assert!((4.0..6.7).contains(&extreme), "{extreme}");
}

#[test]
fn seeds_differ_in_every_bit() {
    let first = |seed: u64| {
        let mut values = [0f32; 4];
        gaussian(seed, 0, &mut values);
        values.map(f32::to_bits)
    };
    let seeds: std::collections::BTreeSet<_> = (0..64).map(|bit| first(1 << bit)).collect();
    assert_eq!(seeds.len(), 64);
}

/// Whoever changes these changes every picture of every seed.
#[test]
fn golden_values() {
    let mut values = [0f32; 6];
    gaussian(42, 1, &mut values);
    assert_eq!(values.map(f32::to_bits), GOLDEN, "{values:?}");
}

/// Computed by an implementation of its own in Python.
const GOLDEN: [u32; 6] =
    [1_044_819_176, 3_214_813_394, 1_073_103_675, 3_180_716_080, 1_041_136_143, 3_213_731_635];
