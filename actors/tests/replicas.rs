//! Data parallelism: replicas of a mesh that draw pictures of their own, to the bit those of one.

use std::collections::BTreeSet;

use ditmesh_actors::engine::Engine;
use ditmesh_actors::request::{Degrees, Event, GenerateRequest, Generation};

use crate::engine::{draw, latents, manifest, request};

fn replicas(data_degree: u32, pipefusion_degree: u32) -> Degrees {
    Degrees { data_degree, pipefusion_degree, ..Degrees::default() }
}

#[test]
fn replicas_of_any_mesh_draw_what_it_draws() {
    let engine = Engine::start(manifest(8)).unwrap();
    for mesh in [
        Degrees { cfg_degree: 2, ..Degrees::default() },
        Degrees { ulysses_degree: 2, ..Degrees::default() },
        Degrees { ring_degree: 2, cfg_degree: 2, ..Degrees::default() },
        Degrees { ulysses_degree: 2, pipefusion_degree: 2, ..Degrees::default() },
    ] {
        let several = GenerateRequest {
            num_images_per_prompt: 4,
            degrees: Some(Degrees { data_degree: 2, ..mesh }),
            ..request("a red apple")
        };
        let drawn: Vec<Generation> = engine
            .generate_images(&several)
            .unwrap()
            .into_iter()
            .map(|handle| handle.blocking_finish().unwrap())
            .collect();
        let used: BTreeSet<u32> = drawn.iter().map(|generation| generation.report.data).collect();
        assert_eq!(used, BTreeSet::from([0, 1]), "{mesh}");
        for (image, generation) in several.images().unwrap().into_iter().zip(&drawn) {
            let alone = draw(&engine, GenerateRequest { degrees: Some(mesh), ..image });
            assert_eq!(latents(generation), latents(&alone), "{mesh}");
        }
    }
}

#[test]
fn pictures_of_one_request_are_dealt_to_replicas_and_do_not_depend_on_where_they_run() {
    let engine = Engine::start(manifest(4)).unwrap();
    let (two, one) = (Some(replicas(2, 2)), Some(replicas(1, 2)));
    let several = GenerateRequest {
        seed: 5,
        num_images_per_prompt: 4,
        degrees: two,
        num_inference_steps: 12,
        ..request("a red apple")
    };
    let mut handles = engine.generate_images(&several).unwrap();
    let events: Vec<Event> = std::iter::from_fn(|| handles[3].blocking_next_event()).collect();
    let drawn: Vec<Generation> =
        handles.into_iter().map(|handle| handle.blocking_finish().unwrap()).collect();
    assert!(events.contains(&Event::Step { step: 12, of: 12 }), "{events:?}");
    let used: BTreeSet<u32> = drawn.iter().map(|generation| generation.report.data).collect();
    assert_eq!(used, BTreeSet::from([0, 1]));
    let report = &drawn[0].report;
    assert_eq!((report.degrees, report.ranks.len()), (replicas(2, 2), 2));
    let status = engine.blocking_status().unwrap().mesh.unwrap();
    let places: Vec<(u32, u32)> = status.ranks.iter().map(|rank| (rank.rank, rank.data)).collect();
    assert_eq!(places, [(0, 0), (1, 0), (2, 1), (3, 1)]);
    for (image, generation) in several.images().unwrap().into_iter().zip(&drawn) {
        let alone = draw(&engine, GenerateRequest { degrees: one, ..image });
        assert_eq!(latents(generation), latents(&alone));
    }
}

#[test]
fn a_request_for_several_pictures_must_be_dealt_first() {
    let engine = Engine::start(manifest(1)).unwrap();
    let several = GenerateRequest { num_images_per_prompt: 2, ..request("a red apple") };
    let error = engine.generate(several).blocking_finish().unwrap_err();
    assert!(error.to_string().contains("num_images_per_prompt 2"), "{error}");
}
