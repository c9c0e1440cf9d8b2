//! `up`: starts a cluster.

use ditmesh::{ClusterStatus, manifest};
use ditmesh_actors::launcher::{self, UpMode, UpOutcome};

use super::args::UpArgs;
use super::failure::Failure;
use super::mesh_text;
use super::terminal::Terminal;

/// Starts the cluster, prints its mesh, and stays unless detached.
pub(crate) fn run(args: &UpArgs, terminal: &Terminal) -> Result<(), Failure> {
    let path = args.manifest.path();
    let mut manifest = manifest::parse::load(path)?;
    if let Some(every) = args.checkpoint_every {
        if manifest.groups.is_empty() {
            let why = "--checkpoint-every is of a [[group]], and the manifest has none";
            return Err(Failure::usage(why));
        }
        manifest.groups.iter_mut().for_each(|group| group.checkpoint_every = every);
    }
    let name = &manifest.cluster.name;
    let mode = if args.detach { UpMode::Detached } else { UpMode::Foreground };
    terminal.note(&format!(
        "starting cluster {name}: {} nodes, {} devices",
        manifest.nodes.len(),
        manifest.device_count()
    ));
    let mut shown = Ok(());
    let outcome = launcher::up(&manifest, mode, &mut |status: &ClusterStatus| {
        shown = terminal.result(&mesh_text::describe(status));
        if mode == UpMode::Foreground {
            terminal.note("the cluster runs; Ctrl-C or `ditmesh down` stops it");
        }
    })?;
    shown?;
    match outcome {
        UpOutcome::AlreadyRunning(status) => {
            terminal.note(&format!("cluster {name} runs already"));
            terminal.result(&mesh_text::describe(&status))
        }
        UpOutcome::Detached(_) => {
            terminal.note(&format!("the cluster runs; `ditmesh down {}` stops it", path.display()));
            Ok(())
        }
        UpOutcome::Stopped => {
            terminal.note(&format!("cluster {name} is stopped"));
            Ok(())
        }
    }
}
