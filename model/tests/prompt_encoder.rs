//! When the text encoder's weights are in memory, what is remembered, and that an abort is seen.

use candle_core::{DType, Device};
use ditmesh_model::checkpoint::Checkpoint;
use ditmesh_model::error::ModelError;
use ditmesh_model::proceed::always;
use ditmesh_model::text::{PROMPT_CACHE_ENTRIES_MAX, PromptEncoder, TextEncoderPolicy};

use crate::fixture::{self, Outcome, assert_close};

fn encoder(policy: TextEncoderPolicy) -> Result<PromptEncoder, Box<dyn std::error::Error>> {
    let checkpoint = Checkpoint::open(&fixture::path("pipelines/sigma_8x8"))?;
    Ok(PromptEncoder::new(checkpoint, DType::F32, &Device::Cpu, policy)?)
}

#[test]
fn weights_are_released_and_read_again_for_the_next_prompt_only() -> Outcome {
    let released = encoder(TextEncoderPolicy::Release)?;
    assert_eq!((released.is_loaded(), released.bytes_read()), (false, 0), "nothing is read yet");
    let first = released.encode(&["", "a red apple"], 20, &mut always)?;
    assert_eq!((released.is_loaded(), released.loads()), (false, 1));
    let again = released.encode(&["", "a red apple"], 20, &mut always)?;
    assert_eq!(released.loads(), 1, "a remembered prompt reads no weights");
    let bits = |text: &ditmesh_model::text::TextEmbeddings| -> candle_core::Result<Vec<u32>> {
        let values = text.embeds.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    };
    assert_eq!(bits(&again)?, bits(&first)?);
    released.encode(&["", "a green frog"], 20, &mut always)?;
    released.encode(&["a red apple"], 24, &mut always)?;
    assert_eq!(
        (released.is_loaded(), released.loads()),
        (false, 3),
        "prompt and length are the key"
    );

    let resident = encoder(TextEncoderPolicy::Resident)?;
    assert_eq!((resident.is_loaded(), resident.loads()), (true, 1));
    let other = resident.encode(&["", "a red apple"], 20, &mut always)?;
    assert_eq!((resident.is_loaded(), resident.loads()), (true, 1));
    assert_eq!(bits(&other)?, bits(&first)?);
    assert_close("mask", &other.mask, &first.mask, 0.0)
}

#[test]
fn the_oldest_prompts_are_forgotten() -> Outcome {
    let encoder = encoder(TextEncoderPolicy::Release)?;
    let prompt = |index: usize| format!("prompt {index}");
    for index in 0..=PROMPT_CACHE_ENTRIES_MAX {
        encoder.encode(&[&prompt(index)], 4, &mut always)?;
        encoder.encode(&[&prompt(1)], 4, &mut always)?;
    }
    let loads = encoder.loads();
    encoder.encode(&[&prompt(1)], 4, &mut always)?;
    assert_eq!(encoder.loads(), loads, "what was used lately stays");
    encoder.encode(&[&prompt(0)], 4, &mut always)?;
    assert_eq!(encoder.loads(), loads + 1, "what was not used goes");
    Ok(())
}

#[test]
fn an_abort_is_seen_between_layers_and_releases_the_weights() -> Outcome {
    let encoder = encoder(TextEncoderPolicy::Release)?;
    // Two blocks are loaded and computed: an abort at any of the four ends it there.
    for layers in 0..4 {
        let mut left = layers;
        let mut proceed = || match left {
            0 => Err(ModelError::Aborted("the test".into())),
            _ => {
                left -= 1;
                Ok(())
            }
        };
        let error = encoder.encode(&["a red apple"], 8, &mut proceed).err();
        assert!(matches!(error, Some(ModelError::Aborted(_))), "after {layers}: {error:?}");
        assert!(!encoder.is_loaded());
    }
    encoder.encode(&["a red apple"], 8, &mut always)?;
    Ok(())
}
