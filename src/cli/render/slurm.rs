//! A job script for Slurm: `sbatch` gives nodes, `srun` starts one agent on each.
//!
//! Where the agents are and who is first is in the variables that `srun` sets; the script names no
//! host. Certificates and state lie in the manifest's folder, which all nodes must see.

use std::fmt::Write;
use std::path::Path;

use ditmesh::{Manifest, manifest};

use super::{Need, control_port};
use crate::cli::args::SlurmArgs;
use crate::cli::failure::Failure;

/// The script.
pub(super) fn render(args: &SlurmArgs) -> Result<String, Failure> {
    let path = args.manifest.path();
    let manifest = manifest::parse::load(path)?;
    let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::failed);
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(Failure::failed)?,
    };
    let (cluster, program) = (word(&absolute(path)?)?, word(&program)?);
    let nodes = manifest.nodes.len();
    let need = Need::most(&manifest.nodes);
    let port = control_port(&manifest, args.control_port);
    let wait = manifest.launcher.ready_deadline_ms.div_ceil(1000);
    let mut text = String::from(
        "#!/bin/bash\n# Made by `ditmesh render slurm`; start it with sbatch. srun attaches one agent \
         to each node.\n",
    );
    let cpus = need.cpus.max(1);
    for option in options(&manifest, need, &args.sbatch)? {
        let _ = writeln!(text, "#SBATCH {option}");
    }
    let _ = write!(
        text,
        r#"
set -euo pipefail
ditmesh={program}
cluster={cluster}

# Keys are files that only their owner reads; those that are there stay.
"$ditmesh" certs --quiet "$cluster" > /dev/null

srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpus-per-task={cpus} --label \
  "$ditmesh" agent --cluster "$cluster" --control-port {port} &
agents=$!
"$ditmesh" status "$cluster" --wait {wait} &
waiting=$!
finish() {{
  kill "$waiting" 2> /dev/null || true
  "$ditmesh" down --quiet "$cluster" || kill "$agents" 2> /dev/null || true
  wait "$agents" || true
}}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Whichever comes first: the cluster is there, or its agents have ended.
wait -n "$agents" "$waiting"
kill -0 "$agents"
"#
    );
    if args.generate.is_empty() {
        text.push_str("wait \"$agents\"\n");
    } else {
        let words: Vec<String> = args.generate.iter().map(|argument| quote(argument)).collect();
        let _ = writeln!(text, "\"$ditmesh\" generate --cluster \"$cluster\" {}", words.join(" "));
    }
    Ok(text)
}

/// Options for sbatch: what the manifest needs, then the user's own.
fn options(manifest: &Manifest, need: Need, given: &[String]) -> Result<Vec<String>, Failure> {
    let (name, nodes) = (&manifest.cluster.name, manifest.nodes.len());
    let mut options = vec![
        format!("--job-name=ditmesh-{name}"),
        format!("--output=ditmesh-{name}-%j.log"),
        format!("--nodes={nodes}"),
        "--ntasks-per-node=1".to_owned(),
        format!("--cpus-per-task={}", need.cpus.max(1)),
    ];
    if need.gpus > 0 {
        options.push(format!("--gpus-per-node={}", need.gpus));
    }
    // The script itself hears of the end in time to take the cluster down.
    options.push("--signal=B:TERM@30".to_owned());
    for option in given {
        let line = option.trim();
        if line.contains(char::is_control) || !line.starts_with('-') {
            let message =
                format!("--sbatch {option:?} is no option of sbatch; write --sbatch=--key=value");
            return Err(Failure::usage(message));
        }
        options.push(line.to_owned());
    }
    Ok(options)
}

fn word(path: &Path) -> Result<String, Failure> {
    match path.to_str() {
        Some(text) => Ok(quote(text)),
        None => Err(Failure::usage(format!("{} is not text", path.display()))),
    }
}

/// One word of a shell, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
