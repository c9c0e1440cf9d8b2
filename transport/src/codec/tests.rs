//! Errors within bounds whatever the numbers, both ends alike, and payloads that lie.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const LOSSY: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::I8Rows];

/// Any float there is.
fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -10.0_f32..10.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => Just(0.0),
        1 => prop::sample::select(vec![f32::MAX, f32::MIN, 65_504.0, 65_520.0, 1e-40, 3e-38]),
    ]
}

fn finite() -> impl Strategy<Value = f32> {
    any_float().prop_map(|x| if x.is_finite() { x } else { 1.0 })
}

fn round_trip(dtype: Dtype, row: usize, values: &[f32]) -> Vec<f32> {
    let mut payload = vec![0xa5; values.len() / row * dtype.row_bytes(row)];
    encode(dtype, row, values, &mut payload).unwrap();
    let mut back = vec![9.0; values.len()];
    decode(dtype, row, &payload, &mut back).unwrap();
    back
}

/// Largest error of a finite number in a row whose largest magnitude is `most`.
fn bound(dtype: Dtype, value: f32, most: f32) -> f64 {
    let (value, most) = (f64::from(value.abs()), f64::from(most));
    match dtype {
        // Eight bits of precision, eleven bits, or half a scale; and what is below the smallest.
        Dtype::Bf16 => (value / 256.0).max(1e-40),
        Dtype::F16 => (value / 2048.0).max(value - 65_504.0).max(3e-8),
        _ => (most / 254.0 * 1.000_01).max(8e-31),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_payload_panics_its_reader(
        dtype in 0_u8..8,
        row: u8,
        payload in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        decode_anything(&[&[dtype, row][..], &payload].concat());
        // A payload that fits, so that its rows are looked at.
        if let (Some(dtype), 1..) = (Dtype::from_code(dtype), row) {
            let fits = payload.len() / dtype.row_bytes(row.into()) * dtype.row_bytes(row.into());
            decode_anything(&[&[dtype.code(), row][..], &payload[..fits]].concat());
        }
    }

    #[test]
    fn errors_are_within_the_precision_of_the_type(
        row in 1_usize..150,
        values in prop::collection::vec(finite(), 450),
    ) {
        let values = &values[..450 / row * row];
        for dtype in LOSSY {
            let back = round_trip(dtype, row, values);
            for (values, back) in values.chunks(row).zip(back.chunks(row)) {
                let most = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                for (&x, &y) in values.iter().zip(back) {
                    let error = (f64::from(x) - f64::from(y)).abs();
                    prop_assert!(error <= bound(dtype, x, most), "{dtype:?} {x} -> {y}, {most}");
                }
            }
            // What was read is written as it was: a ring's next hop adds no error.
            let again = round_trip(dtype, row, &back);
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= a.abs() * 2.0 * f32::EPSILON;
            prop_assert!(back.iter().zip(&again).all(close), "{dtype:?}");
            prop_assert!(dtype == Dtype::I8Rows || bits(&back) == bits(&again));
        }
        prop_assert_eq!(bits(&round_trip(Dtype::F32, row, values)), bits(values));
    }

    #[test]
    fn what_is_not_finite_stays_visible(
        row in 1_usize..40,
        values in prop::collection::vec(any_float(), 120),
    ) {
        let values = &values[..120 / row * row];
        for dtype in [Dtype::Bf16, Dtype::F16] {
            for (x, y) in values.iter().zip(round_trip(dtype, row, values)) {
                prop_assert_eq!((x.is_nan(), x.is_finite()), (y.is_nan(), y.is_finite()));
                prop_assert!(x.is_nan() || x.is_sign_negative() == y.is_sign_negative());
            }
        }
        let back = round_trip(Dtype::I8Rows, row, values);
        for (values, back) in values.chunks(row).zip(back.chunks(row)) {
            let finite = values.iter().all(|x| x.is_finite());
            prop_assert!(back.iter().all(|y| y.is_finite() == finite && y.is_nan() != finite));
        }
    }

    /// Whatever is sent, in whatever pieces and with or without refreshes: both ends hold the same.
    #[test]
    fn both_ends_hold_the_same_to_the_bit(
        row in 1_usize..20,
        steps in prop::collection::vec((prop::collection::vec(any_float(), 60), any::<bool>(), 0_usize..60), 1..8),
        kind in 0_usize..3,
    ) {
        let (dtype, elements) = (LOSSY[kind], 60 / row * row);
        let (mut sender, mut receiver) = (vec![0.0; elements], vec![0.0; elements]);
        for (values, whole, cut) in &steps {
            let (values, cut) = (&values[..elements], (cut / row * row).min(elements));
            for range in [0..cut, cut..elements].into_iter().filter(|range| !range.is_empty()) {
                let mut payload = vec![0; range.len() / row * dtype.row_bytes(row)];
                let (ours, theirs) = (&mut sender[range.clone()], &mut receiver[range.clone()]);
                if *whole {
                    encode(dtype, row, &values[range], &mut payload).unwrap();
                    decode(dtype, row, &payload, ours).unwrap();
                    decode(dtype, row, &payload, theirs).unwrap();
                } else {
                    encode_change(dtype, row, &values[range], ours, &mut payload).unwrap();
                    decode_change(dtype, row, &payload, theirs).unwrap();
                }
            }
            let nan = sender.iter().zip(&receiver).all(|(a, b)| a.is_nan() == b.is_nan());
            let same = sender.iter().zip(&receiver).all(|(a, b)| a.is_nan() || a.to_bits() == b.to_bits());
            prop_assert!(nan && same);
        }
    }

    /// The error of a change is one of that change, however many went before.
    #[test]
    fn errors_of_changes_do_not_add_up(seed in prop::collection::vec(-1.0_f32..1.0, 64), steps in 1_usize..40) {
        let mut held = seed.clone();
        let mut payload = vec![0; Dtype::I8Rows.row_bytes(64)];
        for step in 0..steps {
            let values: Vec<f32> = seed.iter().map(|x| x * (1.0 + step as f32 * 0.01)).collect();
            let change = values.iter().zip(&held).fold(0.0_f32, |most, (x, h)| most.max((x - h).abs()));
            encode_change(Dtype::I8Rows, 64, &values, &mut held, &mut payload).unwrap();
            for (x, h) in values.iter().zip(&held) {
                prop_assert!((x - h).abs() <= change / 254.0 * 1.000_1 + 1e-6, "step {step}: {x} {h}");
            }
        }
    }
}

#[test]
fn rows_of_zeros_of_huge_and_of_tiny_numbers_come_back() {
    for row in [[0.0; 4], [-0.0; 4], [1e-40, -1e-40, 0.0, 1e-45]] {
        assert!(round_trip(Dtype::I8Rows, 4, &row).iter().all(|x| *x == 0.0));
    }
    let back = round_trip(Dtype::I8Rows, 2, &[f32::MAX, f32::MIN, 1.0, -f32::MAX]);
    assert!(back.iter().all(|x| x.is_finite()), "{back:?}");
    assert!(back[0] > f32::MAX * 0.999 && back[1] < f32::MIN * 0.999 && back[2] == 0.0);
    // All near the largest float: a scale that is rounded up must not overflow.
    for below in 0..1000_u32 {
        let most = f32::from_bits(f32::MAX.to_bits() - below);
        assert!(round_trip(Dtype::I8Rows, 1, &[most])[0].is_finite());
    }
    // Each code of a row, both signs.
    let all: Vec<f32> = (-127..=127).map(|code| code as f32 * 0.5).collect();
    assert_eq!(round_trip(Dtype::I8Rows, 255, &all), all);
}

#[test]
fn lengths_that_disagree_are_errors() {
    let values = [1.0; 6];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I8Rows] {
        let right = 2 * dtype.row_bytes(3);
        for (row, len) in [(3, right - 1), (3, right + 1), (4, right), (0, right), (3, 0)] {
            let mut payload = vec![0; len];
            assert!(encode(dtype, row, &values, &mut payload).is_err(), "{dtype:?} {row} {len}");
            assert!(decode(dtype, row, &payload, &mut [0.0; 6]).is_err());
            assert!(decode_change(dtype, row, &payload, &mut [0.0; 6]).is_err());
        }
        let mut payload = vec![0; right];
        assert!(encode_change(dtype, 3, &values, &mut [0.0; 3], &mut payload).is_err());
        let described = dtype.payload_bytes([2, 3]).unwrap();
        assert_eq!(described, right as u64, "{dtype:?}");
    }
    assert!(encode(Dtype::I64, 1, &values, &mut [0; 48]).is_err());
    assert_eq!(Dtype::I8Rows.payload_bytes([5, 0]), Some(0));
    assert_eq!(Dtype::I8Rows.payload_bytes([0, 5]), Some(0));
    assert_eq!(Dtype::I8Rows.payload_bytes([]), Some(5));
    assert_eq!(Dtype::I8Rows.payload_bytes([u64::MAX, 2]), None);
}
