//! Tokenizer and T5 encoder against transformers.

use std::error::Error;

use candle_core::{DType, Device};
use ditmesh_model::checkpoint::Checkpoint;
use ditmesh_model::proceed::always;
use ditmesh_model::text::{T5Encoder, TextEncoder, Tokenizer};

use crate::fixture::{self, Outcome, Tensors, assert_close, copy_folder};

#[test]
fn ids_equal_transformers_for_every_prompt_both_ways() -> Outcome {
    for name in ["nmt_nfkc", "identity"] {
        let expected = fixture::json(&format!("tokenizers/{name}/expected.json"))?;
        let length = expected["max_length"].as_u64().unwrap_or(0) as usize;
        for way in ["json", "spiece"] {
            let tokenizer = Tokenizer::load(&fixture::path("tokenizers").join(name).join(way))?;
            assert_eq!(tokenizer.vocab_size() as u64, expected["vocab"].as_u64().unwrap_or(0));
            for case in expected["prompts"].as_array().into_iter().flatten() {
                let prompt = case["prompt"].as_str().unwrap_or_default();
                let tokens = tokenizer.encode(prompt, length)?;
                let wanted = |key: &str| -> Vec<u32> {
                    let values = case[key].as_array().into_iter().flatten();
                    values.filter_map(|id| Some(id.as_u64()? as u32)).collect()
                };
                assert_eq!(tokens.ids, wanted("ids"), "{name} {way} {prompt:?}");
                assert_eq!(tokens.mask, wanted("mask"), "{name} {way} {prompt:?}");
                let cut = case["full"].as_u64().unwrap_or(0) as usize > length;
                assert_eq!(tokens.truncated.is_some(), cut, "{name} {way} {prompt:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_long_prompt_keeps_its_end_token_and_names_what_was_cut() -> Outcome {
    let tokenizer = Tokenizer::load(&fixture::path("tokenizers/nmt_nfkc/json"))?;
    let tokens = tokenizer.encode("a red apple on a wooden table", 4)?;
    assert_eq!(tokens.ids.len(), 4);
    assert_eq!(tokens.ids.last(), Some(&1));
    assert!(tokens.truncated.is_some_and(|text| text.contains("table")));
    assert_eq!(tokenizer.encode("a red apple", 1)?.ids, [1]);
    assert!(tokenizer.encode("a", 0).is_err());
    Ok(())
}

#[test]
fn t5_equals_transformers_with_and_without_a_mask() -> Outcome {
    for name in ["gated_gelu", "relu"] {
        let record = Tensors::load(&format!("text/{name}/io.safetensors"))?;
        let dir = fixture::path("text").join(name).join("text_encoder");
        let encoder = T5Encoder::load(&dir, DType::F32, &Device::Cpu, &mut always)?;
        let ids = record.get("in.input_ids")?.to_dtype(DType::U32)?;
        let mask = record.get("in.attention_mask")?;
        let masked = encoder.forward(&ids, Some(&mask), &mut always)?;
        assert_close(&format!("t5 {name} masked"), &masked, &record.get("out.masked")?, 2e-6)?;
        let plain = encoder.forward(&ids, None, &mut always)?;
        assert_close(&format!("t5 {name} plain"), &plain, &record.get("out.plain")?, 2e-6)?;
        let file = std::fs::metadata(dir.join("model.safetensors"))?.len();
        assert!(encoder.bytes_read() < file && encoder.bytes_read() > file * 9 / 10);
        let short = ids.narrow(1, 0, 3)?;
        assert!(
            encoder.forward(&short, Some(&mask), &mut always).is_err(),
            "mask of another length"
        );
        let outside = (ids.ones_like()? * 128.0)?;
        assert!(
            encoder.forward(&outside, None, &mut always).is_err(),
            "id outside of the vocabulary"
        );
    }
    Ok(())
}

#[test]
fn prompts_become_the_embeddings_of_the_pipelines() -> Outcome {
    for name in ["sigma_8x8", "sigma_4x5", "alpha_6x4"] {
        let meta = fixture::json(&format!("cases/{name}/meta.json"))?;
        let checkpoint = Checkpoint::open(&fixture::path("pipelines").join(name))?;
        let encoder = TextEncoder::load(&checkpoint, DType::F32, &Device::Cpu, &mut always)?;
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_uppercase();
        let prompts = [text("negative_prompt"), format!("  {}\n", text("prompt"))];
        for (case, tokens) in [("square", checkpoint.class().text_tokens()), ("tall", 40)] {
            let record = Tensors::load(&format!("cases/{name}/{case}.safetensors"))?;
            let found = encoder.encode(&[&prompts[0], &prompts[1]], tokens, &mut always)?;
            for (row, prefix) in ["negative_", ""].into_iter().enumerate() {
                let expected = record.get(&format!("{prefix}prompt_embeds"))?;
                let embeds = found.embeds.narrow(0, row, 1)?;
                assert_close(&format!("{name} {case} {prefix}embeds"), &embeds, &expected, 2e-6)?;
                let expected = record.get(&format!("{prefix}prompt_attention_mask"))?;
                let expected = expected.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                assert_eq!(found.mask.narrow(0, row, 1)?.to_vec2::<f32>()?, expected);
            }
            assert!(found.warnings.is_empty());
        }
        let cut = encoder.encode(&["a red apple on a wooden table"], 4, &mut always)?;
        assert_eq!(cut.warnings.len(), 1);
        assert!(cut.warnings[0].contains("4 tokens") && cut.warnings[0].contains("table"));
    }
    Ok(())
}

#[test]
fn weights_in_half_precision_give_nearly_the_same() -> Outcome {
    let checkpoint = Checkpoint::open(&fixture::path("pipelines/sigma_8x8"))?;
    let embed = |dtype| -> Result<_, Box<dyn Error>> {
        let encoder = TextEncoder::load(&checkpoint, dtype, &Device::Cpu, &mut always)?;
        Ok(encoder.encode(&["a red apple"], 20, &mut always)?.embeds)
    };
    let full = embed(DType::F32)?;
    assert_close("t5 in f16", &embed(DType::F16)?, &full, 5e-3)?;
    assert_close("t5 in bf16", &embed(DType::BF16)?, &full, 4e-2)
}

/// The message of loading a damaged copy of a tokenizer or encoder folder.
fn refusal<T, E: std::fmt::Display>(
    from: &str,
    damage: impl Fn(&std::path::Path) -> std::io::Result<()>,
    load: impl Fn(&std::path::Path) -> Result<T, E>,
) -> Result<String, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    copy_folder(&fixture::path(from), dir.path())?;
    damage(dir.path())?;
    match load(dir.path()) {
        Ok(_) => Err("the damaged folder was accepted".into()),
        Err(error) => Ok(error.to_string()),
    }
}

#[test]
fn broken_tokenizers_are_named() -> Outcome {
    let json = "tokenizers/identity/json";
    let spiece = "tokenizers/identity/spiece";
    let write = |name: &'static str, bytes: &'static [u8]| {
        move |dir: &std::path::Path| std::fs::write(dir.join(name), bytes)
    };
    let message = refusal(json, write("tokenizer.json", b"{\"a\""), Tokenizer::load)?;
    assert!(message.contains("tokenizer.json"), "{message}");
    let message = refusal(spiece, write("spiece.model", b"\x0a\xff"), Tokenizer::load)?;
    assert!(message.contains("spiece.model") && message.contains("protobuf"), "{message}");
    let message = refusal(spiece, write("spiece.model", b""), Tokenizer::load)?;
    assert!(message.contains("no pieces"), "{message}");
    let config = write("tokenizer_config.json", b"{\"eos_token\": {\"content\": \"<end>\"}}");
    let message = refusal(json, config, Tokenizer::load)?;
    assert!(message.contains("<end>"), "{message}");
    let remove = |dir: &std::path::Path| std::fs::remove_file(dir.join("spiece.model"));
    let message = refusal(spiece, remove, Tokenizer::load)?;
    assert!(message.contains("tokenizer.json or spiece.model"), "{message}");
    Ok(())
}

/// Normalisation rules are a table of offsets; whatever they are, nothing panics.
#[test]
fn damaged_normalisation_rules_never_panic() -> Outcome {
    let whole = std::fs::read(fixture::path("tokenizers/nmt_nfkc/spiece/spiece.model"))?;
    let dir = tempfile::tempdir()?;
    let mut loaded = 0;
    for round in 0..40usize {
        let mut bytes = whole.clone();
        for hit in 0..2000 {
            // The table is most of the file; texts of 60 kB, which must be utf-8, follow it.
            let back = 70_000 + (round * 7919 + hit * 104_729) % 150_000;
            let at = bytes.len() - back;
            bytes[at] ^= (1 + (round + hit) % 255) as u8;
        }
        std::fs::write(dir.path().join("spiece.model"), bytes)?;
        if let Ok(tokenizer) = Tokenizer::load(dir.path()) {
            loaded += 1;
            for prompt in ["a red apple", "ﬁne ＦＵＬＬ ½ 日本語 e\u{301} 🍎"] {
                // Ids or an error: either is fine.
                let _ = tokenizer.encode(prompt, 20);
            }
        }
    }
    assert!(loaded > 0, "no damaged file came as far as tokenizing");
    Ok(())
}

#[test]
fn unsupported_encoders_are_named() -> Outcome {
    let load = |dir: &std::path::Path| T5Encoder::load(dir, DType::F32, &Device::Cpu, &mut always);
    let cases = [
        ("\"gated-gelu\"", "\"gated-silu\"", ["feed_forward_proj", "gated-silu"]),
        ("\"model_type\": \"t5\"", "\"model_type\": \"umt5\"", ["model_type", "umt5"]),
        ("\"num_heads\": 3", "\"num_heads\": 0", ["num_heads", "at least 1"]),
        ("\"num_heads\": 3", "\"num_heads\": 4", ["relative_attention_bias", "[32, 4]"]),
        ("\"num_layers\": 2", "\"num_layers\": 3", ["encoder.block.2.layer.0", "missing"]),
        ("\"num_layers\": 2", "\"num_layers\": 1", ["encoder.block.1.layer.0", "not part of"]),
        ("\"d_ff\": 48", "\"d_ff\": \"wide\"", ["d_ff", "wide"]),
    ];
    for (old, new, expected) in cases {
        let edit = |dir: &std::path::Path| {
            let path = dir.join("config.json");
            let text = std::fs::read_to_string(&path)?;
            assert!(text.contains(old), "{old}");
            std::fs::write(path, text.replace(old, new))
        };
        let message = refusal("text/gated_gelu/text_encoder", edit, load)?;
        for part in expected {
            assert!(message.contains(part), "{new}: {message}");
        }
    }
    Ok(())
}
