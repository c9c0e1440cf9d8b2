//! All ranks of a plan on threads of this process, without a control plane.
//!
//! Owns the threads, their cores and the links between them (QUIC or UCX on loopback, or memory).
//! Invariant: every wait has a deadline.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use ditmesh::{GenerateRequest, RankReport};
use ditmesh_actors::controller::{self, Inputs};
use ditmesh_actors::executor::abort::AbortFlag;
use ditmesh_actors::executor::{Assignment, execute};
use ditmesh_actors::plan::{Plan, resolve};
use ditmesh_model::pipeline::{LoadedParts, Parts, describe};
use ditmesh_model::spec::ModelSpec;
use ditmesh_transport::quic::{QuicConfig, QuicFabric};
use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, InProcessHub, LaneChoice, MeshForm, PeerAddress, PeerId, Role, RunId,
    Transport, UcxConfig, UcxFabric,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use super::idle::Idle;
use crate::cli::args::TransportArg;
use crate::cli::failure::Failure;

/// Name of the one node in certificates.
const NODE: &str = "bench";
/// Longest time to connect.
const FORM_DEADLINE: Duration = Duration::from_secs(30);
/// Longest time of a run.
const RUN_DEADLINE: Duration = Duration::from_secs(1800);
const RUN: RunId = RunId(1);
const EPOCH: Epoch = Epoch(1);

/// Where plans are run.
pub(super) struct Ranks {
    model: PathBuf,
    spec: ModelSpec,
    transport: TransportArg,
    cores: [usize; 2],
    runtime: Runtime,
}

impl Ranks {
    /// For the pipeline in `model`.
    pub(super) fn new(
        model: &Path,
        transport: TransportArg,
        cores: [usize; 2],
    ) -> Result<Self, Failure> {
        let spec = describe(model, DType::F32).map_err(Failure::failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Failure::failed)?;
        Ok(Self { model: model.to_owned(), spec, transport, cores, runtime })
    }

    /// Runs `request`; with `idle`, no rank computes its blocks.
    pub(super) fn run(
        &self,
        request: &GenerateRequest,
        idle: bool,
    ) -> Result<Vec<RankReport>, Failure> {
        let degrees = request.degrees.unwrap_or_default();
        let run = resolve::resolve(request, &self.spec, degrees).map_err(Failure::usage)?;
        let plan = Arc::new(Plan::new(degrees, &self.spec, &run).map_err(Failure::usage)?);
        let fabrics = self.fabrics(plan.controller() + 1)?;
        let transports = self.runtime.block_on(form(&plan, &fabrics)).map_err(Failure::failed)?;
        let threads: Vec<JoinHandle<Result<RankReport, String>>> = transports
            .iter()
            .take(plan.controller())
            .enumerate()
            .map(|(rank, transport)| {
                let (plan, transport) = (Arc::clone(&plan), Arc::clone(transport));
                let (model, core) = (self.model.clone(), self.cores.get(rank).copied());
                std::thread::spawn(move || carry_out(&plan, rank, &model, transport, core, idle))
            })
            .collect();
        let inputs = Inputs {
            latents: None,
            prompt_embeds: request.prompt_embeds.clone().map(Arc::new),
            resume: None,
            checkpoints: None,
        };
        let result = match transports.get(plan.controller()) {
            Some(own) => self
                .runtime
                .block_on(controller::run(&plan, own.as_ref(), RUN, EPOCH, &inputs, RUN_DEADLINE))
                .map(drop)
                .map_err(Failure::failed),
            None => Err(Failure::failed("the mesh has no controller")),
        };
        if result.is_err() {
            // Whoever waits for a frame stops waiting.
            transports.iter().for_each(|transport| transport.close("the run has failed"));
        }
        let reports: Result<Vec<RankReport>, String> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a rank panicked".into())))
            .collect();
        transports.iter().for_each(|transport| transport.close("the run is over"));
        fabrics.iter().for_each(|fabric| fabric.close());
        let reports = reports.map_err(Failure::failed)?;
        result.map(|()| reports)
    }

    fn fabrics(&self, members: usize) -> Result<Vec<Arc<dyn Fabric>>, Failure> {
        if self.transport == TransportArg::InProcess {
            let hub = InProcessHub::new();
            return Ok((0..members).map(|_| hub.fabric() as Arc<dyn Fabric>).collect());
        }
        let authority = ClusterCa::generate(NODE)?;
        let identity = authority.issue(Role::Node, NODE)?;
        let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let _runtime = self.runtime.enter();
        let fabric = || -> Result<Arc<dyn Fabric>, Failure> {
            let config = QuicConfig {
                idle_timeout: FORM_DEADLINE,
                ..QuicConfig::new(identity.clone(), loopback, loopback)
            };
            let bound = match self.transport {
                TransportArg::Ucx => {
                    let same_host = LaneChoice::Ucx;
                    UcxFabric::bind(&config, UcxConfig { same_host, ..UcxConfig::default() })
                }
                TransportArg::Quic | TransportArg::InProcess => QuicFabric::bind(&config),
            };
            bound.map_err(Failure::failed)
        };
        (0..members).map(|_| fabric()).collect()
    }
}

/// Links of every member to its peers, the controller last.
async fn form(plan: &Plan, fabrics: &[Arc<dyn Fabric>]) -> Result<Vec<Arc<dyn Transport>>, String> {
    let deadline = Instant::now() + FORM_DEADLINE;
    let forming = fabrics.iter().enumerate().map(|(member, fabric)| {
        let peer = |id: usize| {
            let address = fabrics.get(id)?.address();
            Some(PeerAddress { id: PeerId(id as u32), name: NODE.into(), address })
        };
        let form = MeshForm {
            cluster: NODE.into(),
            epoch: EPOCH,
            local: PeerId(member as u32),
            peers: plan.peers(member).into_iter().filter_map(peer).collect(),
            deadline,
        };
        let fabric = Arc::clone(fabric);
        tokio::spawn(async move { fabric.form(form).await })
    });
    let forming: Vec<_> = forming.collect();
    let mut transports = Vec::with_capacity(forming.len());
    for transport in forming {
        let transport = transport.await.map_err(|error| error.to_string())?;
        transports.push(transport.map_err(|error| error.to_string())?);
    }
    Ok(transports)
}

/// The thread of one rank.
fn carry_out(
    plan: &Arc<Plan>,
    rank: usize,
    model: &Path,
    transport: Arc<dyn Transport>,
    core: Option<usize>,
    idle: bool,
) -> Result<RankReport, String> {
    let words = |error: &dyn std::fmt::Display| format!("rank {rank}: {error}");
    pin(core).map_err(|error| words(&error))?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    let _pool = pool.build().map_err(|error| words(&error))?;
    let blocks = plan.blocks(plan.mesh.coordinates(rank).stage);
    // An idle rank needs the small tensors only.
    let held = if idle { blocks.start..blocks.start + 1 } else { blocks.clone() };
    let parts = Parts { blocks: held, text_encoder: None, vae: false };
    let mut parts = LoadedParts::load(model, DType::F32, &parts, &Device::Cpu)
        .map_err(|error| words(&error))?;
    if idle {
        parts.transformer = Arc::new(Idle { spec: parts.spec.clone(), blocks });
    }
    let assignment = Assignment {
        plan: Arc::clone(plan),
        rank,
        run: RUN,
        epoch: EPOCH,
        transport,
        parts: Arc::new(parts),
        device: Device::Cpu,
        abort: Arc::new(AbortFlag::default()),
        wait_limit: RUN_DEADLINE,
        progress: Box::new(|_| {}),
        traceparent: None,
    };
    execute(assignment).map_err(|error| words(&error))
}

fn pin(core: Option<usize>) -> nix::Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
