//! What is rendered, as a whole and as command lines.
#![allow(clippy::unwrap_used)]

use clap::Parser;
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::cli::args::{AgentArgs, Cli, Command};

const MANIFEST: &str = r#"schema = 1

[cluster]
name = "demo"                       # a comment that stays

[[node]]
name = "a"
[[node.device]]
threads = 4
memory_bytes = 8589934592

[[node]]
name = "b"
[[node.device]]
kind = "cuda"
[[node.device]]
kind = "cuda"
index = 1

[[model]]
name = "emoji"
path = "built-in"
"#;

/// What `ditmesh render ARGUMENTS` prints, for the manifest `text` in a folder of its own.
fn rendered(text: &str, arguments: &[&str]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.toml");
    std::fs::write(&path, text).unwrap();
    let line = [&["ditmesh", "render"], arguments].concat();
    let line: Vec<&str> = line
        .into_iter()
        .map(|word| if word == "MANIFEST" { path.to_str().unwrap() } else { word })
        .collect();
    let Command::Render(args) = Cli::parse_from(line).command else { panic!("not render") };
    let text = match &args.command {
        RenderCommand::Slurm(args) => slurm::render(args),
        RenderCommand::K8s(args) => kubernetes::render(args),
    };
    let text = text.map_err(|failure| failure.message)?;
    Ok(text.replace(folder.path().to_str().unwrap(), "/home/me"))
}

const SLURM: [&str; 4] = ["slurm", "MANIFEST", "--program", "/opt/ditmesh/bin/ditmesh"];

/// The words of a command line that holds single quotes and variables of the script.
fn words(script: &str, line: &str) -> Vec<String> {
    let variable = |name: &str| {
        let start = format!("{name}=");
        let set = script.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        set.trim_matches('\'').to_owned()
    };
    let line = line.replace("\"$ditmesh\"", &variable("ditmesh"));
    let line = line.replace("\"$cluster\"", &variable("cluster"));
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(c) = letters.next() {
        match c {
            '\\' if !quoted => word.extend(letters.next()),
            '\'' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn agent_args(words: &[String]) -> AgentArgs {
    match Cli::try_parse_from(words).map(|cli| cli.command) {
        Ok(Command::Agent(args)) => args,
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{words:?}: {error}"),
    }
}

#[test]
fn a_job_script_that_serves() {
    insta::assert_snapshot!(rendered(MANIFEST, &SLURM).unwrap());
}

#[test]
fn a_job_script_that_draws() {
    let more = ["--sbatch=--partition=gpu", "--sbatch=--time=0:30:00", "--control-port", "7123"];
    let draws = ["--", "-p", "it's a \"red\" $apple", "-o", "out dir/apple.png"];
    let script = rendered(MANIFEST, &[&SLURM[..], &more, &draws].concat()).unwrap();
    insta::assert_snapshot!(script);
    let draw = script.lines().find(|line| line.contains(" generate ")).unwrap();
    match Cli::try_parse_from(words(&script, draw)).unwrap().command {
        Command::Generate(args) => {
            assert_eq!(args.cluster.unwrap(), std::path::Path::new("/home/me/cluster.toml"));
            assert_eq!(args.prompt.as_deref(), Some("it's a \"red\" $apple"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_of_a_job_script_parses() {
    let script = rendered(MANIFEST, &SLURM).unwrap();
    let commands: Vec<&str> =
        script.lines().filter(|line| line.contains("\"$ditmesh\" ")).collect();
    assert_eq!(commands.len(), 4, "{commands:?}");
    for command in commands {
        let command = command.trim().split(" > ").next().unwrap();
        let command = command.split(" || ").next().unwrap().trim_end_matches(" &");
        let words = words(&script, command);
        assert_eq!(words[0], "/opt/ditmesh/bin/ditmesh");
        Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        if words[1] == "agent" {
            let flags = agent_args(&words).rank_flags();
            assert_eq!((flags.control_port, flags.node_rank), (Some(7000), None));
        }
    }
}

const KUBERNETES: [&str; 4] = ["k8s", "MANIFEST", "--image", "registry.example/ditmesh:1"];

fn documents(yaml: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

/// Every container below `value`.
fn containers<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(list)) = map.get("containers") {
                found.extend(list);
            }
            map.values().for_each(|value| containers(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| containers(value, found)),
        _ => {}
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_leader_worker_set() {
    insta::assert_snapshot!(rendered(MANIFEST, &KUBERNETES).unwrap());
}

#[test]
fn a_stateful_set() {
    let more = ["--statefulset", "--name", "pictures", "--namespace", "art"];
    let models = ["--models-claim", "weights", "--models-path", "/models"];
    let ucx = "[transport]\nkind = \"auto\"\n";
    let text = MANIFEST.replace("\"built-in\"", "\"/models/sigma\"") + ucx;
    insta::assert_snapshot!(rendered(&text, &[&KUBERNETES[..], &more, &models].concat()).unwrap());
}

#[test]
fn every_command_of_a_pod_parses_and_its_manifest_is_valid() {
    for more in [&[][..], &["--statefulset"]] {
        let documents = documents(&rendered(MANIFEST, &[&KUBERNETES[..], more].concat()).unwrap());
        let manifest = documents[0]["data"]["cluster.toml"].as_str().unwrap();
        assert!(manifest.contains("# a comment that stays"), "{manifest}");
        let manifest = ditmesh::manifest::parse::from_str(manifest, "in a pod").unwrap();
        assert_eq!(manifest.nodes[0].address, "demo-coordinator");
        assert_eq!(manifest.nodes[0].control_port, 7000);
        let mut found = Vec::new();
        documents.iter().for_each(|document| containers(document, &mut found));
        assert_eq!(found.len(), if more.is_empty() { 2 } else { 1 });
        for container in found {
            let command = strings(&container["command"]);
            let line = [command, strings(&container["args"])].concat();
            let expanded: Vec<String> = line
                .iter()
                .map(|word| word.replace("$(POD_IP)", "10.0.0.7").replace("$(NODE_RANK)", "1"))
                .collect();
            let args = agent_args(&expanded);
            let flags = args.rank_flags();
            assert_eq!(flags.address.as_deref(), Some("10.0.0.7"));
            assert_eq!(flags.node_rank, (!more.is_empty()).then_some(1));
            let mounts = &container["volumeMounts"];
            let mounted = |path: &std::path::Path| {
                let mut mounts = mounts.as_array().unwrap().iter();
                mounts.any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()))
            };
            assert!(mounted(&args.cluster.unwrap()) && mounted(&manifest.cluster.state_dir));
            assert!(mounted(manifest.security.certs_dir.as_deref().unwrap()));
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let words = strings(&container[probe]["exec"]["command"]);
                match Cli::try_parse_from(&words).unwrap().command {
                    Command::Probe(args) => assert_eq!(args.ready, probe == "readinessProbe"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn what_pods_cannot_have_is_refused_with_what_to_do() {
    let relative = MANIFEST.replace("\"built-in\"", "\"models/sigma\"");
    let absolute = MANIFEST.replace("\"built-in\"", "\"/data/sigma\"");
    let second = format!("{MANIFEST}\n[coordinator]\nnode = \"b\"\n");
    let claim = ["--models-claim", "c", "--models-path", "/models"];
    let table: [(&str, &[&str], &[&str]); 3] = [
        (&relative, &[], &["models/sigma", "absolute path"]),
        (&absolute, &claim, &["/data/sigma", "mounted at /models"]),
        (&second, &[], &["\"b\"", "first"]),
    ];
    for (text, more, parts) in table {
        let message = rendered(text, &[&KUBERNETES[..], more].concat()).unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }
    let option = rendered(MANIFEST, &[&SLURM[..], &["--sbatch=partition=gpu"]].concat());
    assert!(option.unwrap_err().contains("--sbatch"));
}

#[test]
fn a_need_is_that_of_the_hungriest_node() {
    let manifest = ditmesh::manifest::parse::from_str(MANIFEST, "test").unwrap();
    let need = Need::most(&manifest.nodes);
    assert_eq!(need, Need { cpus: 4, gpus: 2, memory_bytes: None });
    let first = Need::most(&manifest.nodes[..1]);
    assert_eq!(first, Need { cpus: 4, gpus: 0, memory_bytes: Some(8 << 30) });
}
