//! Requests of one shape that wait together are one run, and each picture is what it is alone.

use ditmesh_actors::engine::Engine;
use ditmesh_actors::generation::{GenerateError, GenerationHandle};
use ditmesh_actors::manifest::{DegreesSetting, GroupSection, Manifest};
use ditmesh_actors::request::{
    Degrees, Event, GenerateRequest, Generation, Output, OutputKind, StepCache, Wire, WireDtype,
};

use crate::engine::{draw, latents, manifest, request};
use crate::harness::{degrees, relative};

const PROMPTS: [&str; 4] = ["a red apple", "a green frog", "a blue car", "a house"];

fn batching(devices: usize, degrees: Degrees) -> Manifest {
    let mut manifest = manifest(devices);
    manifest.groups = vec![GroupSection {
        model: manifest.models[0].name.clone(),
        nodes: Vec::new(),
        degrees: DegreesSetting::Fixed(degrees.into()),
        max_batch: 4,
        checkpoint_every: 1,
        wire: Wire::default(),
        quality: Default::default(),
    }];
    manifest
}

fn requests(guidance_scale: f32) -> [GenerateRequest; 4] {
    std::array::from_fn(|index| GenerateRequest {
        seed: index as u64,
        negative_prompt: if index == 1 { "blur".into() } else { String::new() },
        guidance_scale,
        num_pipeline_patch: Some(4),
        ..request(PROMPTS[index])
    })
}

/// Requests that wait for the mesh, and so wait together.
fn ask(engine: &Engine, requests: &[GenerateRequest]) -> Vec<GenerationHandle> {
    requests.iter().map(|request| engine.generate(request.clone())).collect()
}

#[test]
fn pictures_of_a_batch_are_those_drawn_alone() {
    for (mesh, guidance) in
        [(degrees(1, 2, 1), 4.5), (degrees(2, 1, 2), 4.5), (degrees(1, 1, 2), 1.0)]
    {
        let engine = Engine::start(batching(mesh.world_size(), mesh)).unwrap();
        let requests = requests(guidance);
        let together: Vec<Generation> = ask(&engine, &requests)
            .into_iter()
            .map(|handle| handle.blocking_finish().unwrap())
            .collect();
        for (request, together) in requests.into_iter().zip(&together) {
            assert_eq!(together.report.batch, 4, "{mesh}");
            let alone = draw(&engine, request);
            assert_eq!(alone.report.batch, 1);
            let error = relative(latents(together), latents(&alone));
            assert!(error <= 1e-5, "{mesh}: {error:e}");
        }
    }
}

/// Both ends of an edge hold the rows of every picture apart. A product of a larger matrix may be
/// rounded otherwise, and a number at the border of two codes fall on the other side; what one code
/// is worth is not what a mix-up of pictures is.
#[test]
fn pictures_of_a_batch_that_travels_as_changes_are_those_drawn_alone() {
    let engine = Engine::start(batching(2, degrees(1, 2, 1))).unwrap();
    let wire = Wire { pipefusion: WireDtype::Int8, residual: true, ..Wire::default() };
    let wire = Some(Wire { refresh_every: 3, ..wire });
    let requests =
        requests(4.5).map(|request| GenerateRequest { num_inference_steps: 8, wire, ..request });
    let handles = ask(&engine, &requests).into_iter();
    let together: Vec<_> = handles.map(|handle| handle.blocking_finish().unwrap()).collect();
    let alone = requests.map(|request| draw(&engine, request));
    for (index, (together, own)) in together.iter().zip(&alone).enumerate() {
        assert_eq!((together.report.batch, own.report.batch), (4, 1));
        let error = relative(latents(together), latents(own));
        assert!(error <= 3e-4, "picture {index}: {error:e}");
        let next = &alone[(index + 1) % PROMPTS.len()];
        assert!(relative(latents(together), latents(next)) > 0.1);
    }
}

#[test]
fn one_of_a_batch_can_be_cancelled_and_the_others_get_their_pictures() {
    let engine = Engine::start(batching(2, degrees(1, 2, 1))).unwrap();
    let requests = requests(4.5).map(|request| GenerateRequest {
        num_inference_steps: 40,
        output: OutputKind::Image,
        ..request
    });
    let mut handles = ask(&engine, &requests);
    while !matches!(handles[1].blocking_next_event(), Some(Event::Step { .. })) {}
    drop(handles.remove(1));
    let mut pictures = Vec::new();
    for handle in handles {
        let generation = handle.blocking_finish().unwrap();
        assert_eq!(generation.report.batch, 4);
        let Output::Image(image) = generation.output else { panic!("a picture") };
        assert_eq!(image.data.len(), (image.width * image.height * 3) as usize);
        pictures.push(image.data);
    }
    assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2]);
    assert_eq!(engine.blocking_status().unwrap().running, 0);
}

#[test]
fn all_of_a_batch_cancelled_ends_its_run() {
    let engine = Engine::start(batching(2, degrees(1, 2, 1))).unwrap();
    let long =
        requests(4.5).map(|request| GenerateRequest { num_inference_steps: 1000, ..request });
    let mut handles = ask(&engine, &long);
    while !matches!(handles[0].blocking_next_event(), Some(Event::Step { .. })) {}
    let last = handles.pop().unwrap();
    drop(handles);
    drop(last);
    let next =
        draw(&engine, GenerateRequest { num_inference_steps: 2, ..requests(4.5)[0].clone() });
    assert_eq!(next.report.batch, 1);
}

#[test]
fn by_default_and_with_tensors_of_its_own_a_request_is_alone() {
    let engine = Engine::start(manifest(1)).unwrap();
    for handle in ask(&engine, &requests(4.5)) {
        assert_eq!(handle.blocking_finish().unwrap().report.batch, 1);
    }
    let engine = Engine::start(batching(1, degrees(1, 1, 1))).unwrap();
    let cached = requests(4.5)
        .map(|request| GenerateRequest { step_cache: Some(StepCache::default()), ..request });
    for handle in ask(&engine, &cached) {
        let ended: Result<Generation, GenerateError> = handle.blocking_finish();
        assert_eq!(ended.unwrap().report.batch, 1);
    }
}
