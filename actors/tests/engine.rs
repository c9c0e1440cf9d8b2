//! Whole engines in this process: coordinator, agents, group actors, workers, over both transports.

use ditmesh_actors::engine::Engine;
use ditmesh_actors::generation::GenerateError;
use ditmesh_actors::manifest::{DeviceKind, Manifest, TransportKind};
use ditmesh_actors::request::{
    Degrees, Event, FloatTensor, GenerateRequest, Generation, ModelSource, Output, OutputKind,
};

use crate::harness::{Golden, degrees, pipeline, relative};

const PIPELINE: &str = "sigma_8x8";

pub fn manifest(devices: usize) -> Manifest {
    Manifest::in_process(ModelSource::Folder(pipeline(PIPELINE)), devices, 1)
}

/// Two nodes of two devices each.
fn two_nodes() -> Manifest {
    let mut manifest = manifest(2);
    manifest.nodes[0].name = "a".into();
    let mut second = manifest.nodes[0].clone();
    second.name = "b".into();
    manifest.nodes.push(second);
    manifest
}

pub fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        num_inference_steps: 4,
        output: OutputKind::Latent,
        ..GenerateRequest::new(prompt)
    }
}

pub fn latents(generation: &Generation) -> &FloatTensor {
    match &generation.output {
        Output::Latents(latents) => latents,
        Output::Image(_) => panic!("a picture where latents were asked for"),
    }
}

pub fn draw(engine: &Engine, request: GenerateRequest) -> Generation {
    engine.generate(request).blocking_finish().unwrap()
}

#[test]
fn an_engine_draws_what_diffusers_draws() {
    let golden = Golden::load(PIPELINE, "square");
    let (folder, mut manifest) = (tempfile::tempdir().unwrap(), two_nodes());
    manifest.cluster.state_dir = folder.path().join("state");
    let engine = Engine::start(manifest.clone()).unwrap();
    let request =
        GenerateRequest { degrees: Some(degrees(2, 1, 2)), ..golden.request(vae_factor()) };
    let generation = draw(&engine, request);
    let error = relative(latents(&generation), &golden.floats("out.latents"));
    assert!(error <= golden.bar(), "{error}");
    let devices: Vec<&str> =
        generation.report.ranks.iter().map(|rank| rank.device.as_str()).collect();
    assert_eq!(devices, ["a/0", "a/1", "b/0", "b/1"]);
    engine.shutdown();
    assert!(!manifest.cluster.state_dir.exists(), "an engine inside a program leaves no files");
}

fn vae_factor() -> usize {
    let config = pipeline(PIPELINE).join("vae/config.json");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    1 << (config["block_out_channels"].as_array().unwrap().len() - 1)
}

#[test]
fn events_come_in_order_and_a_picture_at_the_end() {
    let engine = Engine::start(manifest(2)).unwrap();
    let request = GenerateRequest { output: OutputKind::Image, ..request("a red apple") };
    let mut handle = engine.generate(request);
    let mut events = Vec::new();
    while let Some(event) = handle.blocking_next_event() {
        events.push(event);
    }
    let generation = handle.blocking_finish().unwrap();
    let Output::Image(image) = &generation.output else { panic!("a picture") };
    assert_eq!(image.data.len(), (image.width * image.height * 3) as usize);
    events.retain(|event| !matches!(event, Event::Queued { .. } | Event::Warning(_)));
    let step = |step| Event::Step { step, of: 4 };
    let expected = [Event::Encoded, step(1), step(2), step(3), step(4), Event::Decoded];
    assert_eq!(events, expected);
    let status = engine.blocking_status().unwrap();
    assert_eq!(status.mesh.unwrap().ranks.len(), 2);
}

#[test]
fn a_status_says_of_what_kind_each_device_is() {
    let mut manifest = manifest(2);
    manifest.nodes[0].devices[1].kind = DeviceKind::Cuda;
    let engine = Engine::start(manifest).unwrap();
    let status = engine.blocking_status().unwrap();
    let kinds: Vec<&str> =
        status.nodes[0].devices.iter().map(|device| device.kind.as_str()).collect();
    assert_eq!(kinds, ["cpu", "cuda"]);
}

#[test]
fn nothing_of_one_request_reaches_another_on_a_warm_mesh() {
    let engine = Engine::start(manifest(2)).unwrap();
    let other = Engine::start(manifest(2)).unwrap();
    let wanted = Some(degrees(1, 2, 1));
    let of = |prompt| GenerateRequest { degrees: wanted, ..request(prompt) };
    let alone = draw(&other, of("a green frog"));
    let apple = draw(&engine, of("a red apple"));
    let frog = draw(&engine, of("a green frog"));
    let again = draw(&engine, of("a red apple"));
    assert_eq!(latents(&frog), latents(&alone));
    assert_eq!(latents(&again), latents(&apple));
    assert_ne!(latents(&frog), latents(&apple));
}

#[test]
fn a_request_for_other_degrees_forms_another_mesh() {
    let engine = Engine::start(manifest(4)).unwrap();
    let of = |degrees| GenerateRequest { degrees: Some(degrees), ..request("a red apple") };
    let first = draw(&engine, of(degrees(1, 1, 1)));
    let second = draw(&engine, of(degrees(2, 1, 2)));
    assert!(second.report.epoch > first.report.epoch);
    assert_eq!((first.report.ranks.len(), second.report.ranks.len()), (1, 4));
    let error = relative(latents(&second), latents(&first));
    assert!(error <= 1e-5, "{error}");
}

#[test]
fn a_dropped_handle_cancels_and_the_mesh_goes_on() {
    let engine = Engine::start(manifest(2)).unwrap();
    let long = GenerateRequest { num_inference_steps: 1000, ..request("a red apple") };
    let mut handle = engine.generate(long);
    while !matches!(handle.blocking_next_event(), Some(Event::Step { .. })) {}
    drop(handle);
    let next = draw(&engine, request("a green frog"));
    assert_eq!(next.report.ranks.len(), 2);
    assert_eq!(engine.blocking_status().unwrap().running, 0);
}

#[test]
fn requests_wait_their_turn_and_say_so() {
    let engine = Engine::start(manifest(2)).unwrap();
    let mut handles: Vec<_> = (0..3).map(|_| engine.generate(request("a red apple"))).collect();
    let last = handles[2].blocking_next_event();
    assert!(matches!(last, Some(Event::Queued { ahead: 1.. })), "{last:?}");
    for handle in handles {
        handle.blocking_finish().unwrap();
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let engine = Engine::start(manifest(2)).unwrap();
    let table = [
        GenerateRequest { degrees: Some(degrees(2, 2, 2)), ..request("x") },
        GenerateRequest { height: Some(7), ..request("x") },
        GenerateRequest { num_inference_steps: 0, ..request("x") },
    ];
    for wrong in table {
        let error = engine.generate(wrong).blocking_finish().unwrap_err();
        assert!(matches!(error, GenerateError::Refused(_)), "{error}");
    }
    draw(&engine, request("a red apple"));
}

#[test]
fn a_model_that_is_not_there_fails_requests_with_the_folder() {
    let manifest = Manifest::in_process(ModelSource::Folder("/nowhere/model".into()), 1, 1);
    match Engine::start(manifest) {
        Err(error) => assert!(error.to_string().contains("/nowhere/model"), "{error}"),
        Ok(engine) => {
            let error = engine.generate(request("x")).blocking_finish().unwrap_err();
            assert!(error.to_string().contains("/nowhere/model"), "{error}");
            assert!(engine.blocking_status().unwrap().mesh_failed);
        }
    }
}

#[test]
fn an_engine_that_shuts_down_ends_its_requests() {
    let engine = Engine::start(manifest(2)).unwrap();
    let long = GenerateRequest { num_inference_steps: 1000, ..request("a red apple") };
    let mut handle = engine.generate(long);
    while !matches!(handle.blocking_next_event(), Some(Event::Step { .. })) {}
    engine.shutdown();
    let error = handle.blocking_finish().unwrap_err();
    assert!(matches!(error, GenerateError::Lost(_)), "{error}");
}

#[test]
fn over_quic_between_threads_the_result_is_the_same() {
    let mut over_quic = two_nodes();
    over_quic.transport.kind = TransportKind::Quic;
    over_quic.cluster.name = "threads".into();
    let quic = Engine::start(over_quic).unwrap();
    let memory = Engine::start(two_nodes()).unwrap();
    let replicas = Degrees { data_degree: 2, ..degrees(1, 2, 1) };
    for wanted in [degrees(2, 2, 1), degrees(1, 4, 1), degrees(1, 1, 2), replicas] {
        let of = || GenerateRequest { degrees: Some(wanted), ..request("a red apple") };
        let (one, other) = (draw(&quic, of()), draw(&memory, of()));
        assert_eq!(latents(&one), latents(&other), "{wanted}");
    }
    let mesh = quic.blocking_status().unwrap().mesh.unwrap();
    assert!(mesh.links.iter().all(|link| link.transport == "quic"));
}
