//! The same latents from four worker processes, over QUIC and over UCX, as from diffusers and from
//! one process.

use crate::cli_generate::{CASE, fixtures, relative, tensor};
use crate::cluster_harness::{Cluster, Settings};

const OUTPUT: &str = "out.safetensors";

#[test]
fn processes_over_quic_give_the_latents_of_diffusers_and_of_one_process() {
    processes_give_the_latents(Settings { devices: 2, ..Settings::default() });
}

#[test]
fn processes_over_ucx_give_the_latents_of_diffusers_and_of_one_process() {
    match ditmesh_transport::ucx::version() {
        Ok(_) => {
            processes_give_the_latents(Settings { devices: 2, ucx: true, ..Settings::default() });
        }
        Err(error) => {
            assert!(std::env::var_os("DITMESH_TEST_UCX").is_none(), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}

fn processes_give_the_latents(settings: Settings) {
    let cluster = Cluster::up(settings);
    let inputs = fixtures().join("cases").join(CASE).join("square.safetensors");
    let model = fixtures().join("pipelines").join(CASE);
    let (inputs, model) = (inputs.to_str().unwrap(), model.to_str().unwrap());
    let run = ["generate", "--latents", inputs, "--prompt-embeds", inputs, "--steps", "8"];
    let run = [&run[..], &["--height", "32", "--width", "32"]].concat();
    let run = [&run[..], &["--output-type", "latent", "-o", OUTPUT]].concat();
    let latents = |place: &[&str], mesh: &[&str]| {
        cluster.run(&[&run[..], place, mesh].concat()).done();
        tensor(&cluster.folder().join(OUTPUT), "latents")
    };
    let processes = ["--cluster", "cluster.toml"];
    let memory = ["--model", model, "--threads", "1"];
    let expected = tensor(inputs.as_ref(), "out.latents");
    for mesh in [&["--ulysses-degree", "4"][..], &["--cfg-degree", "2", "--ulysses-degree", "2"]] {
        let error = relative(&latents(&processes, mesh), &expected);
        assert!(error <= 1e-5, "{mesh:?}: {error:e} of diffusers");
    }
    let stages = ["--cfg-degree", "2", "--pipefusion-degree", "2", "--num-pipeline-patch", "4"];
    assert_eq!(latents(&processes, &stages), latents(&memory, &stages), "to the bit");
    let mesh = cluster.status().mesh.unwrap();
    let carrier = if settings.ucx { "ucx-shm" } else { "quic" };
    assert!(!mesh.links.is_empty());
    assert!(mesh.links.iter().all(|link| link.transport == carrier), "{:?}", mesh.links);
}
