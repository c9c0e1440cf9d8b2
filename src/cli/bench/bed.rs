//! A test bed: devices of one thread, each pinned to a core, that take requests.
//!
//! Owns starting them as a user would (worker processes over QUIC, or an engine in this process)
//! and their end. Invariant: a cluster that was started is stopped when its bed is dropped,
//! whatever happened in between.

use std::path::Path;

use ditmesh::manifest::{
    ClusterSection, DegreesSetting, DeviceSection, GroupSection, HealthSection, LauncherSection,
    TransportSection,
};
use ditmesh::{ClusterClient, Degrees, Engine, GenerateRequest, GenerationHandle};
use ditmesh::{Manifest, ModelSource, Wire};
use ditmesh_actors::launcher::{self, UpMode};

use crate::cli::args::TransportArg;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::terminal::Terminal;

/// Silence that means nothing on a machine whose cores are all busy, in milliseconds.
const SUSPECT_MS: u32 = 10_000;
/// Silence after which a worker is dead, in milliseconds.
const DEAD_MS: u32 = 20_000;

/// Devices that take requests.
pub(crate) enum Bed {
    /// Threads of this process.
    Engine(Engine),
    /// Worker processes.
    Cluster(Running),
}

/// A cluster that is stopped when this is dropped.
pub(crate) struct Running {
    client: Option<ClusterClient>,
    manifest: Box<Manifest>,
}

impl Bed {
    /// Starts one device on each of `cores`, each on a node of its own, serving the pipeline in
    /// `model` with `degrees`. What it writes goes below `work_dir`.
    pub(crate) fn start(
        name: &str,
        model: &Path,
        work_dir: &Path,
        place: (TransportArg, &[usize]),
        degrees: Degrees,
        (interrupt, terminal): (&mut Interrupt, &Terminal),
    ) -> Result<Self, Failure> {
        let (transport, cores) = place;
        let manifest = manifest(name, model, work_dir, transport, cores, degrees);
        if transport == TransportArg::InProcess {
            return Ok(Self::Engine(Engine::start(manifest)?));
        }
        Ok(Self::Cluster(Running::start(manifest, (interrupt, terminal))?))
    }

    /// Sends a request.
    pub(crate) fn generate(&self, request: GenerateRequest) -> Result<GenerationHandle, Failure> {
        match self {
            Self::Engine(engine) => Ok(engine.generate(request)),
            Self::Cluster(running) => Ok(running.client()?.generate(request)),
        }
    }
}

impl Running {
    /// Starts the processes of `manifest`.
    pub(crate) fn start(
        manifest: Manifest,
        (interrupt, terminal): (&mut Interrupt, &Terminal),
    ) -> Result<Self, Failure> {
        let wanted = manifest.clone();
        let up = move || launcher::up(&wanted, UpMode::Detached, &mut |_| {});
        let (outcome, interrupted) =
            interrupt.uninterrupted(up, || terminal.note("interrupted; stopping"))?;
        outcome?;
        let mut running = Self { client: None, manifest: Box::new(manifest) };
        if interrupted {
            return Err(Failure::interrupted());
        }
        running.client = Some(ClusterClient::connect(&running.manifest)?);
        Ok(running)
    }

    /// Its client.
    pub(crate) fn client(&self) -> Result<&ClusterClient, Failure> {
        let ended = || Failure::unreachable("the cluster of this measurement has ended");
        self.client.as_ref().ok_or_else(ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.client = None;
        if let Err(error) = launcher::down(&self.manifest) {
            tracing::warn!(cluster = self.manifest.cluster.name, %error, "it is not stopped");
        }
    }
}

/// Nodes of one device on each of `cores`, which notice losses as fast as a user's do.
pub(crate) fn two_nodes(
    name: &str,
    model: &Path,
    work_dir: &Path,
    cores: &[usize],
    degrees: Degrees,
) -> Manifest {
    let manifest = manifest(name, model, work_dir, TransportArg::Quic, cores, degrees);
    let mut launcher = manifest.launcher.clone();
    // Every round takes one.
    launcher.restarts_max = u32::MAX;
    Manifest { health: HealthSection::default(), launcher, ..manifest }
}

fn manifest(
    name: &str,
    model: &Path,
    work_dir: &Path,
    transport: TransportArg,
    cores: &[usize],
    degrees: Degrees,
) -> Manifest {
    let mut manifest = Manifest::in_process(ModelSource::Folder(model.to_owned()), 1, 1);
    manifest.cluster = ClusterSection { name: name.to_owned(), state_dir: work_dir.join(name) };
    let device = |core: usize| DeviceSection {
        threads: Some(1),
        cores: vec![core],
        ..DeviceSection::default()
    };
    let nodes = std::mem::take(&mut manifest.nodes).into_iter().cycle();
    manifest.nodes = nodes
        .zip(cores)
        .map(|(mut node, &core)| {
            node.name = format!("core-{core}");
            node.devices = vec![device(core)];
            node
        })
        .collect();
    let model = manifest.models.first().map_or(String::new(), |model| model.name.clone());
    let degrees = DegreesSetting::Fixed(degrees.into());
    let (nodes, wire) = (Vec::new(), Wire::default());
    let quality = Default::default();
    let (max_batch, checkpoint_every) = (1, 1);
    manifest.groups =
        vec![GroupSection { model, nodes, degrees, max_batch, checkpoint_every, wire, quality }];
    if transport == TransportArg::Quic {
        manifest.transport = TransportSection::default();
        manifest.launcher = LauncherSection::default();
    }
    manifest.health =
        HealthSection { suspect_ms: SUSPECT_MS, dead_ms: DEAD_MS, ..HealthSection::default() };
    manifest
}
