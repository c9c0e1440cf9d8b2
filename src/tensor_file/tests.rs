//! Tensor files of every kind, good and bad.
#![allow(clippy::unwrap_used)]

use tempfile::TempDir;

use super::*;
use crate::recipe::tests::example;

type Entry<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn file(entries: &[Entry<'_>]) -> (TempDir, PathBuf) {
    let views = entries.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    (folder, path)
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Embeddings `[1, 2, 2]` and a mask stored as `dtype`.
fn embeds(dtype: Dtype, mask: Vec<u8>) -> (TempDir, PathBuf) {
    file(&[
        ("other", Dtype::I64, vec![1], vec![0; 8]),
        ("prompt_embeds", Dtype::F32, vec![1, 2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
        ("prompt_attention_mask", dtype, vec![1, 2], mask),
    ])
}

#[test]
fn latents_come_back_with_their_recipe() {
    let latents = FloatTensor { shape: vec![1, 2, 1, 2], data: vec![0.5, -1.0, 2.0, 1e-3] };
    let bytes = encode_latents(&latents, &example()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latents.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read_latents(&path).unwrap(), latents);
    let recipe = read_recipe_text(&path, &bytes).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&recipe).unwrap(), example());
}

#[test]
fn masks_of_every_kind_are_read() {
    let half_one = half::f16::ONE.to_le_bytes();
    let brain_one = half::bf16::ONE.to_le_bytes();
    let wide = |bytes: usize| {
        let mut mask = vec![0; 2 * bytes];
        mask[0] = 1;
        mask
    };
    let kinds = [
        (Dtype::BOOL, wide(1)),
        (Dtype::U8, wide(1)),
        (Dtype::I8, wide(1)),
        (Dtype::I16, wide(2)),
        (Dtype::U16, wide(2)),
        (Dtype::I32, wide(4)),
        (Dtype::U32, wide(4)),
        (Dtype::I64, wide(8)),
        (Dtype::U64, wide(8)),
        (Dtype::F16, [half_one, [0; 2]].concat()),
        (Dtype::BF16, [brain_one, [0; 2]].concat()),
        (Dtype::F32, f32s(&[1.0, 0.0])),
        (Dtype::F64, [1f64.to_le_bytes(), 0f64.to_le_bytes()].concat()),
    ];
    for (dtype, mask) in kinds {
        let (_folder, path) = embeds(dtype, mask);
        let read = read_prompt_embeds(&path).unwrap();
        assert_eq!(read.prompt_attention_mask.data, [1.0, 0.0], "{dtype:?}");
        assert_eq!(read.prompt_embeds.data, [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(read.negative_prompt_embeds, None);
    }
}

#[test]
fn one_file_may_hold_everything() {
    let ones = vec![1u8; 2];
    let (_folder, path) = file(&[
        ("latents", Dtype::F16, vec![1, 1, 1, 1], half::f16::from_f32(0.25).to_le_bytes().into()),
        ("prompt_embeds", Dtype::BF16, vec![1, 2, 1], vec![0; 4]),
        ("prompt_attention_mask", Dtype::BOOL, vec![1, 2], ones.clone()),
        ("negative_prompt_embeds", Dtype::F32, vec![1, 2, 1], f32s(&[5.0, 6.0])),
        ("negative_prompt_attention_mask", Dtype::BOOL, vec![1, 2], ones),
    ]);
    assert_eq!(read_latents(&path).unwrap().data, [0.25]);
    assert_eq!(read_prompt_embeds(&path).unwrap().negative_prompt_embeds.unwrap().data, [5.0, 6.0]);
}

#[test]
fn each_wrong_tensor_is_named() {
    let text = |error: TensorFileError| error.to_string();
    let (_a, path) = embeds(Dtype::U8, vec![1, 1]);
    let missing = text(read_latents(&path).unwrap_err());
    assert!(
        missing.contains("no tensor `latents`; it holds other, prompt_attention_mask"),
        "{missing}"
    );
    let (_b, path) = embeds(Dtype::U8, vec![1, 3]);
    assert!(
        text(read_prompt_embeds(&path).unwrap_err()).contains("holds 3, expected only 0 and 1")
    );
    let (_c, path) = file(&[("latents", Dtype::F32, vec![2, 1, 1, 1], f32s(&[0.0, 0.0]))]);
    assert!(text(read_latents(&path).unwrap_err()).contains("[2, 1, 1, 1], expected [1, C, H, W]"));
    let (_d, path) = file(&[("latents", Dtype::I32, vec![1, 1, 1, 1], vec![0; 4])]);
    assert!(text(read_latents(&path).unwrap_err()).contains("is stored as I32"));
    let (_e, path) = file(&[("latents", Dtype::F32, vec![1, 1, 1, 1], f32s(&[f32::NAN]))]);
    assert!(text(read_latents(&path).unwrap_err()).contains("holds NaN at element 0"));
    let (_f, path) = file(&[
        ("prompt_embeds", Dtype::F32, vec![1, 1, 1], f32s(&[0.0])),
        ("prompt_attention_mask", Dtype::U8, vec![1, 2], vec![1, 1]),
    ]);
    assert!(text(read_prompt_embeds(&path).unwrap_err()).contains("[1, 2], expected [1, 1]"));
}

#[test]
fn broken_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    assert!(matches!(read_latents(&path), Err(TensorFileError::Read { .. })));
    let absurd = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    for bytes in [&b""[..], b"1234567", &absurd, b"\x02\0\0\0\0\0\0\0[]"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(read_latents(&path), Err(TensorFileError::Format { .. })));
    }
}
