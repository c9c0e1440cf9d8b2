//! What decoding a picture costs on one device and on several, from its phases.
//!
//! Owns the estimate and the choice between the two: the only rule there is for it.

use ditmesh_model::vae::VaeSpec;
use ditmesh_model::vae::phase::{BandExchangeKind, DecodePhase, DecodeShape, decode_phases};

use crate::cost::device::DeviceProfile;
use crate::cost::link::{LinkProfile, Links};
use crate::request::Dtype;

/// A picture to decode.
#[derive(Clone, Copy, Debug)]
pub struct Decoding<'a> {
    /// The decoder.
    pub vae: &'a VaeSpec,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
}

/// What decodes: the slowest device that takes part, and the slowest link.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// The device.
    pub device: DeviceProfile,
    /// The link.
    pub link: LinkProfile,
}

impl Pace {
    /// Of devices and links that nobody has measured.
    pub fn unmeasured() -> Self {
        Self { device: DeviceProfile::unmeasured_cpu(1), link: Links::unmeasured().other_node }
    }
}

/// Seconds of decoding over `members` equal devices, each with a link of its own: the slowest
/// member's arithmetic, and its exchanges, of which none is hidden.
pub fn decode_seconds(decoding: Decoding<'_>, members: usize, pace: &Pace) -> f64 {
    let of = |member| {
        let Decoding { vae, height, width } = decoding;
        let shape = DecodeShape::new(1, height, width, members, member);
        let phases = decode_phases(&shape, vae);
        phases.iter().map(|phase| phase_seconds(phase, pace)).sum::<f64>()
    };
    let slowest = (0..members.max(1)).map(of).fold(0.0, f64::max);
    slowest + scatter_and_gather_seconds(decoding, members, &pace.link)
}

/// Whether several devices decode faster than one.
pub fn is_faster_in_parallel(decoding: Decoding<'_>, members: usize, pace: &Pace) -> bool {
    members > 1 && decode_seconds(decoding, members, pace) < decode_seconds(decoding, 1, pace)
}

fn phase_seconds(phase: &DecodePhase, Pace { device, link }: &Pace) -> f64 {
    match phase {
        DecodePhase::Compute { flops, .. } => {
            *flops as f64 / device.gemm_flops_per_s.of(Dtype::F32) + device.phase_s
        }
        DecodePhase::Send(exchange) => {
            let width = match exchange.id.kind {
                BandExchangeKind::Moments => size_of::<f64>(),
                BandExchangeKind::Halo | BandExchangeKind::Map => size_of::<f32>(),
            };
            let sent = exchange.send.iter().flatten();
            let bytes: usize = sent.clone().map(|shape| shape.iter().product::<usize>()).sum();
            (bytes * width) as f64 / link.bytes_per_s + sent.count() as f64 * link.message_s
        }
        DecodePhase::Receive(_) => link.latency_s,
    }
}

/// Latent rows out to the members, pixels back.
fn scatter_and_gather_seconds(decoding: Decoding<'_>, members: usize, link: &LinkProfile) -> f64 {
    if members < 2 {
        return 0.0;
    }
    let Decoding { vae, height, width } = decoding;
    let factor = vae.scale_factor();
    let latents = height * width * vae.latent_channels * size_of::<f32>();
    let pixels = height * width * factor * factor * 3;
    (latents + pixels) as f64 / link.bytes_per_s
        + 2.0 * (link.latency_s + (members - 1) as f64 * link.message_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_are_worth_it_and_tiny_ones_are_not() {
        let pace = Pace::unmeasured();
        let tiny = VaeSpec { widths: vec![8, 8, 4], groups: 4, ..VaeSpec::default() };
        let small = Decoding { vae: &tiny, height: 8, width: 8 };
        assert!(!is_faster_in_parallel(small, 4, &pace));
        let vae = VaeSpec::default();
        let large = Decoding { vae: &vae, height: 64, width: 64 };
        assert!(is_faster_in_parallel(large, 4, &pace));
        assert!(!is_faster_in_parallel(large, 1, &pace));
        let alone = decode_seconds(large, 1, &pace);
        let four = decode_seconds(large, 4, &pace);
        assert!(four < alone / 2.5, "{four} s of {alone} s");
    }

    #[test]
    fn a_slow_link_is_not_worth_it() {
        let slow = LinkProfile { bytes_per_s: 1e3, ..Links::unmeasured().other_node };
        let pace = Pace { device: DeviceProfile::unmeasured_cpu(64), link: slow };
        let vae = VaeSpec::default();
        let picture = Decoding { vae: &vae, height: 64, width: 64 };
        assert!(!is_faster_in_parallel(picture, 4, &pace));
    }
}
