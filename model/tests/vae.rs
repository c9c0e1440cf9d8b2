//! The VAE decoder against diffusers, and its parts over bands of rows.

use candle_core::{DType, Device, Tensor};
use ditmesh_model::checkpoint::CheckpointError;
use ditmesh_model::vae::{GroupNorm, Halo, VaeDecoder, to_rgb8};

use crate::fixture::{self, Outcome, Tensors, assert_close, copy_folder};

fn decoder(name: &str) -> Result<VaeDecoder, ditmesh_model::checkpoint::CheckpointError> {
    let dir = fixture::path("vae").join(name).join("vae");
    VaeDecoder::load(&dir, DType::F32, &Device::Cpu)
}

#[test]
fn decodes_as_diffusers_does() -> Outcome {
    for name in ["sd", "flux", "plain_mid"] {
        let record = Tensors::load(&format!("vae/{name}/io.safetensors"))?;
        let decoder = decoder(name)?;
        let z = record.get("in.z")?;
        let image = decoder.decode(&z)?;
        assert_close(&format!("vae {name}"), &image, &record.get("out.decoded")?, 2e-6)?;
        let (_, _, height, width) = image.dims4()?;
        assert_eq!((height, width), (6 * decoder.scale_factor(), 4 * decoder.scale_factor()));
        let expected = record.get("out.rgb8")?.flatten_all()?.to_vec1::<u8>()?;
        let bytes = to_rgb8(&image)?;
        assert_eq!(bytes.len(), expected.len());
        // A value on the boundary between two bytes may fall to either side.
        let far = bytes.iter().zip(&expected).filter(|(a, b)| a.abs_diff(**b) > 1).count();
        let off = bytes.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(far == 0 && off * 1000 <= bytes.len(), "vae {name}: {off} bytes differ");
        assert_eq!(to_rgb8(&record.get("out.decoded")?)?, expected, "vae {name}: rounding");
        // The frame axis of the pipeline's latents, and the scaling.
        let config = decoder.config();
        let scaled = ((&z - config.shift_factor.unwrap_or(0.0))? * config.scaling_factor)?;
        let again = decoder.decode_latents(&scaled.unsqueeze(2)?)?;
        assert_close(&format!("vae {name} scaled"), &again, &image, 2e-6)?;
    }
    Ok(())
}

#[test]
fn decodes_the_latents_of_the_pipelines() -> Outcome {
    for name in ["sigma_8x8", "sigma_4x5", "alpha_6x4"] {
        let dir = fixture::path("pipelines").join(name).join("vae");
        let decoder = VaeDecoder::load(&dir, DType::F32, &Device::Cpu)?;
        for case in ["square", "tall"] {
            let record = Tensors::load(&format!("cases/{name}/{case}.safetensors"))?;
            let image = decoder.decode_latents(&record.get("out.latents")?)?;
            assert_close(&format!("{name} {case}"), &image, &record.get("out.image")?, 1e-5)?;
        }
        let file = std::fs::metadata(dir.join("diffusion_pytorch_model.safetensors"))?.len();
        assert!(decoder.bytes_read() < file * 7 / 10, "the encoder is not read");
    }
    Ok(())
}

#[test]
fn a_pool_of_threads_gives_the_same() -> Outcome {
    let record = Tensors::load("vae/sd/io.safetensors")?;
    let decoder = decoder("sd")?;
    let z = record.get("in.z")?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let image = pool.install(|| decoder.decode(&z))?;
    assert_close("vae sd in a pool", &image, &record.get("out.decoded")?, 2e-6)
}

#[test]
fn wrong_latents_and_images_are_errors() -> Outcome {
    let decoder = decoder("sd")?;
    for shape in [vec![1, 3, 4, 4], vec![1, 4, 2, 4, 4], vec![4, 4, 4]] {
        let latents = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
        let message = decoder.decode(&latents).err().map(|error| error.to_string());
        assert!(message.is_some_and(|text| text.contains("[B, 4, 1, H, W]")));
    }
    assert!(to_rgb8(&Tensor::zeros((1, 4, 2, 2), DType::F32, &Device::Cpu)?).is_err());
    Ok(())
}

#[test]
fn unsupported_configurations_are_named() -> Outcome {
    let cases = [
        ("\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"", ["act_fn", "mish"]),
        (
            "\"norm_num_groups\": 4",
            "\"norm_num_groups\": 3",
            ["block_out_channels", "norm_num_groups 3"],
        ),
        ("\"scaling_factor\": 0.18215", "\"scaling_factor\": 0", ["scaling_factor", "0"]),
        ("\"latents_mean\": null", "\"latents_mean\": [0.5]", ["latents_mean", "null"]),
        ("\"latent_channels\": 4", "\"latent_chanels\": 4", ["latent_chanels", "latent_channels"]),
        ("\"latent_channels\": 4", "\"latent_channels\": -4", ["latent_channels", "-4"]),
        (
            "\"layers_per_block\": 1",
            "\"layers_per_block\": 2",
            ["up_blocks.0.resnets.2", "missing"],
        ),
        (
            "\"use_post_quant_conv\": true",
            "\"use_post_quant_conv\": false",
            ["post_quant_conv", "not part of"],
        ),
    ];
    for (old, new, expected) in cases {
        let dir = tempfile::tempdir()?;
        copy_folder(&fixture::path("vae/sd/vae"), dir.path())?;
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path)?;
        assert!(text.contains(old), "{old}");
        std::fs::write(path, text.replace(old, new))?;
        let message = match VaeDecoder::load(dir.path(), DType::F32, &Device::Cpu) {
            Ok(_) => return Err(format!("accepted {new}").into()),
            Err(error) => error.to_string(),
        };
        for part in expected {
            assert!(message.contains(part), "{new}: {message}");
        }
    }
    Ok(())
}

/// What parallel decoding builds on: a band with its halo, and norms over summed moments.
#[test]
fn bands_of_rows_equal_the_whole() -> Outcome {
    let x = Tensor::randn(0f32, 1.0, (2, 8, 11, 7), &Device::Cpu)?;
    let (norm, conv) = parts()?;
    let whole = conv.forward(&norm.forward(&x)?, &Halo::default())?;
    let cut = 4;
    let (top, bottom) =
        (x.narrow(2, 0, cut)?.contiguous()?, x.narrow(2, cut, 11 - cut)?.contiguous()?);
    let mut moments = norm.moments(&top)?;
    moments.add(&norm.moments(&bottom)?);
    let (top, bottom) = (norm.apply(&top, &moments)?, norm.apply(&bottom, &moments)?);
    let reach = conv.reach();
    let first = Halo { above: None, below: Some(bottom.narrow(2, 0, reach)?) };
    let second = Halo { above: Some(top.narrow(2, cut - reach, reach)?), below: None };
    let bands = [conv.forward(&top, &first)?, conv.forward(&bottom, &second)?];
    assert_close("bands", &Tensor::cat(&bands, 2)?, &whole, 1e-6)?;
    let wrong = Halo { above: Some(bottom.clone()), below: None };
    assert!(conv.forward(&top, &wrong).is_err());
    Ok(())
}

fn parts() -> Result<(GroupNorm, ditmesh_model::vae::Conv2d), Box<dyn std::error::Error>> {
    let values = |count: usize, step: f32| -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step).sin() + 0.3).collect()
    };
    let norm = GroupNorm::new(2, values(8, 0.7), values(8, 1.3))?;
    let weight = Tensor::from_vec(values(5 * 8 * 9, 0.37), (5, 8, 3, 3), &Device::Cpu)?;
    Ok((norm, ditmesh_model::vae::Conv2d::new(&weight, values(5, 2.1))?))
}

/// Seconds of a decoder of Stable Diffusion's size: `cargo test -- --ignored --nocapture seconds`.
#[test]
#[ignore = "a measurement"]
fn seconds_of_a_full_size_decoder() -> Outcome {
    time_sizes(&full_size_decoder()?)
}

/// A decoder of Stable Diffusion's size, of zeros.
pub(crate) fn full_size_decoder() -> Result<VaeDecoder, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
        "UpDecoderBlock2D"]}"#;
    std::fs::write(dir.path().join("config.json"), config)?;
    // A sparse file of zeros, grown by what the loader says is missing.
    let (mut entries, mut end) = (Vec::new(), 0);
    loop {
        let header = format!("{{{}}}", entries.join(", "));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        let path = dir.path().join("diffusion_pytorch_model.safetensors");
        std::fs::write(&path, &bytes)?;
        let file = std::fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len((bytes.len() + end) as u64)?;
        match VaeDecoder::load(dir.path(), DType::F32, &Device::Cpu) {
            Err(CheckpointError::Missing { tensor, expected, .. }) => {
                let start = end;
                end += 4 * expected.iter().product::<usize>();
                entries.push(format!(
                    r#""{tensor}": {{"dtype": "F32", "shape": {expected:?},
                    "data_offsets": [{start}, {end}]}}"#
                ));
            }
            loaded => return Ok(loaded?),
        }
    }
}

fn time_sizes(decoder: &VaeDecoder) -> Outcome {
    let threads = std::thread::available_parallelism()?.get();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    for side in [8, 16, 32] {
        let latents = Tensor::randn(0f32, 1.0, (1, 4, side, side), &Device::Cpu)?;
        let start = std::time::Instant::now();
        pool.install(|| decoder.decode(&latents))?;
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{} px: {seconds:.2} s on {threads} threads", 8 * side);
    }
    Ok(())
}
