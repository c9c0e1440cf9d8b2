//! Files: what a picture carries is read back, and wrong files are refused.

use ditmesh::recipe::{ModelFacts, Recipe};
use ditmesh::{FloatTensor, GenerateRequest, Report, RgbImage, picture, tensor_file};
use serde_json::Value;

use crate::cli_process::ditmesh;

fn recipe() -> Recipe {
    let request = GenerateRequest {
        negative_prompt: "blur".into(),
        seed: 7,
        ..GenerateRequest::new("a red apple, \u{8d64}\u{3044}")
    };
    let report = Report { num_pipeline_patch: 4, sync_steps: 1, ..Report::default() };
    let model = ModelFacts { name: "built-in".into(), ..ModelFacts::default() };
    Recipe::new(&request, &report, &model, Some((2, 3)))
}

#[test]
fn a_pictures_recipe_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let image = RgbImage { width: 3, height: 2, data: vec![9; 18] };
    let bytes = picture::encode(&image, &recipe()).unwrap();
    std::fs::write(folder.path().join("a.png"), bytes).unwrap();
    let text = ditmesh(folder.path(), &["inspect", "a.png"]);
    for part in ["a red apple, \u{8d64}\u{3044}", "blur", "3 x 2", "seed              7", "cfg 1 x"]
    {
        assert!(text.done().contains(part), "{part:?} is not in {}", text.stdout);
    }
    let json = ditmesh(folder.path(), &["inspect", "--json", "a.png"]);
    let read: Recipe = serde_json::from_str(json.done()).unwrap();
    assert_eq!(read, recipe());
}

#[test]
fn latents_carry_their_recipe_too() {
    let folder = tempfile::tempdir().unwrap();
    let latents = FloatTensor { shape: vec![1, 1, 1, 2], data: vec![0.5, 1.5] };
    let bytes = tensor_file::encode_latents(&latents, &recipe()).unwrap();
    std::fs::write(folder.path().join("a.safetensors"), bytes).unwrap();
    let json = ditmesh(folder.path(), &["inspect", "--json", "a.safetensors"]);
    let read: Value = serde_json::from_str(json.done()).unwrap();
    assert_eq!(read["seed"], 7);
}

#[test]
fn pictures_of_others_show_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, parameters: Option<&str>| {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        if let Some(text) = parameters {
            encoder.add_text_chunk("parameters".into(), text.into()).unwrap();
        }
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
    };
    write("web.png", Some("a pear\nSteps: 3"));
    write("plain.png", None);
    let text = ditmesh(folder.path(), &["inspect", "web.png"]);
    assert_eq!(text.done(), "a pear\nSteps: 3\n");
    ditmesh(folder.path(), &["inspect", "plain.png"]).refused(1, &["carries no recipe"]);
}

#[test]
fn what_is_no_picture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let image = RgbImage { width: 3, height: 2, data: vec![9; 18] };
    let whole = picture::encode(&image, &recipe()).unwrap();
    let cases: &[(&str, &[u8], &str)] = &[
        ("empty", b"", "neither a png nor"),
        ("text", b"hello, this is no picture", "neither a png nor"),
        ("cut.png", &whole[..40], "not a readable png"),
        (
            "odd.safetensors",
            b"\xff\xff\xff\xff\xff\xff\xff\x7f{\"a\":1}",
            "not a valid safetensors",
        ),
    ];
    for (name, bytes, part) in cases {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        ditmesh(folder.path(), &["inspect", name]).refused(1, &[name, part]);
    }
    ditmesh(folder.path(), &["inspect", "absent.png"]).refused(1, &["cannot read absent.png"]);
    ditmesh(folder.path(), &["inspect", "."]).refused(1, &["cannot read ."]);
}

#[test]
fn tensor_files_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let latents = FloatTensor { shape: vec![1, 1, 1, 1], data: vec![f32::NAN] };
    let bytes = tensor_file::encode_latents(&latents, &recipe()).unwrap();
    std::fs::write(folder.path().join("nan.safetensors"), bytes).unwrap();
    std::fs::write(folder.path().join("absurd.safetensors"), [0xff; 64]).unwrap();
    let generate = |args: &[&str]| ditmesh(folder.path(), &[&["generate"], args].concat());
    let nan = ["-p", "x", "--latents", "nan.safetensors"];
    generate(&nan).refused(2, &["nan.safetensors", "`latents` holds NaN"]);
    let absurd = ["-p", "x", "--latents", "absurd.safetensors"];
    generate(&absurd).refused(2, &["absurd.safetensors is not a valid safetensors file"]);
    let embeds = ["--prompt-embeds", "nan.safetensors"];
    generate(&embeds).refused(2, &["no tensor `prompt_embeds`; it holds latents"]);
}
