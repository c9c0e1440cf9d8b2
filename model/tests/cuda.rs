//! GPU kernels against the CPU's, and frames in pinned memory and in the GPU's. Needs a GPU to run.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use ditmesh_model::attention::{Precision, attention, attention_in};
use ditmesh_model::cuda::{self, FrameDevice, STAGING_CHUNK_BYTES, Staging};
use ditmesh_model::kernels::{Epilogue, fused_linear, layer_norm_modulate};

fn gpu() -> Device {
    cuda::open(0).expect("these tests need a gpu")
}

fn tensor(shape: &[usize], step: f32, size: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let value = |i: usize| ((i as f64 * 12.9898 * f64::from(step)).sin() * 43758.5453).fract();
    let values: Vec<f32> = (0..count).map(|i| value(i) as f32 * size).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn error(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |t: &Tensor| -> Vec<f64> {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        t.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (a, b) = (flat(a), flat(b));
    let gap: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (gap / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn rows_are_normed_and_modulated_as_on_the_cpu() {
    let gpu = gpu();
    for (rows, width) in [(1, 2), (5, 33), (130, 1152), (7, 4096)] {
        let (x, shift) = (tensor(&[2, rows, width], 0.3, 3.0), tensor(&[width], 0.7, 1.0));
        let scale = tensor(&[width], 0.9, 0.5);
        let expected = layer_norm_modulate(&x, &shift, &scale, 1e-6).unwrap();
        let on = |t: &Tensor| t.to_device(&gpu).unwrap();
        let got = layer_norm_modulate(&on(&x), &on(&shift), &on(&scale), 1e-6).unwrap();
        assert!(error(&got, &expected) < 2e-6, "{rows} x {width}: {:e}", error(&got, &expected));
    }
}

#[test]
fn linear_layers_and_what_follows_them_agree_with_the_cpu() {
    let gpu = gpu();
    let (x, weight) = (tensor(&[2, 37, 96], 0.3, 1.0), tensor(&[80, 96], 0.11, 0.2));
    let (bias, gate) = (tensor(&[80], 0.5, 1.0), tensor(&[80], 0.8, 1.0));
    let residual = tensor(&[2, 37, 80], 0.21, 2.0);
    let on = |t: &Tensor| t.to_device(&gpu).unwrap();
    let (gpu_gate, gpu_residual) = (on(&gate), on(&residual));
    let pairs = [
        (Epilogue::None, Epilogue::None),
        (Epilogue::GeluTanh, Epilogue::GeluTanh),
        (Epilogue::Silu, Epilogue::Silu),
        (
            Epilogue::Residual { residual: &residual, gate: Some(&gate) },
            Epilogue::Residual { residual: &gpu_residual, gate: Some(&gpu_gate) },
        ),
        (
            Epilogue::Residual { residual: &residual, gate: None },
            Epilogue::Residual { residual: &gpu_residual, gate: None },
        ),
    ];
    for (dtype, bound) in [(DType::F32, 2e-6), (DType::BF16, 1e-2)] {
        let weight = weight.to_dtype(dtype).unwrap();
        for (here, there) in pairs {
            for bias in [Some(&bias), None] {
                let expected = fused_linear(&x, &weight, bias, here).unwrap();
                let gpu_bias = bias.map(on);
                let got = fused_linear(&on(&x), &on(&weight), gpu_bias.as_ref(), there).unwrap();
                let error = error(&got, &expected);
                assert!(error < bound, "{dtype:?} {here:?}: {error:e}");
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_cpu_for_sizes_on_and_off_the_tiles() {
    let gpu = gpu();
    for (n, m, heads, width) in [
        (1, 1, 1, 1),
        (5, 3, 2, 12),
        (64, 64, 2, 16),
        (129, 257, 1, 72),
        (300, 700, 3, 33),
        (70, 65, 2, 128),
    ] {
        // Views of a fused projection, as blocks give them.
        let fused = tensor(&[2, n, 3, heads, width], 0.37, 2.0);
        let q = fused.narrow(2, 1, 1).unwrap().squeeze(2).unwrap();
        let k = tensor(&[2, m, heads, width], 0.61, 2.0);
        let v = tensor(&[2, m, heads, width], 0.17, 1.0);
        let bias = tensor(&[2, m], 1.7, 4.0);
        let on = |t: &Tensor| t.to_device(&gpu).unwrap();
        let gpu_q = on(&fused).narrow(2, 1, 1).unwrap().squeeze(2).unwrap();
        for bias in [None, Some(&bias)] {
            let expected = attention(&q, &k, &v, 0.3, bias).unwrap();
            let gpu_bias = bias.map(on);
            for (precision, bound) in [(Precision::Full, 2e-6), (Precision::Half, 1e-2)] {
                let (k, v) = (on(&k), on(&v));
                let got = attention_in(precision, &gpu_q, &k, &v, 0.3, gpu_bias.as_ref()).unwrap();
                let errors = (error(&got.out, &expected.out), error(&got.lse, &expected.lse));
                let case = (n, m, heads, width, precision, bias.is_some());
                assert!(errors.0 < bound && errors.1 < bound, "{errors:?} for {case:?}");
                let again =
                    attention_in(precision, &gpu_q, &k, &v, 0.3, gpu_bias.as_ref()).unwrap();
                assert_eq!(error(&again.out, &got.out), 0.0, "run to run, {case:?}");
            }
        }
    }
}

#[test]
fn queries_without_keys_give_zero_and_minus_infinity() {
    let gpu = gpu();
    let q = tensor(&[1, 3, 2, 16], 0.37, 2.0).to_device(&gpu).unwrap();
    let none = Tensor::zeros((1, 0, 2, 16), DType::F32, &gpu).unwrap();
    let k = tensor(&[1, 5, 2, 16], 0.61, 2.0).to_device(&gpu).unwrap();
    let masked = Tensor::full(f32::NEG_INFINITY, (1, 5), &gpu).unwrap();
    for precision in [Precision::Full, Precision::Half] {
        let empty = attention_in(precision, &q, &none, &none, 0.3, None).unwrap();
        let hidden = attention_in(precision, &q, &k, &k, 0.3, Some(&masked)).unwrap();
        for got in [empty, hidden] {
            let out: Vec<f32> = got.out.flatten_all().unwrap().to_vec1().unwrap();
            let lse: Vec<f32> = got.lse.flatten_all().unwrap().to_vec1().unwrap();
            assert!(out.iter().all(|&x| x == 0.0), "{precision:?}: {out:?}");
            assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY), "{precision:?}: {lse:?}");
        }
    }
}

#[test]
fn frames_of_any_size_pass_through_pinned_memory_unchanged() {
    let gpu = gpu();
    let mut staging = Staging::new(&gpu).unwrap();
    let chunk = STAGING_CHUNK_BYTES / 4;
    for count in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 17] {
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let there = staging.to_device(&values, count).unwrap();
        let mut back = vec![-1f32; count];
        staging.to_host(&(&there + 0.5).unwrap(), &mut back).unwrap();
        assert!(back.iter().enumerate().all(|(i, &x)| x == i as f32 + 0.5), "{count} floats");
    }
    let there = staging.to_device(&[1.0, 2.0, 3.0, 4.0], (2, 2)).unwrap();
    let mut back = [0f32; 4];
    staging.to_host(&there.t().unwrap(), &mut back).unwrap();
    assert_eq!(back, [1.0, 3.0, 2.0, 4.0]);
    assert!(staging.to_host(&there, &mut [0f32; 3]).is_err());
}

#[test]
fn frames_of_any_size_lie_in_blocks_of_the_gpu_unchanged() {
    let gpu = gpu();
    let device = FrameDevice::open(0).unwrap();
    let soon = || Instant::now() + Duration::from_secs(20);
    for count in [0_usize, 1, 1000, 3 << 20] {
        let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
        let tensor = Tensor::from_vec(values, count, &Device::Cpu).unwrap().to_device(&gpu);
        // What was told to the stream just before is waited for.
        let tensor = (tensor.unwrap() + 0.5).unwrap();
        let mut sent = device.allocate(4 * count).unwrap();
        assert!(sent.write(&tensor).unwrap().wait(soon()));
        let mut came = device.allocate(4 * count + 100).unwrap();
        came.copy_from(&sent, 0, 4 * count).unwrap();
        let back = came.read(count, &gpu).unwrap();
        let back: Vec<f32> = back.to_vec1().unwrap();
        assert!(back.iter().enumerate().all(|(i, &x)| x == i as f32 + 0.5), "{count} floats");
        assert!(came.is_idle(), "its reader is through, but it does not say so");
    }
    let floats = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], (2, 2), &gpu).unwrap();
    let mut block = device.allocate(16).unwrap();
    assert!(block.write(&floats.t().unwrap()).unwrap().wait(soon()));
    let back: Vec<f32> = block.read(4, &gpu).unwrap().to_vec1().unwrap();
    assert_eq!(back, [1.0, 3.0, 2.0, 4.0]);
    let small = device.allocate(8).unwrap();
    assert!(block.copy_from(&small, 4, 8).is_err());
    assert!(block.read(5, &gpu).is_err());
    let wide = Tensor::zeros(5, DType::F32, &gpu).unwrap();
    assert!(block.write(&wide).is_err());
}
