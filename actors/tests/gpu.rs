//! Every method on a GPU against the CPU and diffusers: several ranks share GPU 0, each with a
//! stream of its own. Needs a GPU to run.

use std::sync::Arc;

use candle_core::Device;
use ditmesh_actors::gpu_memory::GpuMemory;
use ditmesh_actors::request::{Degrees, GenerateRequest, Output, OutputKind, StepCache};
use ditmesh_transport::DeviceMemory;
use ditmesh_transport::in_process::InProcessHub;

use crate::harness::{
    Golden, Outcome, degrees, relative, ring, run, run_on, run_quic_on, run_ucx_on,
};

fn gpu() -> Device {
    ditmesh_model::cuda::open(0).expect("these tests need a gpu")
}

fn on_gpu(golden: &Golden, degrees: Degrees, request: &GenerateRequest) -> Outcome {
    let hub = InProcessHub::new();
    run_on(&golden.dir, degrees, request, || hub.fabric(), gpu)
}

#[test]
fn serial_latents_on_a_gpu_equal_diffusers() {
    for (pipeline, factor) in [("sigma_8x8", 2), ("sigma_4x5", 4), ("alpha_6x4", 2)] {
        for case in ["square", "tall", "wide"] {
            let golden = Golden::load(pipeline, case);
            let outcome = on_gpu(&golden, degrees(1, 1, 1), &golden.request(factor));
            let error = relative(outcome.latents(), &golden.floats("out.latents"));
            println!("{pipeline} {case}: {error:.2e}, f32 noise {:.2e}", golden.noise);
            assert!(error <= golden.bar(), "{pipeline} {case}: {error:e}");
        }
    }
}

/// Exact meshes and PipeFusion alike give on a GPU what they give on the CPU.
#[test]
fn meshes_on_a_gpu_equal_meshes_on_the_cpu() {
    let golden = Golden::load("sigma_8x8", "tall");
    for (mesh, patches) in [
        (degrees(2, 1, 1), 1),
        (degrees(1, 1, 2), 1),
        (degrees(1, 1, 3), 1),
        (ring(1, 1, 1, 2), 1),
        (ring(1, 1, 2, 2), 1),
        (degrees(1, 2, 1), 4),
        (degrees(2, 2, 1), 4),
        (degrees(1, 2, 2), 4),
        (ring(1, 2, 1, 2), 4),
        (degrees(2, 2, 2), 3),
    ] {
        let request = GenerateRequest { num_pipeline_patch: Some(patches), ..golden.request(2) };
        let cpu = run(&golden.dir, mesh, &request);
        let gpu = on_gpu(&golden, mesh, &request);
        let error = relative(gpu.latents(), cpu.latents());
        println!("{mesh}, {patches} patches: {error:.2e}");
        assert!(error <= 1e-5, "{mesh}, {patches} patches: {error:e}");
        let again = on_gpu(&golden, mesh, &request);
        assert_eq!(again.latents().data, gpu.latents().data, "run to run, {mesh}");
    }
}

/// Synchronous steps now and then, and a step cache that does what it did on the CPU.
#[test]
fn sync_every_and_a_step_cache_on_a_gpu_equal_the_cpu() {
    let golden = Golden::load("sigma_8x8", "square");
    let cache = StepCache { threshold: 0.4, ..StepCache::default() };
    for (mesh, patches) in [(degrees(1, 1, 2), 1), (degrees(1, 2, 2), 4), (degrees(2, 2, 1), 4)] {
        let request = GenerateRequest {
            num_pipeline_patch: Some(patches),
            sync_every: if patches > 1 { 3 } else { 0 },
            step_cache: Some(cache.clone()),
            ..golden.request(2)
        };
        let cpu = run(&golden.dir, mesh, &request);
        let decided = cpu.ranks.iter().flat_map(|rank| rank.decisions.clone()).collect();
        let replay = StepCache { replay: Some(decided), ..cache.clone() };
        let request = GenerateRequest { step_cache: Some(replay), ..request };
        let gpu = on_gpu(&golden, mesh, &request);
        let error = relative(gpu.latents(), cpu.latents());
        println!("{mesh}, {patches} patches: {error:.2e}");
        assert!(error <= 1e-5, "{mesh}, {patches} patches: {error:e}");
    }
}

/// From words to latents, so the text encoder too.
#[test]
fn a_prompt_is_encoded_on_a_gpu_as_on_the_cpu() {
    let golden = Golden::load("sigma_8x8", "square");
    for mesh in [degrees(1, 1, 1), degrees(2, 1, 1), degrees(1, 2, 1)] {
        let request = GenerateRequest {
            num_inference_steps: 3,
            output: OutputKind::Latent,
            ..GenerateRequest::new("a red apple")
        };
        let cpu = run(&golden.dir, mesh, &request);
        let gpu = on_gpu(&golden, mesh, &request);
        let error = relative(gpu.latents(), cpu.latents());
        println!("{mesh}: {error:.2e}");
        assert!(error <= 1e-5, "{mesh}: {error:e}");
    }
}

/// At most one level of 255 apart.
#[test]
fn pictures_decoded_in_bands_on_a_gpu_equal_those_of_the_cpu() {
    let golden = Golden::load("sigma_4x5", "tall");
    for (mesh, in_bands) in
        [(degrees(1, 1, 1), false), (degrees(1, 1, 2), true), (degrees(1, 3, 1), true)]
    {
        let request = GenerateRequest {
            num_inference_steps: 2,
            output: OutputKind::Image,
            vae_parallel: Some(in_bands),
            ..golden.request(4)
        };
        let cpu = run(&golden.dir, mesh, &request);
        let gpu = on_gpu(&golden, mesh, &request);
        let (Output::Image(cpu), Output::Image(gpu)) = (&cpu.output, &gpu.output) else {
            panic!("latents where a picture was asked for");
        };
        assert_eq!((gpu.width, gpu.height), (cpu.width, cpu.height), "{mesh}");
        let most = gpu.data.iter().zip(&cpu.data).map(|(a, b)| a.abs_diff(*b)).max();
        println!("{mesh}: at most {most:?} levels apart");
        assert!(most <= Some(1), "{mesh}: {most:?}");
    }
}

#[test]
fn a_mesh_on_a_gpu_over_quic_equals_one_over_memory_to_the_bit() {
    let golden = Golden::load("sigma_8x8", "square");
    let request = GenerateRequest { num_pipeline_patch: Some(4), ..golden.request(2) };
    let mesh = degrees(2, 2, 2);
    let memory = on_gpu(&golden, mesh, &request);
    let quic = run_quic_on(&golden.dir, mesh, &request, gpu);
    assert_eq!(quic.latents().data, memory.latents().data);
}

fn memory() -> Arc<dyn DeviceMemory> {
    GpuMemory::open(0).expect("these tests need a gpu")
}

/// Every method, with the frames of hidden states, keys and values never in host memory.
#[test]
fn frames_that_stay_on_a_gpu_give_what_staged_ones_give_to_the_bit() {
    let golden = Golden::load("sigma_8x8", "tall");
    for (mesh, patches) in [
        (degrees(1, 1, 3), 1),
        (ring(1, 1, 2, 2), 1),
        (degrees(1, 2, 2), 4),
        (ring(1, 2, 1, 2), 4),
        (degrees(2, 2, 2), 3),
    ] {
        let request = GenerateRequest { num_pipeline_patch: Some(patches), ..golden.request(2) };
        let staged = on_gpu(&golden, mesh, &request);
        let hub = InProcessHub::new();
        let fabric = || hub.fabric_on(Some(memory()));
        for _ in 0..3 {
            let direct = run_on(&golden.dir, mesh, &request, fabric, gpu);
            assert_eq!(direct.latents().data, staged.latents().data, "{mesh}");
        }
    }
}

/// The same over UCX, where it has modules for CUDA.
#[test]
fn frames_over_ucx_from_gpu_to_gpu_give_what_staged_ones_give_to_the_bit() {
    let golden = Golden::load("sigma_8x8", "tall");
    for (mesh, patches) in [(degrees(1, 1, 2), 1), (ring(1, 1, 1, 2), 1), (degrees(2, 2, 2), 3)] {
        let request = GenerateRequest { num_pipeline_patch: Some(patches), ..golden.request(2) };
        let staged = on_gpu(&golden, mesh, &request);
        let Some(direct) = run_ucx_on(&golden.dir, mesh, &request, (gpu, memory)) else {
            return eprintln!("skipped: UCX cannot be opened");
        };
        println!("{mesh}: {:?}", direct.carriers);
        assert_eq!(direct.latents().data, staged.latents().data, "{mesh}");
    }
}
