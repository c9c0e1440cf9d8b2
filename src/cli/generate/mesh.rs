//! What draws: an engine in this process, or a running cluster.
//!
//! Owns starting and stopping it. Invariant: a cluster that `--up` started is stopped again,
//! whatever happens in between; one that ran before is left alone.

use ditmesh::{ClientError, ClusterClient, Engine, GenerateRequest, GenerationHandle, Manifest};
use ditmesh_actors::launcher::{self, LaunchError, UpMode, UpOutcome};

use crate::cli::args::GenerateArgs;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::terminal::Terminal;

/// A place that takes requests.
pub(crate) enum Mesh {
    /// In this process.
    Local(Engine),
    /// In others.
    Cluster {
        /// The session with the coordinator.
        client: ClusterClient,
        /// Present when the cluster was started for this call.
        started: Option<Box<Manifest>>,
    },
}

impl Mesh {
    /// Starts or reaches what `args` name.
    pub(crate) fn open(
        manifest: Manifest,
        args: &GenerateArgs,
        interrupt: &mut Interrupt,
        terminal: &Terminal,
    ) -> Result<Self, Failure> {
        if args.cluster.is_none() {
            return Ok(Self::Local(Engine::start(manifest)?));
        }
        match ClusterClient::connect(&manifest) {
            Ok(client) => Ok(Self::Cluster { client, started: None }),
            Err(ClientError::NotRunning { .. }) if args.up => {
                let started = start(&manifest, interrupt, terminal)?;
                let started = started.then(|| Box::new(manifest.clone()));
                match ClusterClient::connect(&manifest) {
                    Ok(client) => Ok(Self::Cluster { client, started }),
                    Err(error) => {
                        stop(started.as_deref(), terminal)?;
                        Err(error.into())
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a request.
    pub(crate) fn generate(&self, request: GenerateRequest) -> GenerationHandle {
        match self {
            Self::Local(engine) => engine.generate(request),
            Self::Cluster { client, .. } => client.generate(request),
        }
    }

    /// Stops what was started.
    pub(crate) fn close(self, terminal: &Terminal) -> Result<(), Failure> {
        match self {
            Self::Local(engine) => {
                engine.shutdown();
                Ok(())
            }
            Self::Cluster { client, started } => {
                drop(client);
                stop(started.as_deref(), terminal)
            }
        }
    }
}

/// Starts the cluster in the background; whether it did not run before.
fn start(
    manifest: &Manifest,
    interrupt: &mut Interrupt,
    terminal: &Terminal,
) -> Result<bool, Failure> {
    let (nodes, devices) = (manifest.nodes.len(), manifest.device_count());
    let name = &manifest.cluster.name;
    terminal.note(&format!("starting cluster {name}: {nodes} nodes, {devices} devices"));
    let wanted = manifest.clone();
    let up = move || launcher::up(&wanted, UpMode::Detached, &mut |_| {});
    let (outcome, interrupted): (Result<UpOutcome, LaunchError>, bool) = interrupt
        .uninterrupted(up, || terminal.note("interrupted; stopping the cluster when it is up"))?;
    let started = !matches!(outcome?, UpOutcome::AlreadyRunning(_));
    if interrupted {
        stop(started.then_some(manifest), terminal)?;
        return Err(Failure::interrupted());
    }
    Ok(started)
}

fn stop(started: Option<&Manifest>, terminal: &Terminal) -> Result<(), Failure> {
    let Some(manifest) = started else { return Ok(()) };
    launcher::down(manifest)?;
    terminal.note(&format!("cluster {} is stopped", manifest.cluster.name));
    Ok(())
}
