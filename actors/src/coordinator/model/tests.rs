//! What a model plans for the stages of a run, by what was measured of its devices.

use std::path::Path;

use ditmesh_model::conditioning::LatentGrid;

use super::*;
use crate::cost::calibration::{cluster_folder, device_name};
use crate::protocol::ImageSpec;

/// Two devices, of which the second was measured too or not; they have this rate.
fn model(folder: &Path, flops_per_s: f64, both: bool) -> Model {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let source = ModelSource::Folder(fixtures.join("pipelines/sigma_8x8"));
    let mut manifest = Manifest::in_process(source, 2, 1);
    manifest.cluster.state_dir = folder.to_owned();
    if !both {
        manifest.nodes[0].devices[1].profile = Some("of nobody".into());
    }
    let rate = crate::cost::device::Rates::all(flops_per_s);
    let profile = DeviceProfile { gemm_flops_per_s: rate, ..DeviceProfile::unmeasured_cpu(1) };
    let devices = [(device_name(1), profile)].into();
    let calibration = Calibration { devices, ..Calibration::default() };
    calibration.save(&cluster_folder(folder)).expect("written");
    Model::of(&manifest).expect("a model")
}

fn run(images: usize) -> RunSpec {
    let images = vec![ImageSpec::default(); images];
    RunSpec { images, height: 64, width: 64, guidance_scale: 4.5, ..RunSpec::default() }
}

#[test]
fn text_steps_and_decoding_are_planned_where_every_device_was_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let times = StepTimes { steady: Duration::from_secs(1), synchronous: Duration::from_secs(2) };
    let degrees = Degrees { pipefusion_degree: 2, ..Degrees::default() };
    let planned =
        |model: &Model, run: &RunSpec| model.planned(Some(times), run, degrees, &model.devices);
    let slow = model(folder.path(), 1e6, true);
    let one = planned(&slow, &run(1));
    let (text, decode) = (one.text.expect("text"), one.decode.expect("decoding"));
    assert!(text > Duration::ZERO && decode > Duration::ZERO, "{one:?}");
    assert!(one.step >= Some(times.synchronous), "{one:?}");
    let LatentGrid { height, width, .. } = latent_grid(&slow.spec, 64, 64);
    let picture = Decoding { vae: &slow.spec.vae, height, width };
    let as_products = worth::decode_seconds(picture, 1, &slow.pace(degrees));
    assert!(decode.as_secs_f64() > 3.9 * as_products, "{decode:?}, {as_products} s as products");
    let two = planned(&slow, &run(2));
    assert!(two.text > one.text && two.step > one.step, "{two:?}");
    assert!(two.decode >= one.decode.map(|decode| decode.mul_f64(1.99)), "{two:?}");
    let ready = RunSpec { embeds_tokens: Some(7), latent_output: true, ..run(1) };
    let ready = planned(&slow, &ready);
    assert!(ready.text < one.text, "nothing to encode: {ready:?}");
    assert_eq!(ready.decode, Some(Duration::ZERO));
    let exact = slow.planned(None, &run(1), degrees, &slow.devices);
    assert_eq!(exact, Planned { step: None, ..one }, "a mesh that nobody planned");
    let fast = planned(&model(folder.path(), 1e9, true), &run(1));
    assert!(fast.text < one.text && fast.decode < one.decode, "{fast:?}");
    let guessed = planned(&model(folder.path(), 1e9, false), &run(1));
    assert_eq!(guessed, Planned::default(), "one device was not measured");
}
