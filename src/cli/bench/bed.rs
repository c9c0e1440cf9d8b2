//! A test bed: devices that take requests, each a thread pinned to a core, or a GPU.
//!
//! Owns starting them as a user would (worker processes over QUIC, or an engine in this process)
//! and their end. Invariant: a cluster that was started is stopped when its bed is dropped,
//! whatever happened in between.

use std::path::Path;

use ditmesh::manifest::{
    CarrierKind, ClusterSection, DegreesSetting, DeviceKind, DeviceSection, GroupSection,
    HealthSection, LauncherSection, TransportSection,
};
use ditmesh::{ClusterClient, Degrees, Dtype, Engine, GenerateRequest, GenerationHandle};
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
    /// Starts the devices, each on a node of its own, serving the pipeline in `model` with
    /// `degrees`. What it writes goes below `work_dir`.
    pub(crate) fn start(
        name: &str,
        model: (&Path, Dtype),
        work_dir: &Path,
        place: (TransportArg, &[DeviceSection]),
        degrees: Degrees,
        (interrupt, terminal): (&mut Interrupt, &Terminal),
    ) -> Result<Self, Failure> {
        let (path, dtype) = model;
        let mut manifest = manifest(name, path, work_dir, place, degrees);
        manifest.models.iter_mut().for_each(|model| model.dtype = dtype);
        if place.0 == TransportArg::InProcess {
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

/// A device of one thread that is pinned to a core.
pub(crate) fn on_core(core: usize) -> DeviceSection {
    DeviceSection { threads: Some(1), cores: vec![core], ..DeviceSection::default() }
}

/// A GPU of this host.
pub(crate) fn on_gpu(index: usize) -> DeviceSection {
    DeviceSection { kind: DeviceKind::Cuda, index: Some(index), ..DeviceSection::default() }
}

/// Nodes of one device on each of `cores`, which notice losses as fast as a user's do.
pub(crate) fn two_nodes(
    name: &str,
    model: &Path,
    work_dir: &Path,
    cores: &[usize],
    degrees: Degrees,
) -> Manifest {
    let devices: Vec<_> = cores.iter().map(|&core| on_core(core)).collect();
    let manifest = manifest(name, model, work_dir, (TransportArg::Quic, &devices), degrees);
    let mut launcher = manifest.launcher.clone();
    // Every round takes one.
    launcher.restarts_max = u32::MAX;
    Manifest { health: HealthSection::default(), launcher, ..manifest }
}

fn manifest(
    name: &str,
    model: &Path,
    work_dir: &Path,
    (transport, devices): (TransportArg, &[DeviceSection]),
    degrees: Degrees,
) -> Manifest {
    let mut manifest = Manifest::in_process(ModelSource::Folder(model.to_owned()), 1, 1);
    manifest.cluster = ClusterSection { name: name.to_owned(), state_dir: work_dir.join(name) };
    let nodes = std::mem::take(&mut manifest.nodes).into_iter().cycle();
    manifest.nodes = nodes
        .zip(devices)
        .enumerate()
        .map(|(number, (mut node, device))| {
            node.name = format!("node-{number}");
            node.devices = vec![device.clone()];
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
    if transport != TransportArg::InProcess {
        let same_host = (transport == TransportArg::Ucx).then_some(CarrierKind::Ucx);
        manifest.transport = TransportSection { same_host, ..TransportSection::default() };
        // Nothing else is to be measured here.
        manifest.launcher = LauncherSection { measure_devices: false, ..Default::default() };
    }
    manifest.health =
        HealthSection { suspect_ms: SUSPECT_MS, dead_ms: DEAD_MS, ..HealthSection::default() };
    manifest
}
