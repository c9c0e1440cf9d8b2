//! Attention against candle's operations, and merging at its extremes.

use candle_core::{Device, Tensor};

use super::*;
use crate::kernels::Isa;

fn tensor(shape: &[usize], step: f32, size: f32) -> Tensor {
    let count: usize = shape.iter().product();
    // Irregular enough that sums of products do not cancel.
    let value = |i: usize| ((i as f64 * 12.9898 * f64::from(step)).sin() * 43758.5453).fract();
    let values: Vec<f32> = (0..count).map(|i| value(i) as f32 * size).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
}

fn error(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| -> Vec<f64> {
        t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).expect("values")
    };
    let (a, b) = (flat(a), flat(b));
    let gap: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (gap / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Against the same in f64, within `bound`.
fn agrees_with_plain(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, bound: f64) {
    let got = attention(q, k, v, 0.3, bias).expect("attention");
    let wide = |t: &Tensor| t.to_dtype(DType::F64).expect("f64");
    let wide_bias = bias.map(wide);
    let (out, lse) =
        plain::attention(&wide(q), &wide(k), &wide(v), 0.3, wide_bias.as_ref()).expect("plain");
    assert_eq!(got.out.dims(), q.dims());
    let errors = (error(&got.out, &out), error(&got.lse, &lse));
    assert!(errors.0 < bound && errors.1 < bound, "{errors:?} for {:?} {:?}", q.dims(), k.dims());
}

#[test]
fn equals_plain_attention_for_sizes_on_and_off_the_tiles() {
    for (n, m, heads, width) in [
        (1, 1, 1, 1),
        (5, 3, 2, 12),
        (128, 256, 2, 8),
        (129, 257, 1, 72),
        (300, 700, 3, 33),
        (40, 513, 4, 64),
    ] {
        let q = tensor(&[2, n, heads, width], 0.37, 2.0);
        let k = tensor(&[2, m, heads, width], 0.61, 2.0);
        let v = tensor(&[2, m, heads, width], 0.17, 1.0);
        agrees_with_plain(&q, &k, &v, None, 1e-6);
        let bias = tensor(&[2, m], 1.7, 4.0);
        agrees_with_plain(&q, &k, &v, Some(&bias), 1e-6);
    }
}

#[test]
fn every_instruction_set_gives_the_same() -> Result<(), ModelError> {
    for (n, m, heads, width) in [(1, 1, 1, 1), (13, 300, 2, 72), (67, 519, 3, 20), (130, 40, 2, 64)]
    {
        let q = tensor(&[2, n, heads, width], 0.37, 2.0);
        let k = tensor(&[2, m, heads, width], 0.61, 2.0);
        let v = tensor(&[2, m, heads, width], 0.17, 1.0);
        let bias = tensor(&[2, m], 1.7, 4.0);
        let run = |isa| kernels::flash_attention_on(isa, &q, &k, &v, 0.3, Some(&bias));
        let (want, want_lse) = run(Isa::Portable)?;
        for isa in [Isa::Avx2, Isa::Avx512] {
            let (out, lse) = run(isa)?;
            let errors = (error(&out, &want), error(&lse, &want_lse));
            assert!(errors.0 < 1e-6 && errors.1 < 1e-6, "{isa:?} {errors:?} {n} {m} {width}");
        }
        if Isa::Avx512.supported() {
            let ((out, _), (other, _)) = (run(Isa::Avx2)?, run(Isa::Avx512)?);
            assert_eq!(error(&out, &other), 0.0, "{n} {m} {width}");
        }
    }
    Ok(())
}

#[test]
fn a_query_does_not_depend_on_the_others() -> Result<(), ModelError> {
    let q = tensor(&[1, 700, 2, 24], 0.37, 2.0);
    let k = tensor(&[1, 300, 2, 24], 0.61, 2.0);
    let whole = attention(&q, &k, &k, 0.3, None)?;
    let part = attention(&q.narrow(1, 501, 99)?, &k, &k, 0.3, None)?;
    assert_eq!(error(&part.out, &whole.out.narrow(1, 501, 99)?), 0.0);
    Ok(())
}

#[test]
fn reads_views_of_a_fused_projection_in_place() -> Result<(), ModelError> {
    let fused = tensor(&[2, 40, 3, 4, 12], 0.37, 2.0);
    let part = |i| fused.narrow(2, i, 1).and_then(|t| t.squeeze(2));
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let got = attention(&q, &k, &v, 0.3, None)?;
    let copied = attention(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, 0.3, None)?;
    assert_eq!(error(&got.out, &copied.out), 0.0);
    let some = q.narrow(1, 7, 11)?;
    agrees_with_plain(&some, &k, &v, None, 1e-6);
    Ok(())
}

#[test]
fn masked_keys_do_not_count_and_no_keys_give_nothing() -> Result<(), ModelError> {
    let (q, k) = (tensor(&[1, 6, 2, 8], 0.3, 1.0), tensor(&[1, 5, 2, 8], 0.7, 1.0));
    let v = tensor(&[1, 5, 2, 8], 0.2, 1.0);
    let kept = attention(&q, &k.narrow(1, 0, 3)?, &v.narrow(1, 0, 3)?, 0.3, None)?;
    for hidden in [-10_000.0, f32::NEG_INFINITY] {
        let bias = Tensor::new(&[[0.0, 0.0, 0.0, hidden, hidden]], &Device::Cpu)?;
        let got = attention(&q, &k, &v, 0.3, Some(&bias))?;
        assert!(error(&got.out, &kept.out) < 1e-6 && error(&got.lse, &kept.lse) < 1e-6);
    }
    let nothing = Tensor::full(f32::NEG_INFINITY, (1, 5), &Device::Cpu)?;
    let all_hidden = attention(&q, &k, &v, 0.3, Some(&nothing))?;
    let empty = attention(&q, &k.narrow(1, 0, 0)?, &v.narrow(1, 0, 0)?, 0.3, None)?;
    for got in [all_hidden, empty] {
        assert_eq!(got.out.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        assert!(got.lse.flatten_all()?.to_vec1::<f32>()?.iter().all(|&l| l == f32::NEG_INFINITY));
    }
    Ok(())
}

#[test]
fn a_nan_in_a_query_is_not_hidden() -> Result<(), ModelError> {
    let q = Tensor::full(f32::NAN, (1, 2, 1, 4), &Device::Cpu)?;
    let k = tensor(&[1, 3, 1, 4], 0.7, 1.0);
    let got = attention(&q, &k, &k, 1.0, None)?;
    assert!(got.out.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_nan()));
    Ok(())
}

#[test]
fn large_scores_do_not_overflow() {
    let q = tensor(&[1, 70, 2, 16], 0.37, 60.0);
    let k = tensor(&[1, 600, 2, 16], 0.61, 60.0);
    // Scores of thousands carry an f32 rounding of 1e-4, which exp turns into a relative error.
    agrees_with_plain(&q, &k, &tensor(&[1, 600, 2, 16], 0.17, 1.0), None, 1e-5);
}

#[test]
fn threads_and_repetition_do_not_change_a_bit() -> Result<(), ModelError> {
    let (q, k) = (tensor(&[2, 300, 2, 24], 0.37, 2.0), tensor(&[2, 400, 2, 24], 0.61, 2.0));
    let alone = attention(&q, &k, &k, 0.3, None)?;
    for size in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(size).build().expect("pool");
        let got = pool.install(|| attention(&q, &k, &k, 0.3, None))?;
        assert_eq!(error(&got.out, &alone.out), 0.0);
        assert_eq!(error(&got.lse, &alone.lse), 0.0);
    }
    Ok(())
}

#[test]
fn merging_blocks_of_keys_gives_the_whole() -> Result<(), ModelError> {
    let (q, k) = (tensor(&[2, 30, 3, 16], 0.37, 2.0), tensor(&[2, 90, 3, 16], 0.61, 2.0));
    let v = tensor(&[2, 90, 3, 16], 0.17, 1.0);
    let whole = attention(&q, &k, &v, 0.3, None)?;
    let part = |first, count| -> Result<AttentionOutput, ModelError> {
        attention(&q, &k.narrow(1, first, count)?, &v.narrow(1, first, count)?, 0.3, None)
    };
    let mut ring = part(0, 0)?;
    for (first, count) in [(0, 40), (40, 0), (40, 33), (73, 17)] {
        ring = merge(&ring, &part(first, count)?)?;
    }
    assert!(error(&ring.out, &whole.out) < 1e-6 && error(&ring.lse, &whole.lse) < 1e-6);
    let other = plain::merge(
        (&part(0, 50)?.out, &part(0, 50)?.lse),
        (&part(50, 40)?.out, &part(50, 40)?.lse),
    )?;
    assert!(error(&other.0, &whole.out) < 1e-6 && error(&other.1, &whole.lse) < 1e-6);
    Ok(())
}

#[test]
fn merging_is_finite_at_any_gap_and_exact_beside_nothing() -> Result<(), ModelError> {
    let side = |out: f32, lse: f32| -> Result<AttentionOutput, ModelError> {
        Ok(AttentionOutput {
            out: Tensor::full(out, (1, 1, 1, 2), &Device::Cpu)?,
            lse: Tensor::full(lse, (1, 1, 1), &Device::Cpu)?,
        })
    };
    let values = |x: &AttentionOutput| -> Result<(f32, f32), ModelError> {
        Ok((x.out.flatten_all()?.to_vec1::<f32>()?[0], x.lse.flatten_all()?.to_vec1::<f32>()?[0]))
    };
    let none = f32::NEG_INFINITY;
    let cases = [
        ((3.0, 0.0), (5.0, 200.0), (5.0, 200.0)),
        ((3.0, 200.0), (5.0, 0.0), (3.0, 200.0)),
        ((3.0, -200.0), (5.0, 200.0), (5.0, 200.0)),
        ((3.0, 100.0), (5.0, -104.0), (3.0, 100.0)),
        ((3.0, 1.0), (0.0, none), (3.0, 1.0)),
        ((0.0, none), (5.0, -7.0), (5.0, -7.0)),
        ((0.0, none), (0.0, none), (0.0, none)),
        ((2.0, 1.0), (4.0, 1.0), (3.0, 1.0 + std::f32::consts::LN_2)),
    ];
    for (a, b, want) in cases {
        let (a, b) = (side(a.0, a.1)?, side(b.0, b.1)?);
        let got = values(&merge(&a, &b)?)?;
        assert!(got == want, "{got:?} {want:?}");
        let (out, lse) = plain::merge((&a.out, &a.lse), (&b.out, &b.lse))?;
        let got = values(&AttentionOutput { out, lse })?;
        let near = |x: f32, y: f32| x == y || (x - y).abs() < 1e-6;
        assert!(near(got.0, want.0) && near(got.1, want.1), "{got:?} {want:?}");
    }
    Ok(())
}

#[test]
fn misfits_name_the_shapes() -> Result<(), ModelError> {
    let (q, k) = (tensor(&[1, 6, 2, 8], 0.3, 1.0), tensor(&[1, 5, 2, 4], 0.7, 1.0));
    let error = attention(&q, &k, &k, 0.3, None).expect_err("widths differ").to_string();
    assert!(error.contains("[1, 6, 2, 8]") && error.contains("[1, 5, 2, 4]"), "{error}");
    let half = q.to_dtype(DType::F16)?;
    assert!(attention(&half, &half, &half, 0.3, None).is_err());
    Ok(())
}
