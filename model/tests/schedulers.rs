//! Noise schedulers against diffusers, step by step, and their refusals.

use std::path::Path;

use candle_core::{Device, Tensor};
use ditmesh_model::scheduler::{self, SolverState};

use crate::fixture::{self, Outcome, Tensors, assert_close};

#[test]
fn every_configuration_equals_diffusers_at_every_step() -> Outcome {
    let record = Tensors::load("schedulers/io.safetensors")?;
    let meta = fixture::json("schedulers/meta.json")?;
    for (name, case) in meta.as_object().into_iter().flatten() {
        let asked = case["asked"].as_u64().unwrap_or(0) as usize;
        let dir = fixture::path("schedulers").join(name);
        let scheduler = scheduler::load(&dir, asked, case["mu"].as_f64())
            .map_err(|error| format!("{name}: {error}"))?;
        let expected = record.get(&format!("{name}.timesteps"))?;
        let expected = expected.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
        let gaps = expected.iter().zip(scheduler.timesteps()).map(|(a, b)| (a - b).abs());
        assert!(
            gaps.fold(0.0, f64::max) <= 1e-4,
            "{name}: {expected:?} {:?}",
            scheduler.timesteps()
        );
        assert_eq!(expected.len(), scheduler.timesteps().len(), "{name}");
        let mut state = scheduler.new_state();
        let mut x = record.get(&format!("{name}.x"))?;
        for step in 0..expected.len() {
            let output = record.get(&format!("e{step}"))?;
            let input = scheduler.scale_model_input(&x, step)?;
            x = scheduler.step(&mut state, step, &output, &input)?;
            let what = format!("{name} step {step}");
            assert_close(&what, &x, &record.get(&format!("{name}.x{step}"))?, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn strips_with_their_own_state_equal_the_whole_picture_to_the_bit() -> Outcome {
    let scheduler = scheduler::load(&fixture::path("schedulers/dpm_order3"), 6, None)?;
    let noise =
        |seed: u64| Tensor::randn(0f32, 1.0, (1, 4, 1, 12, 5), &Device::Cpu).map(|t| (seed, t));
    let outputs: Vec<Tensor> =
        (0..6).map(|i| noise(i).map(|(_, t)| t)).collect::<Result<_, _>>()?;
    let start = noise(9)?.1;
    let run = |first: usize, rows: usize| -> Result<Tensor, Box<dyn std::error::Error>> {
        let mut state = scheduler.new_state();
        let mut x = start.narrow(3, first, rows)?;
        for (step, output) in outputs.iter().enumerate() {
            // Taken apart and put together at every step, as a checkpoint does.
            state = SolverState::from_parts(
                state.tensors().to_vec(),
                state.lower_order_nums(),
                state.last_step(),
            );
            x = scheduler.step(&mut state, step, &output.narrow(3, first, rows)?, &x)?;
        }
        Ok(x)
    };
    let strips = Tensor::cat(&[run(0, 5)?, run(5, 7)?], 3)?;
    let whole = run(0, 12)?;
    assert_eq!(strips.flatten_all()?.to_vec1::<f32>()?, whole.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

#[test]
fn steps_out_of_order_and_misfitting_shapes_are_errors() -> Outcome {
    for name in ["dpm_pixart", "ddim_eps", "flow_shift3"] {
        let scheduler = scheduler::load(&fixture::path("schedulers").join(name), 3, None)?;
        let x = Tensor::ones((1, 2, 2, 2), candle_core::DType::F32, &Device::Cpu)?;
        let mut state = scheduler.new_state();
        let skipped = scheduler.step(&mut state, 1, &x, &x).err().map(|e| e.to_string());
        assert!(skipped.is_some_and(|text| text.contains("expected step 0")), "{name}");
        scheduler.step(&mut state, 0, &x, &x)?;
        assert!(scheduler.step(&mut state, 0, &x, &x).is_err(), "{name}: repeated step");
        let other = x.narrow(3, 0, 1)?;
        assert!(scheduler.step(&mut state, 1, &x, &other).is_err(), "{name}: shapes");
        scheduler.step(&mut state, 1, &x, &x)?;
        scheduler.step(&mut state, 2, &x, &x)?;
        assert!(scheduler.step(&mut state, 3, &x, &x).is_err(), "{name}: past the end");
    }
    Ok(())
}

/// The error of loading `text` as a scheduler configuration.
fn refusal(text: &str, steps: usize) -> Result<String, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("scheduler_config.json"), text)?;
    match scheduler::load(dir.path(), steps, None) {
        Ok(_) => Err(format!("accepted {text}").into()),
        Err(error) => Ok(error.to_string()),
    }
}

#[test]
fn unsupported_values_are_named() -> Outcome {
    let dpm = |rest: &str| format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", {rest}}}"#);
    let ddim = |rest: &str| format!(r#"{{"_class_name": "DDIMScheduler", {rest}}}"#);
    let flow =
        |rest: &str| format!(r#"{{"_class_name": "FlowMatchEulerDiscreteScheduler", {rest}}}"#);
    let cases = [
        (dpm(r#""algorithm_type": "sde-dpmsolver++""#), vec!["algorithm_type", "sde-dpmsolver++"]),
        (dpm(r#""thresholding": true"#), vec!["thresholding", "true", "false"]),
        (dpm(r#""solver_order": 4"#), vec!["solver_order", "4", "1, 2 or 3"]),
        (dpm(r#""solver_ordre": 2"#), vec!["solver_ordre", "solver_order"]),
        (dpm(r#""beta_schedule": "sigmoid""#), vec!["beta_schedule", "sigmoid", "linear"]),
        (dpm(r#""use_lu_lambdas": true"#), vec!["use_lu_lambdas"]),
        (dpm(r#""algorithm_type": "dpmsolver""#), vec!["final_sigmas_type", "sigma_min"]),
        (dpm(r#""trained_betas": [0.1, 0.2]"#), vec!["trained_betas", "1000", "2 numbers"]),
        (dpm(r#""num_train_timesteps": 0"#), vec!["num_train_timesteps", "0"]),
        (dpm(r#""beta_start": "small""#), vec!["beta_start", "small"]),
        (ddim(r#""thresholding": true"#), vec!["thresholding"]),
        (
            ddim(r#""prediction_type": "flow_prediction""#),
            vec!["prediction_type", "flow_prediction", "epsilon"],
        ),
        (ddim(r#""steps_offset": 999"#), vec!["steps_offset 999"]),
        (flow(r#""use_dynamic_shifting": true"#), vec!["mu"]),
        (flow(r#""invert_sigmas": true"#), vec!["invert_sigmas"]),
        (
            r#"{"_class_name": "EulerDiscreteScheduler"}"#.to_owned(),
            vec!["_class_name", "EulerDiscreteScheduler", "DDIMScheduler"],
        ),
        (r#"{"a": }"#.to_owned(), vec!["broken json", "line 1"]),
    ];
    for (text, expected) in cases {
        let message = refusal(&text, 4)?;
        for part in expected {
            assert!(message.contains(part), "{text}: {message}");
        }
        assert!(
            message.contains("scheduler_config.json")
                || message.contains("mu")
                || message.contains("steps_offset"),
            "{message}"
        );
    }
    let none = scheduler::load(&fixture::path("schedulers/dpm_pixart"), 0, None);
    assert!(none.is_err_and(|error| error.to_string().contains("num_inference_steps is 0")));
    let many = scheduler::load(&fixture::path("schedulers/ddim_eps"), 1001, None);
    assert!(many.is_err_and(|error| error.to_string().contains("1001")));
    assert!(scheduler::load(Path::new("/nowhere"), 4, None).is_err());
    Ok(())
}
