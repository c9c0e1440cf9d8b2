//! From the command line to a file, with fixture models on the devices of one process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ditmesh::recipe::Recipe;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::cli_process::{Ended, ditmesh};

pub(crate) const CASE: &str = "sigma_8x8";

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model/tests/fixtures")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `generate` with the fixture's model, and the latents and embeddings of its square case.
fn generate(folder: &Path, args: &[&str]) -> Ended {
    let model = fixtures().join("pipelines").join(CASE);
    let inputs = fixtures().join("cases").join(CASE).join("square.safetensors");
    let (model, inputs) = (text(&model), text(&inputs));
    let given = ["generate", "--model", model, "--latents", inputs, "--prompt-embeds", inputs];
    ditmesh(folder, &[&given[..], &["--steps", "8", "--threads", "1"], args].concat())
}

pub(crate) fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap().data();
    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `||a-b|| / ||b||` in f64.
pub(crate) fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut b.iter().map(|b| f64::from(*b)))
}

#[test]
fn latents_equal_those_of_diffusers_on_exact_meshes() {
    let folder = tempfile::tempdir().unwrap();
    let expected = fixtures().join("cases").join(CASE).join("square.safetensors");
    let expected = tensor(&expected, "out.latents");
    let output = ["--output-type", "latent", "-o", "out.safetensors", "--height", "32"];
    let output = [&output[..], &["--width", "32"]].concat();
    for mesh in [&[][..], &["--cfg-degree", "2"], &["--cfg-degree", "2", "--ulysses-degree", "2"]] {
        let ended = generate(folder.path(), &[&output[..], mesh].concat());
        assert_eq!(ended.done(), "out.safetensors\n");
        let error = relative(&tensor(&folder.path().join("out.safetensors"), "latents"), &expected);
        assert!(error <= 1e-5, "{mesh:?}: {error:e}");
    }
}

#[test]
fn a_picture_carries_its_recipe_and_the_report_says_who_did_what() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = ["--cfg-degree", "2", "--pipefusion-degree", "2", "--num-pipeline-patch", "4"];
    let files = ["--height", "32", "--width", "32", "-o", "a.png", "--report", "r.json"];
    let ended = generate(folder.path(), &[&mesh[..], &files[..], &["--log", "error"]].concat());
    assert_eq!(ended.done(), "a.png\n");
    assert_eq!(ended.stderr, "");
    let json = ditmesh(folder.path(), &["inspect", "--json", "a.png"]);
    let recipe: Recipe = serde_json::from_str(json.done()).unwrap();
    assert_eq!((recipe.height, recipe.width), (Some(32), Some(32)));
    assert_eq!((recipe.degrees.cfg_degree, recipe.degrees.pipefusion_degree), (2, 2));
    assert_eq!((recipe.num_pipeline_patch, recipe.num_inference_steps), (4, 8));
    assert_eq!((recipe.model.as_str(), recipe.sampler.as_deref()), (CASE, Some("DPM++ 2M")));
    assert!(recipe.latents_given && recipe.prompt_embeds_given && recipe.model_id.is_some());
    let report = std::fs::read(folder.path().join("r.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let changes = report["pictures"][0]["report"]["kv_change"].as_array().unwrap();
    assert_eq!(changes.len(), 8, "one for each step");
    assert!(changes[0].is_null() && changes[1..].iter().all(|change| change.as_f64() > Some(0.0)));
    let ranks = report["pictures"][0]["report"]["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 4);
    for rank in ranks {
        assert!(rank["weight_bytes_read"].as_u64().unwrap() > 0, "{rank}");
        assert!(rank["bytes_sent"].as_u64().unwrap() > 0, "{rank}");
    }
}

#[test]
fn several_pictures_have_seeds_in_sequence_and_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixtures().join("pipelines").join(CASE);
    let call = |args: &[&str]| {
        let given = ["generate", "--model", text(&model), "-p", "a red apple", "--steps", "2"];
        let size = ["--height", "16", "--width", "24"];
        ditmesh(folder.path(), &[&given[..], &size[..], args].concat())
    };
    let several = call(&["-n", "2", "--seed", "5", "-o", "a.png"]);
    assert_eq!(several.done(), "a-0.png\na-1.png\n");
    call(&["--seed", "6", "-o", "again.png", "-q"]).done();
    let pixels = |name: &str| {
        let file = std::fs::File::open(folder.path().join(name)).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
        assert_eq!((reader.info().width, reader.info().height), (24, 16));
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    assert_ne!(pixels("a-0.png"), pixels("a-1.png"));
    assert_eq!(pixels("a-1.png"), pixels("again.png"));
    let replicas = call(&["-n", "3", "--seed", "4", "-o", "b.png", "--data-degree", "2"]);
    assert_eq!(replicas.done(), "b-0.png\nb-1.png\nb-2.png\n");
    assert_eq!(pixels("b-1.png"), pixels("a-0.png"));
    assert_eq!(pixels("b-2.png"), pixels("a-1.png"));
}

#[test]
fn what_the_model_cannot_do_is_a_usage_error_that_says_what_would() {
    let folder = tempfile::tempdir().unwrap();
    for (args, parts) in [
        (&["--height", "31"][..], &["31"][..]),
        (&["--height", "64"], &["latents"]),
        (&["--num-pipeline-patch", "4", "--sync-steps", "0"], &["sync_steps"]),
        (&["--pipefusion-degree", "2", "--sync-steps", "0"], &["sync_steps"]),
        (&["--guidance-scale", "1", "--cfg-degree", "2"], &["cfg_degree"]),
    ] {
        generate(folder.path(), &[&["-o", "x.png"][..], args].concat()).refused(2, parts);
        assert!(!folder.path().join("x.png").exists());
    }
}

#[test]
fn degrees_that_the_model_cannot_have_say_what_would_fit() {
    let folder = tempfile::tempdir().unwrap();
    for (args, parts) in [
        (["--pipefusion-degree", "64"], ["8 blocks", "at most 8 would fit"]),
        (["--ulysses-degree", "9"], ["8 attention heads", "at most 8 would fit"]),
    ] {
        let ended = generate(folder.path(), &args);
        let code = ended.code.unwrap_or_default();
        assert!(matches!(code, 1 | 2), "{ended:?}");
        ended.refused(code, &parts);
    }
}

/// A copy of the fixture's model folder.
fn copied(folder: &Path) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                std::fs::copy(&path, &target).unwrap();
            }
        }
    }
    let target = folder.join("model");
    copy(&fixtures().join("pipelines").join(CASE), &target);
    target
}

#[test]
fn a_broken_model_is_one_clear_error() {
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        ("no index", &|model| remove(&model.join("model_index.json")), &["model_index.json"]),
        ("no weights", &|model| remove(&model.join(weights)), &["diffusion_pytorch_model"]),
        ("cut weights", &|model| cut(&model.join(weights)), &["truncated"]),
        ("absurd header", &|model| write(&model.join(weights), &[0xff; 64]), &["header"]),
        (
            "broken json",
            &|model| write(&model.join("vae/config.json"), b"{\"a\": "),
            &["vae/config.json"],
        ),
        ("no tokenizer", &|model| remove(&model.join("tokenizer/tokenizer.json")), &["tokenizer"]),
    ];
    for (name, spoil, parts) in cases {
        let folder = tempfile::tempdir().unwrap();
        let model = copied(folder.path());
        spoil(&model);
        let call = ["generate", "--model", "model", "-p", "x", "--steps", "1", "-o", "x.png"];
        let ended = ditmesh(folder.path(), &call);
        let code = ended.code.unwrap_or_default();
        assert!(matches!(code, 1 | 2), "{name}: {ended:?}");
        ended.refused(code, parts);
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    write(path, &bytes[..bytes.len() / 2]);
}

#[test]
fn an_interrupt_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixtures().join("pipelines").join(CASE);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ditmesh"))
        .args(["generate", "--model", text(&model), "-p", "x", "--steps", "1000"])
        .args(["--height", "128", "--width", "128", "-o", "x.png", "--log", "ditmesh=info"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // A process that does not catch the signal yet dies of it: wait until it does.
    while !catches_interrupt(child.id()) {
        assert!(Instant::now() < deadline, "it never listened for signals");
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "it did not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Whether SIGINT (bit 1) is among the caught signals of a process.
fn catches_interrupt(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 2 != 0))
}
