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
            processes_give_the_latents(Settings {
                devices: 2,
                transport: "ucx",
                ..Settings::default()
            });
        }
        Err(error) => {
            assert!(std::env::var_os("DITMESH_TEST_UCX").is_none(), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}

/// With `auto` devices of a host share memory where UCX is, hosts talk QUIC, and both are said.
#[test]
fn auto_takes_shared_memory_within_a_host_and_quic_between_hosts() {
    let here = ditmesh_transport::ucx::version();
    assert!(here.is_ok() || std::env::var_os("DITMESH_TEST_UCX").is_none(), "{here:?}");
    let settings = Settings { devices: 2, transport: "auto", apart: true, ..Settings::default() };
    let cluster = Cluster::new(settings);
    let planned = cluster.run(&["plan", "--cluster", "cluster.toml", "--json"]);
    let planned: serde_json::Value = serde_json::from_str(planned.done()).unwrap();
    let [inside, across] = ["same_host", "other_host"]
        .map(|class| planned["carriers"][class].as_str().unwrap().to_owned());
    assert_eq!(across, "quic: auto encrypts what crosses hosts");
    let (carrier, why) = match &here {
        Ok(version) => {
            assert!(inside.contains(&format!("UCX {version} is here")), "{inside}");
            ("ucx-shm", "both ends are on one host and have UCX")
        }
        Err(error) => {
            assert!(inside.contains(&error.to_string()), "{inside}");
            ("quic", "neither end has UCX")
        }
    };
    cluster.run(&["up", "--detach"]).done();
    let run = ["generate", "--cluster", "cluster.toml", "-p", "a red apple", "--steps", "2"];
    let degrees = ["--cfg-degree", "2", "--ulysses-degree", "2", "-o", "apple.png"];
    cluster.run(&[&run[..], &degrees].concat()).done();
    let mesh = cluster.status().mesh.unwrap();
    let host = |rank: u32| mesh.ranks[rank as usize].device.split('/').next().unwrap().to_owned();
    let (mut within, mut between) = (0, 0);
    for link in &mesh.links {
        if host(link.a) == host(link.b) {
            assert_eq!(link.transport, carrier, "{link:?}");
            assert!(link.why.contains(why), "{link:?}");
            within += 1;
        } else {
            assert_eq!((link.transport.as_str(), &*link.why), ("quic", &across["quic: ".len()..]));
            between += 1;
        }
    }
    assert!(within >= 2 && between >= 1, "{:?}", mesh.links);
    let said = cluster.run(&["status"]);
    for part in [format!("links over {carrier} ("), format!("links over quic ({}", &across[6..])] {
        assert!(said.done().contains(&part), "{part:?} is not in {}", said.stdout);
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
    let carrier = if settings.transport == "ucx" { "ucx-shm" } else { "quic" };
    assert!(!mesh.links.is_empty());
    assert!(mesh.links.iter().all(|link| link.transport == carrier), "{:?}", mesh.links);
}
