//! Model folders, weight files and configurations: what is accepted, and how the rest is refused.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ditmesh_model::checkpoint::{
    Checkpoint, CheckpointError, PipelineClass, Weights, read_json, typed_config,
};
use serde::Deserialize;

use crate::fixture::{self, Outcome, copy_folder};

const CPU: Device = Device::Cpu;

/// A folder of its own with `<stem><rest>` holding the given tensors.
fn folder(files: &[(&str, &[(&str, Tensor)])]) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    for (name, tensors) in files {
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, dir.path().join(name))?;
    }
    Ok(dir)
}

fn ramp(count: usize, dtype: DType) -> Result<Tensor, candle_core::Error> {
    Tensor::arange(0f32, count as f32, &CPU)?.affine(0.25, -1.0)?.to_dtype(dtype)
}

#[test]
fn weights_are_read_from_every_layout_and_type() -> Outcome {
    let expected = ramp(6, DType::F32)?.reshape((2, 3))?;
    for stored in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        let tensor = expected.to_dtype(stored)?;
        let other = ramp(4, stored)?;
        let layouts = [
            folder(&[("m.safetensors", &[("a", tensor.clone()), ("b", other.clone())])])?,
            folder(&[("m.fp16.safetensors", &[("a", tensor.clone()), ("b", other.clone())])])?,
            folder(&[("m.bf16.safetensors", &[("a", tensor.clone()), ("b", other.clone())])])?,
            folder(&[
                ("m-1.safetensors", &[("a", tensor.clone())]),
                ("m-2.safetensors", &[("b", other)]),
            ])?,
        ];
        let map = r#"{"metadata": {"total_size": 1},
            "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
        std::fs::write(layouts[3].path().join("m.safetensors.index.json"), map)?;
        for layout in &layouts {
            let weights = Weights::open(layout.path(), "m")?;
            assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(weights.bytes_read(), 0);
            let read = weights.get("a", &[2, 3], DType::F32, &CPU)?;
            assert_eq!(read.to_vec2::<f32>()?, expected.to_vec2::<f32>()?, "{stored:?}");
            assert_eq!(weights.bytes_read(), 6 * stored.size_in_bytes() as u64);
            assert_eq!(weights.get("a", &[2, 3], DType::BF16, &CPU)?.dtype(), DType::BF16);
            assert!(weights.contains("b") && !weights.contains("c"));
            assert_eq!(weights.stored_bytes("b"), Some(4 * stored.size_in_bytes() as u64));
        }
    }
    Ok(())
}

#[test]
fn the_plain_file_is_preferred_to_variants() -> Outcome {
    let (one, two) = (ramp(1, DType::F32)?, ramp(2, DType::F32)?);
    let dir = folder(&[("m.safetensors", &[("a", one)]), ("m.fp16.safetensors", &[("a", two)])])?;
    assert_eq!(Weights::open(dir.path(), "m")?.shape("a"), Some(&[1][..]));
    Ok(())
}

/// The message of an error, or a failed test.
fn message<T>(result: Result<T, CheckpointError>) -> Result<String, Box<dyn Error>> {
    match result {
        Ok(_) => Err("it was accepted".into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message} does not name {part}");
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() -> Outcome {
    let (a, b) = (ramp(6, DType::F32)?.reshape((2, 3))?, ramp(2, DType::F32)?);
    let dir = folder(&[("m.safetensors", &[("a", a), ("b", b)])])?;
    let weights = Weights::open(dir.path(), "m")?;
    let shapes = |list: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
    };
    weights.check(&shapes(&[("a", &[2, 3]), ("b", &[2])]), &[])?;
    weights.check(&shapes(&[("a", &[2, 3])]), &["b"])?;
    let text = message(weights.check(&shapes(&[("a", &[2, 3])]), &["c"]))?;
    assert_names(&text, &["m.safetensors", "`b`", "[2]", "not part of"]);
    let text = message(weights.check(&shapes(&[("c", &[7])]), &[]))?;
    assert_names(&text, &["m.safetensors", "`c`", "[7]", "missing"]);
    let text = message(weights.get("a", &[3, 2], DType::F32, &CPU))?;
    assert_names(&text, &["m.safetensors", "`a`", "[2, 3]", "[3, 2]"]);
    Ok(())
}

#[test]
fn missing_files_and_shards_are_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let open = || message(Weights::open(dir.path(), "m"));
    assert_names(&open()?, &["m.safetensors", "index.json"]);
    std::fs::write(dir.path().join("m.bin"), "")?;
    assert_names(&open()?, &[".bin files are not read"]);
    let index = dir.path().join("m.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors"}}"#)?;
    assert_names(&open()?, &["m-1.safetensors", "m.safetensors.index.json"]);
    std::fs::write(&index, r#"{"weight_map": {"a": "../m-1.safetensors"}}"#)?;
    assert_names(&open()?, &["../m-1.safetensors", "plain file name"]);
    std::fs::write(&index, r#"{"weight_map": 3}"#)?;
    assert_names(&open()?, &["m.safetensors.index.json", "weight_map"]);
    let tensors = HashMap::from([("b", ramp(1, DType::F32)?)]);
    candle_core::safetensors::save(&tensors, dir.path().join("m-1.safetensors"))?;
    std::fs::write(&index, r#"{"weight_map": {"a": "m-1.safetensors"}}"#)?;
    assert_names(&open()?, &["`a`", "m-1.safetensors"]);
    std::fs::copy(dir.path().join("m-1.safetensors"), dir.path().join("m-2.safetensors"))?;
    std::fs::write(&index, r#"{"weight_map": {"b": "m-1.safetensors", "c": "m-2.safetensors"}}"#)?;
    assert_names(&open()?, &["`b`", "another shard"]);
    Ok(())
}

/// A safetensors file of a header text and some bytes of data.
fn file(length: Option<u64>, header: &str, data: usize) -> Vec<u8> {
    let mut bytes = length.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn absurd_headers_are_refused() -> Outcome {
    let entry = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}"#)
    };
    let header = |entries: &[String]| format!("{{{}}}", entries.join(", "));
    let one =
        |dtype: &str, shape: &str, offsets: &str| header(&[entry("a", dtype, shape, offsets)]);
    let good = one("F32", "[2]", "[0, 8]");
    let pair = |second: &str| {
        header(&[entry("a", "F32", "[2]", "[0, 8]"), entry("b", "F32", "[2]", second)])
    };
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["0 bytes"]),
        (vec![1, 2, 3], &["3 bytes"]),
        (file(Some(u64::MAX), &good, 8), &["18446744073709551615"]),
        (file(Some(1 << 40), &good, 8), &["1099511627776"]),
        (file(Some(4000), &good, 8), &["truncated", "4008"]),
        (file(None, "not json", 0), &["not a json object"]),
        (file(None, "[1, 2]", 0), &["not a json object"]),
        (file(None, &good, 7), &["truncated"]),
        (file(None, &good, 0), &["truncated"]),
        (file(None, &good, 9), &["1 bytes follow"]),
        (file(None, &one("F31", "[2]", "[0, 8]"), 8), &["`a`", "F31"]),
        (file(None, &one("F16", "[2]", "[0, 8]"), 8), &["`a`", "4 bytes", "F16"]),
        (file(None, &one("F32", "[2]", "[8, 0]"), 8), &["`a`", "8..0"]),
        (file(None, &one("F32", "[2]", "[-8, 0]"), 8), &["`a`"]),
        (file(None, &one("F32", "[-2]", "[0, 8]"), 8), &["`a`"]),
        (file(None, &one("F32", "[4294967296, 4294967296, 8]", "[0, 8]"), 8), &["`a`", "overflow"]),
        (
            file(None, &one("F32", "[2]", "[18446744073709551607, 18446744073709551615]"), 8),
            &["`a`", "overflow"],
        ),
        (file(None, r#"{"a": {"dtype": "F32"}}"#, 0), &["`a`", "shape"]),
        (file(None, &pair("[4, 12]"), 12), &["`b`", "overlaps"]),
        (file(None, &pair("[0, 8]"), 8), &["overlaps"]),
        (file(None, &pair("[12, 20]"), 20), &["`b`", "8..12"]),
        (file(None, &one("F32", "[2]", "[8, 16]"), 16), &["0..8"]),
    ];
    let dir = tempfile::tempdir()?;
    for (bytes, expected) in cases {
        std::fs::write(dir.path().join("m.safetensors"), bytes)?;
        let text = message(Weights::open(dir.path(), "m"))?;
        assert_names(&text, &["m.safetensors"]);
        assert_names(&text, expected);
    }
    // Known, whole, but not read: it is an error only for who asks for it.
    let odd = one("F8_E4M3", "[2]", "[0, 2]");
    std::fs::write(dir.path().join("m.safetensors"), file(None, &odd, 2))?;
    let weights = Weights::open(dir.path(), "m")?;
    let text = message(weights.get("a", &[2], DType::F32, &CPU))?;
    assert_names(&text, &["m.safetensors", "`a`", "F8_E4M3", "BF16"]);
    Ok(())
}

#[test]
fn empty_tensors_and_metadata_are_fine() -> Outcome {
    let header = r#"{"__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}"#;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("m.safetensors"), file(None, header, 0))?;
    let weights = Weights::open(dir.path(), "m")?;
    assert_eq!(weights.get("a", &[0], DType::F32, &CPU)?.dims(), [0]);
    Ok(())
}

/// A damaged copy of a pipeline folder.
fn damaged(
    damage: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    copy_folder(&fixture::path("pipelines/alpha_6x4"), dir.path())?;
    damage(dir.path())?;
    Ok(dir)
}

#[test]
fn pipelines_open_and_others_are_refused() -> Outcome {
    let open = |name: &str| Checkpoint::open(&fixture::path("pipelines").join(name));
    let checkpoint = open("alpha_6x4")?;
    assert_eq!(checkpoint.class(), PipelineClass::PixArtAlpha);
    assert_eq!(checkpoint.component_class("tokenizer"), Some("T5Tokenizer"));
    assert_eq!(checkpoint.config_json("transformer")?["num_layers"], 4);
    assert_eq!(open("sigma_8x8")?.class().text_tokens(), 300);
    let text = message(Checkpoint::open(Path::new("/nowhere")))?;
    assert_names(&text, &["/nowhere/model_index.json", "save_pretrained"]);
    let cases: [(&str, &str, &[&str]); 4] = [
        (
            "\"PixArtAlphaPipeline\"",
            "\"FluxPipeline\"",
            &["_class_name", "FluxPipeline", "PixArtSigmaPipeline"],
        ),
        ("\"PixArtAlphaPipeline\"", "", &["broken json", "line"]),
        ("\"vae\"", "\"vea\"", &["`vae`", "absent"]),
        ("\"AutoencoderKL\"", "null", &["`vae`"]),
    ];
    for (old, new, expected) in cases {
        let dir = damaged(|dir| {
            let path = dir.join("model_index.json");
            std::fs::write(&path, std::fs::read_to_string(&path)?.replace(old, new))
        })?;
        let text = message(Checkpoint::open(dir.path()))?;
        assert_names(&text, &["model_index.json"]);
        assert_names(&text, expected);
    }
    let dir = damaged(|dir| std::fs::remove_dir_all(dir.join("scheduler")))?;
    assert_names(&message(Checkpoint::open(dir.path()))?, &["scheduler", "model_index.json"]);
    Ok(())
}

#[test]
fn the_identity_changes_with_configuration_and_weights_only() -> Outcome {
    let original = Checkpoint::open(&fixture::path("pipelines/alpha_6x4"))?.model_id()?;
    let id = |dir: &tempfile::TempDir| Checkpoint::open(dir.path())?.model_id();
    assert_eq!(id(&damaged(|_| Ok(()))?)?, original);
    assert_eq!(id(&damaged(|dir| std::fs::write(dir.join("README.md"), "x"))?)?, original);
    let edit = |name: &'static str, at: usize| {
        move |dir: &Path| {
            let path: PathBuf = dir.join(name);
            let mut bytes = std::fs::read(&path)?;
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1;
            std::fs::write(path, bytes)
        }
    };
    assert_ne!(id(&damaged(edit("vae/config.json", 3))?)?, original);
    assert_ne!(
        id(&damaged(edit("vae/diffusion_pytorch_model.safetensors", usize::MAX))?)?,
        original
    );
    // Another fine-tune of the same shape: every weight differs.
    let retrained = damaged(|dir| {
        let path = dir.join("transformer/diffusion_pytorch_model.safetensors");
        let mut bytes = std::fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle..].iter_mut().for_each(|byte| *byte ^= 1);
        std::fs::write(path, bytes)
    })?;
    assert_ne!(id(&retrained)?, original);
    assert_ne!(Checkpoint::open(&fixture::path("pipelines/sigma_8x8"))?.model_id()?, original);
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sample {
    num_layers: usize,
    eps: f64,
    name: Option<String>,
}

#[test]
fn typed_configurations_name_the_key() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text)?;
        Ok::<_, Box<dyn Error>>(typed_config::<Sample>(dir.path()))
    };
    let sample = read(r#"{"_class_name": "X", "num_layers": 3, "eps": 1e-5, "name": null}"#)??;
    assert_eq!((sample.num_layers, sample.eps, sample.name), (3, 1e-5, None));
    let text = message(read(r#"{"num_layer": 3}"#)?)?;
    assert_names(&text, &["config.json", "`num_layer`", "`num_layers`"]);
    let text = message(read(r#"{"eps": 1, "num_layers": "three"}"#)?)?;
    assert_names(&text, &["config.json", "`num_layers`", "three"]);
    let text = message(read(r#"{"num_layers": -3}"#)?)?;
    assert_names(&text, &["`num_layers`", "-3"]);
    assert_names(&message(read("[1]")?)?, &["config.json", "object"]);
    assert_names(&message(read("{\n\"eps\" 1}")?)?, &["config.json", "line 2"]);
    assert_names(&message(read("{\"eps\": \u{1}")?)?, &["config.json"]);
    std::fs::write(&path, [0xff, 0xfe])?;
    assert_names(&message(typed_config::<Sample>(dir.path()))?, &["config.json", "utf-8"]);
    std::fs::write(&path, vec![b' '; (4 << 20) + 1])?;
    assert_names(&message(read_json(&path))?, &["config.json", "4194305", "4194304"]);
    std::fs::remove_file(&path)?;
    assert_names(&message(typed_config::<Sample>(dir.path()))?, &["config.json"]);
    // Deep nesting is refused by the parser and does not overflow the stack.
    let deep = read(&"[".repeat(100_000))?;
    assert_names(&message(deep)?, &["recursion"]);
    Ok(())
}
