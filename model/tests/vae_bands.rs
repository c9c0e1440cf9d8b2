//! Decoding in bands of rows, a thread for each member, against decoding on one device.
#![expect(clippy::unwrap_used, reason = "threads and properties return no errors")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use ditmesh_model::error::ModelError;
use ditmesh_model::vae::exchange::BandExchanger;
use ditmesh_model::vae::phase::{BandExchange, BandExchangeId, DecodeShape};
use ditmesh_model::vae::{DecodeTask, VaeDecoder};
use proptest::prelude::*;

use crate::fixture::{self, Outcome, Tensors, assert_close};

const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Channels between the members, one for each pair and direction.
struct Mesh {
    member: usize,
    to: Vec<Sender<(BandExchangeId, Tensor)>>,
    from: Vec<Receiver<(BandExchangeId, Tensor)>>,
    /// Layers until the run is aborted.
    layers_left: usize,
}

fn meshes(members: usize) -> Vec<Mesh> {
    let mut inboxes: Vec<Vec<_>> = (0..members).map(|_| Vec::new()).collect();
    let mut outboxes: Vec<Vec<_>> = (0..members).map(|_| Vec::new()).collect();
    for outbox in &mut outboxes {
        for inbox in &mut inboxes {
            let (sender, receiver) = channel();
            outbox.push(sender);
            inbox.push(receiver);
        }
    }
    let ends = outboxes.into_iter().zip(inboxes).enumerate();
    ends.map(|(member, (to, from))| Mesh { member, to, from, layers_left: usize::MAX }).collect()
}

impl BandExchanger for Mesh {
    fn start(
        &mut self,
        exchange: &BandExchange,
        pieces: Vec<Option<Tensor>>,
    ) -> Result<(), ModelError> {
        for (member, (piece, shape)) in pieces.into_iter().zip(&exchange.send).enumerate() {
            assert_eq!(piece.as_ref().map(Tensor::dims), shape.as_deref(), "{:?}", exchange.id);
            assert!(member != self.member || piece.is_none());
            let Some(piece) = piece else { continue };
            let gone = |_| ModelError::Exchange(format!("member {member} is gone"));
            self.to[member].send((exchange.id, piece)).map_err(gone)?;
        }
        Ok(())
    }

    fn wait(
        &mut self,
        exchange: &BandExchange,
        deadline: Instant,
    ) -> Result<Vec<Option<Tensor>>, ModelError> {
        let mut pieces = Vec::new();
        for (member, shape) in exchange.receive.iter().enumerate() {
            if shape.is_none() {
                pieces.push(None);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let gone = |_| ModelError::Exchange(format!("member {member} is gone"));
            let (id, piece) = self.from[member].recv_timeout(left).map_err(gone)?;
            assert_eq!(id, exchange.id);
            pieces.push(Some(piece));
        }
        Ok(pieces)
    }

    fn proceed(&mut self) -> Result<(), ModelError> {
        let Some(left) = self.layers_left.checked_sub(1) else {
            return Err(ModelError::Aborted("the test".into()));
        };
        self.layers_left = left;
        Ok(())
    }
}

/// The picture of scaled latents `[B, C, H, W]`, put together from the members' bands.
fn in_bands(decoder: &Arc<VaeDecoder>, latents: &Tensor, members: usize) -> Tensor {
    let bands = bands_of(decoder, latents, members).into_iter().filter_map(|(band, _)| band);
    Tensor::cat(&bands.collect::<Vec<_>>(), 2).unwrap()
}

/// Each member's band, and the seconds its thread was busy with it.
fn bands_of(
    decoder: &Arc<VaeDecoder>,
    latents: &Tensor,
    members: usize,
) -> Vec<(Option<Tensor>, f64)> {
    let (batch, _, height, width) = latents.dims4().unwrap();
    let work = meshes(members).into_iter().enumerate().map(|(member, mut mesh)| {
        let (decoder, latents) = (Arc::clone(decoder), latents.clone());
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
            let _pool = pool.build().unwrap();
            let shape = DecodeShape::new(batch, height, width, members, member);
            let rows = shape.latent_rows(member);
            let rows = latents.narrow(2, rows.start, rows.len()).unwrap();
            let task = DecodeTask { shape: &shape, wait_limit: WAIT_LIMIT };
            let band = decoder.decode_band(&rows, &task, &mut mesh).unwrap();
            (band, seconds_on_cpu())
        })
    });
    let threads: Vec<_> = work.collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn decoder(name: &str) -> Arc<VaeDecoder> {
    let dir = fixture::path("vae").join(name).join("vae");
    Arc::new(VaeDecoder::load(&dir, DType::F32, &Device::Cpu).unwrap())
}

/// Six rows: even shares, uneven ones, and more members than rows.
#[test]
fn bands_decode_as_one_device_does() -> Outcome {
    for name in ["sd", "flux", "plain_mid"] {
        let decoder = decoder(name);
        let config = decoder.config();
        let z = Tensors::load(&format!("vae/{name}/io.safetensors"))?.get("in.z")?;
        let scaled = ((&z - config.shift_factor.unwrap_or(0.0))? * config.scaling_factor)?;
        let whole = decoder.decode_latents(&scaled)?;
        for members in [1, 2, 3, 4, 8] {
            let bands = in_bands(&decoder, &scaled, members);
            assert_close(&format!("vae {name} over {members}"), &bands, &whole, 1e-5)?;
            let again = in_bands(&decoder, &scaled, members);
            let difference = (again - bands)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert_eq!(difference, 0.0, "vae {name} over {members}: run to run");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_size_over_any_number_of_members(
        name in prop::sample::select(vec!["sd", "flux", "plain_mid"]),
        batch in 1usize..=2,
        (height, width) in (1usize..=9, 1usize..=5),
        members in 1usize..=6,
    ) {
        let decoder = decoder(name);
        let channels = decoder.config().latent_channels;
        let elements = batch * channels * height * width;
        let values: Vec<f32> = (0..elements).map(|i| (i as f32 * 0.7).sin()).collect();
        let latents =
            Tensor::from_vec(values, (batch, channels, height, width), &Device::Cpu).unwrap();
        let whole = decoder.decode_latents(&latents).unwrap();
        let bands = in_bands(&decoder, &latents, members);
        assert_close("bands", &bands, &whole, 1e-5).unwrap();
    }
}

#[test]
fn an_abort_is_seen_before_the_next_layer() -> Outcome {
    let decoder = decoder("sd");
    let latents = Tensor::zeros((1, 4, 4, 4), DType::F32, &Device::Cpu)?;
    let shape = DecodeShape::new(1, 4, 4, 1, 0);
    let task = DecodeTask { shape: &shape, wait_limit: WAIT_LIMIT };
    for layers in [0, 3] {
        let mut mesh = meshes(1).remove(0);
        mesh.layers_left = layers;
        let error = decoder.decode_band(&latents, &task, &mut mesh).err();
        assert!(matches!(error, Some(ModelError::Aborted(_))), "after {layers} layers: {error:?}");
    }
    Ok(())
}

#[test]
fn a_lost_member_and_latents_of_another_shape_are_errors() -> Outcome {
    let decoder = decoder("sd");
    let shape = DecodeShape::new(1, 4, 4, 2, 0);
    let task = DecodeTask { shape: &shape, wait_limit: WAIT_LIMIT };
    let rows = Tensor::zeros((1, 4, 3, 4), DType::F32, &Device::Cpu)?;
    let mut alone = meshes(2).remove(0);
    let error = decoder.decode_band(&rows, &task, &mut alone).err();
    assert!(matches!(error, Some(ModelError::Exchange(_))), "{error:?}");
    let rows = Tensor::zeros((1, 4, 2, 4), DType::F32, &Device::Cpu)?;
    let error = decoder.decode_band(&rows, &task, &mut alone).err().map(|e| e.to_string());
    assert!(
        error.is_some_and(|text| text.contains("[1, 4, 2, 4]") && text.contains("[1, 4, 3, 4]"))
    );
    Ok(())
}

/// One member against two, one thread each, on a decoder of Stable Diffusion's size, interleaved:
/// `cargo test -p ditmesh-model -- --ignored --nocapture one_against_two`. Seconds are those the
/// slowest member's thread was on a processor, so that other work on the machine does not count;
/// waiting for each other does not count either.
#[test]
#[ignore = "a measurement; reads Linux's /proc"]
fn seconds_of_one_against_two_members() -> Outcome {
    let decoder = Arc::new(crate::vae::full_size_decoder()?);
    let latents = Tensor::randn(0f32, 1.0, (1, 4, 16, 16), &Device::Cpu)?;
    let slowest = |members: usize| {
        let seconds = bands_of(&decoder, &latents, members).into_iter().map(|(_, busy)| busy);
        seconds.fold(0.0, f64::max)
    };
    for _ in 0..5 {
        let (one, two) = (slowest(1), slowest(2));
        eprintln!("128 px: {one:.2} s on one thread, {two:.2} s on two, ratio {:.2}", one / two);
    }
    Ok(())
}

/// Seconds this thread was on a processor.
fn seconds_on_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}
