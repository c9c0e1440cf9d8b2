//! Runs all ranks of a plan in threads of this process, without actors or control plane: the
//! executors, the controller's part and a fabric.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tracking::{Held, tracked};
use candle_core::{DType, Device, Tensor};
use ditmesh_actors::checkpoint::{Checkpoint, CheckpointStore};
use ditmesh_actors::controller::{self, Inputs};
use ditmesh_actors::executor::abort::AbortFlag;
use ditmesh_actors::executor::{Assignment, execute};
use ditmesh_actors::plan::mesh::DeviceMesh;
use ditmesh_actors::plan::{Plan, resolve};
use ditmesh_actors::protocol::RunSpec;
use ditmesh_actors::request::{
    Degrees, FloatTensor, GenerateRequest, Output, OutputKind, PromptEmbeds, RankReport,
};
use ditmesh_model::pipeline::{LoadedParts, Parts, describe};
use ditmesh_model::text::TextEncoderPolicy;
use ditmesh_transport::quic::{QuicConfig, QuicFabric};
use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, InProcessHub, MeshForm, PeerAddress, PeerId, Role, RunId, Transport,
};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures")
}

pub fn pipeline(name: &str) -> PathBuf {
    fixtures().join("pipelines").join(name)
}

/// One case of the fixtures: what diffusers was given and what it gave.
pub struct Golden {
    pub dir: PathBuf,
    pub tensors: HashMap<String, Tensor>,
    pub noise: f64,
}

impl Golden {
    pub fn load(pipeline_name: &str, case: &str) -> Self {
        let cases = fixtures().join("cases").join(pipeline_name);
        let path = cases.join(format!("{case}.safetensors"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let meta = std::fs::read_to_string(cases.join("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let noise = find_noise(&meta, case).unwrap();
        Self { dir: pipeline(pipeline_name), tensors, noise }
    }

    pub fn floats(&self, key: &str) -> FloatTensor {
        let x = self.tensors[key].to_dtype(DType::F32).unwrap();
        let data = x.flatten_all().unwrap().to_vec1().unwrap();
        FloatTensor { shape: x.dims().to_vec(), data }
    }

    /// The request that diffusers answered with `out.latents`.
    pub fn request(&self, vae_scale_factor: usize) -> GenerateRequest {
        let latents = self.floats("latents");
        let edge = |axis: usize| Some((latents.shape[axis] * vae_scale_factor) as u32);
        GenerateRequest {
            height: edge(2),
            width: edge(3),
            num_inference_steps: 8,
            guidance_scale: 4.5,
            output: OutputKind::Latent,
            prompt_embeds: Some(PromptEmbeds {
                prompt_embeds: self.floats("prompt_embeds"),
                prompt_attention_mask: self.floats("prompt_attention_mask"),
                negative_prompt_embeds: Some(self.floats("negative_prompt_embeds")),
                negative_prompt_attention_mask: Some(self.floats("negative_prompt_attention_mask")),
            }),
            latents: Some(latents),
            ..GenerateRequest::default()
        }
    }

    /// `max(1e-5, 10 x f32 noise)`, the bar of an exact method.
    pub fn bar(&self) -> f64 {
        (10.0 * self.noise).max(1e-5)
    }
}

/// `f32_noise` of a case, wherever the file keeps it.
fn find_noise(meta: &serde_json::Value, case: &str) -> Option<f64> {
    let of_case = meta.get(case).or_else(|| meta.get("cases").and_then(|c| c.get(case)))?;
    of_case.get("f32_noise")?.as_f64()
}

pub fn degrees(cfg: u32, pipefusion: u32, ulysses: u32) -> Degrees {
    Degrees {
        cfg_degree: cfg,
        pipefusion_degree: pipefusion,
        ulysses_degree: ulysses,
        ..Degrees::default()
    }
}

/// `degrees` with a ring.
pub fn ring(cfg: u32, pipefusion: u32, ulysses: u32, ring: u32) -> Degrees {
    Degrees { ring_degree: ring, ..degrees(cfg, pipefusion, ulysses) }
}

/// Whether tests run their whole product rather than a covering set.
pub fn full() -> bool {
    std::env::var("DITMESH_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// What a mesh gave.
pub struct Outcome {
    pub output: Output,
    pub ranks: Vec<RankReport>,
    pub checkpoint: Option<Arc<Checkpoint>>,
    /// Memory of each rank's thread.
    pub held: Vec<RankHeld>,
    /// What carried frames between members, and why.
    pub carriers: BTreeSet<String>,
}

/// What the thread of a rank held.
#[derive(Clone, Copy, Debug)]
pub struct RankHeld {
    /// When its weights were loaded.
    pub loaded: Held,
    /// After the run, weights still there.
    pub end: Held,
}

impl Outcome {
    pub fn latents(&self) -> &FloatTensor {
        match &self.output {
            Output::Latents(latents) => latents,
            Output::Image(_) => panic!("an image where latents were asked for"),
        }
    }
}

/// `||a-b||2 / ||b||2` in f64.
pub fn relative(a: &FloatTensor, b: &FloatTensor) -> f64 {
    assert_eq!(a.shape, b.shape);
    let square = |x: f64| x * x;
    let pairs = || a.data.iter().zip(&b.data);
    let difference: f64 = pairs().map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = b.data.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm).sqrt()
}

/// Runs `request` on a mesh of `degrees` over in-process links.
pub fn run(dir: &Path, degrees: Degrees, request: &GenerateRequest) -> Outcome {
    let hub = InProcessHub::new();
    run_over(dir, degrees, request, || hub.fabric())
}

/// Runs `request` from a checkpoint on.
pub fn run_from(
    checkpoint: &Arc<Checkpoint>,
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
) -> Outcome {
    let (hub, adapt) = (InProcessHub::new(), Arc::new(|_: &mut LoadedParts| {}));
    let resume = Some(checkpoint.clone());
    run_with(dir, degrees, request, || hub.fabric(), || Device::Cpu, adapt, resume)
}

/// Runs `request` over whatever `fabric` makes, one for each member.
pub fn run_over(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    fabric: impl Fn() -> Arc<dyn Fabric>,
) -> Outcome {
    let adapt = Arc::new(|_: &mut LoadedParts| {});
    run_with(dir, degrees, request, fabric, || Device::Cpu, adapt, None)
}

/// As [`run_over`], with every rank computing on what `device` opens for it.
pub fn run_on(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    fabric: impl Fn() -> Arc<dyn Fabric>,
    device: fn() -> Device,
) -> Outcome {
    run_with(dir, degrees, request, fabric, device, Arc::new(|_: &mut LoadedParts| {}), None)
}

/// Changes what a rank has loaded.
pub type Adapt = Arc<dyn Fn(&mut LoadedParts) + Send + Sync>;

/// As [`run_over`], with the loaded parts of every rank changed by `adapt`.
pub fn run_adapted(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    fabric: impl Fn() -> Arc<dyn Fabric>,
    adapt: Adapt,
) -> Outcome {
    run_with(dir, degrees, request, fabric, || Device::Cpu, adapt, None)
}

fn run_with(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    fabric: impl Fn() -> Arc<dyn Fabric>,
    device: fn() -> Device,
    adapt: Adapt,
    resume: Option<Arc<Checkpoint>>,
) -> Outcome {
    let spec = describe(dir, DType::F32).unwrap();
    let run = resolve::resolve(request, &spec, degrees).unwrap();
    let first_step = resume.as_ref().map_or(0, |checkpoint| checkpoint.step as u32 + 1);
    let run = RunSpec { first_step, ..run };
    let plan = Arc::new(Plan::new(degrees, &spec, &run).unwrap());
    ditmesh_actors::plan::check::check(&plan).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fabrics: Vec<_> = (0..=plan.controller()).map(|_| fabric()).collect();
    let transports = runtime.block_on(form(&plan, &fabrics));
    let ranks: Vec<_> = (0..plan.controller())
        .map(|rank| {
            let (plan, dir, adapt) = (Arc::clone(&plan), dir.to_owned(), Arc::clone(&adapt));
            let transport = Arc::clone(&transports[rank]);
            std::thread::spawn(move || {
                tracked(|held| {
                    let loading = (dir.as_path(), &adapt, device());
                    rank_thread(&plan, rank, loading, transport, held)
                })
            })
        })
        .collect();
    let store = Arc::new(CheckpointStore::default());
    let inputs = Inputs {
        latents: request.latents.clone().map(Arc::new),
        prompt_embeds: request.prompt_embeds.clone().map(Arc::new),
        resume,
        checkpoints: Some(Arc::clone(&store)),
    };
    let limit = Duration::from_secs(120);
    let transport = transports[plan.controller()].as_ref();
    let work = controller::run(&plan, transport, RunId(7), Epoch(1), &inputs, limit);
    let output = runtime.block_on(work).unwrap().remove(0);
    let (ranks, held) = ranks.into_iter().map(|rank| rank.join().unwrap()).unzip();
    let carriers = transports.iter().enumerate().flat_map(|(member, transport)| {
        let links = plan.peers(member).into_iter().map(|peer| transport.link(PeerId(peer as u32)));
        links.map(|link| link.unwrap().carrier()).collect::<Vec<_>>()
    });
    let carriers = carriers.map(|carrier| format!("{}: {}", carrier.name, carrier.why)).collect();
    transports.iter().for_each(|transport| transport.close("the test is over"));
    fabrics.iter().for_each(|fabric| fabric.close());
    Outcome { output, ranks, checkpoint: store.newest(), held, carriers }
}

fn rank_thread(
    plan: &Arc<Plan>,
    rank: usize,
    (dir, adapt, device): (&Path, &Adapt, Device),
    transport: Arc<dyn Transport>,
    held: &dyn Fn() -> Held,
) -> (RankReport, RankHeld) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    let _pool = pool.build().unwrap();
    let at = DeviceMesh::new(plan.mesh.degrees()).coordinates(rank);
    let parts = Parts {
        blocks: plan.blocks(at.stage),
        text_encoder: (rank == 0).then(TextEncoderPolicy::default),
        vae: plan.is_output(at),
    };
    let mut parts = LoadedParts::load(dir, DType::F32, &parts, &device).unwrap();
    adapt(&mut parts);
    let parts = Arc::new(parts);
    let loaded = held();
    let report = execute(Assignment {
        plan: Arc::clone(plan),
        rank,
        run: RunId(7),
        epoch: Epoch(1),
        transport,
        parts: Arc::clone(&parts),
        device,
        abort: Arc::new(AbortFlag::default()),
        wait_limit: Duration::from_secs(60),
        traceparent: None,
        progress: Box::new(|_| {}),
    })
    .unwrap();
    (report, RankHeld { loaded, end: held() })
}

async fn form(plan: &Plan, fabrics: &[Arc<dyn Fabric>]) -> Vec<Arc<dyn Transport>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let forming: Vec<_> = fabrics
        .iter()
        .enumerate()
        .map(|(member, fabric)| {
            let peer = |id: usize| PeerAddress {
                id: PeerId(id as u32),
                name: "node".into(),
                address: fabrics[id].address(),
            };
            let form = MeshForm {
                cluster: "test".into(),
                epoch: Epoch(1),
                local: PeerId(member as u32),
                peers: plan.peers(member).into_iter().map(peer).collect(),
                deadline,
            };
            let fabric = Arc::clone(fabric);
            tokio::spawn(async move { fabric.form(form).await.unwrap() })
        })
        .collect();
    let mut transports = Vec::new();
    for transport in forming {
        transports.push(transport.await.unwrap());
    }
    transports
}

/// Runs `request` over QUIC on loopback, one fabric for each member as each process would have.
pub fn run_quic(dir: &Path, degrees: Degrees, request: &GenerateRequest) -> Outcome {
    run_quic_on(dir, degrees, request, || Device::Cpu)
}

/// The same with every rank computing on what `device` opens for it.
pub fn run_quic_on(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    device: fn() -> Device,
) -> Outcome {
    let config = loopback();
    run_on(dir, degrees, request, || QuicFabric::bind(&config).unwrap(), device)
}

/// Runs `request` over UCX's shared memory, with frames in the memory that `device` opens for each
/// rank; none where UCX cannot be had.
#[cfg(feature = "cuda")]
pub fn run_ucx_on(
    dir: &Path,
    degrees: Degrees,
    request: &GenerateRequest,
    (device, memory): (fn() -> Device, fn() -> Arc<dyn ditmesh_transport::DeviceMemory>),
) -> Option<Outcome> {
    use ditmesh_transport::{LaneChoice, UcxConfig, UcxFabric};
    ditmesh_transport::ucx::version().ok()?;
    let config = QuicConfig { device: Some(memory()), ..loopback() };
    let ucx = UcxConfig { same_host: LaneChoice::Ucx, ..UcxConfig::default() };
    let fabric = || UcxFabric::bind(&config, ucx.clone()).unwrap();
    Some(run_on(dir, degrees, request, fabric, device))
}

/// Fabrics on loopback, one for each member as each process would have.
fn loopback() -> QuicConfig {
    let identity = ClusterCa::generate("test").unwrap().issue(Role::Node, "node").unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    QuicConfig {
        // Eight ranks on two busy cores: silence here means nothing.
        idle_timeout: Duration::from_secs(30),
        ..QuicConfig::new(identity, address, address)
    }
}
