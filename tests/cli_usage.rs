//! Usage: what cannot be done as asked is refused at once, with exit code 2.

use std::path::Path;

use crate::cli_process::{Ended, ditmesh};

fn in_empty_folder(args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let ended = ditmesh(folder.path(), args);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?} left a file");
    ended
}

fn generate(args: &[&str]) -> Ended {
    in_empty_folder(&[&["generate"], args].concat())
}

#[test]
fn wrong_flags_and_values_are_usage_errors() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "--prompt"),
        (&["-p", "x", "--stepz", "3"], "--steps"),
        (&["-p", "x", "--steps", "0"], "--num-inference-steps"),
        (&["-p", "x", "--steps", "many"], "--num-inference-steps"),
        (&["-p", "x", "--height", "0"], "--height"),
        (&["-p", "x", "-n", "0"], "-n"),
        (&["-p", "x", "--devices", "0"], "--devices"),
        (&["-p", "x", "--threads", "0"], "--threads"),
        (&["-p", "x", "--cfg-degree", "3"], "--cfg-degree"),
        (&["-p", "x", "--guidance-scale", "nan"], "finite"),
        (&["-p", "x", "--seed", "-1"], "-1"),
        (&["-p", "x", "--dtype", "f8"], "bf16"),
        (&["-p", "x", "--output-type", "jpeg"], "latent"),
        (&["-p", "x", "--up"], "--cluster"),
        (&["-p", "x", "--cluster", "c.toml", "--devices", "2"], "--devices"),
        (&["-p", "x", "--prompt-embeds", "e.safetensors"], "--prompt"),
    ];
    for (args, part) in cases {
        generate(args).refused(2, &[part]);
    }
    in_empty_folder(&["generat"]).refused(2, &["generate"]);
    in_empty_folder(&["completions", "tcsh"]).refused(2, &["bash"]);
    in_empty_folder(&["status", "--log", "no=such=level"]).refused(2, &["--log", "trace"]);
}

#[test]
fn flags_that_disagree_are_usage_errors() {
    let args = ["-p", "x", "--devices", "3", "--cfg-degree", "2", "--pipefusion-degree", "2"];
    generate(&args).refused(2, &["make 4 devices", "--devices is 3"]);
    generate(&["-p", "x", "--ring-degree", "64"])
        .refused(2, &["ring_degree 64", "at most 8 would"]);
    generate(&["-p", "x", "-o", "a.jpg"]).refused(2, &["a.jpg", ".png"]);
    generate(&["-p", "x", "-o", "a.png", "--output-type", "latent"]).refused(2, &[".safetensors"]);
    let seed = u64::MAX.to_string();
    generate(&["-p", "x", "-n", "2", "--seed", &seed]).refused(2, &["leaves no seeds"]);
}

#[test]
fn missing_folders_and_files_are_found_before_any_work() {
    generate(&["-p", "x", "-o", "no/a.png"]).refused(2, &["no/a.png", "make it first"]);
    generate(&["-p", "x", "-o", "."]).refused(2, &["is a folder"]);
    generate(&["-p", "x", "--report", "no/r.json"]).refused(2, &["no/r.json"]);
    generate(&["-p", "x", "--model", "no-model"]).refused(2, &["no-model is no folder"]);
    generate(&["-p", "x", "--latents", "no.safetensors"]).refused(2, &["cannot read no.safetens"]);
    generate(&["--prompt-embeds", "no.safetensors"]).refused(2, &["cannot read no.safetens"]);
    generate(&["-p", "x", "--cluster", "no.toml"]).refused(2, &["no.toml"]);
    for command in ["up", "down", "status", "certs"] {
        in_empty_folder(&[command]).refused(2, &["cannot read the manifest cluster.toml"]);
    }
}

#[test]
fn hidden_commands_explain_themselves() {
    for command in ["agent", "worker", "supervisor"] {
        let ended = in_empty_folder(&[command]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    }
}

#[test]
fn help_names_every_flag_and_the_exit_codes() {
    let help = ditmesh(Path::new("."), &["generate", "--help"]);
    for flag in [
        "--model",
        "--prompt",
        "--negative-prompt",
        "--height",
        "--width",
        "--num-inference-steps",
        "--steps",
        "--guidance-scale",
        "--seed",
        "-n,",
        "--cfg-degree",
        "--pipefusion-degree",
        "--ulysses-degree",
        "--ring-degree",
        "--num-pipeline-patch",
        "--sync-steps",
        "--warmup-steps",
        "--dtype",
        "--output-type",
        "--latents",
        "--prompt-embeds",
        "--report",
        "--devices",
        "--threads",
        "--cluster",
        "--up",
    ] {
        assert!(help.done().contains(flag), "{flag}");
    }
    let help = ditmesh(Path::new("."), &["--help"]);
    assert!(help.done().contains("3 cluster unreachable"), "{help:?}");
    for hidden in ["worker", "supervisor"] {
        assert!(!help.stdout.contains(&format!("\n  {hidden} ")), "{hidden}");
    }
    let version = ditmesh(Path::new("."), &["--version"]);
    assert_eq!(version.done(), concat!("ditmesh ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn completions_and_manual_are_made_from_the_same_definition() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ditmesh(Path::new("."), &["completions", shell]);
        assert!(script.done().contains("pipefusion-degree"), "{shell}");
    }
    assert!(ditmesh(Path::new("."), &["man"]).done().contains(".TH ditmesh 1"));
    let folder = tempfile::tempdir().unwrap();
    ditmesh(folder.path(), &["man", "pages"]).done();
    for page in ["ditmesh.1", "ditmesh-generate.1", "ditmesh-up.1", "ditmesh-inspect.1"] {
        assert!(folder.path().join("pages").join(page).is_file(), "{page}");
    }
    assert!(!folder.path().join("pages/ditmesh-worker.1").exists());
}

#[test]
fn doctor_tells_people_and_machines_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let json = crate::cli_process::ditmesh(folder.path(), &["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let text = crate::cli_process::ditmesh(folder.path(), &["doctor"]).stdout;
    for check in ["UDP receive", "UDP send", "send offload", "open files", "UCX"] {
        let finding = findings.iter().find(|finding| finding["check"] == check).unwrap();
        assert!(text.contains(check), "{text}");
        assert!(
            finding["level"] == "ok" || finding["level"] == "unknown" || finding["fix"].is_string()
        );
    }
}
