//! `bench shaped`: what a slow link costs each parallel method on two ranks.
//!
//! Owns the order of runs: in every round each method runs once while the link has its rate and
//! once while it has none, in the same processes. Each rank has one thread and a network namespace
//! of its own. What the runs amount to is in [`report`].

mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ditmesh::manifest;
use ditmesh::{ClusterClient, GenerateRequest, Manifest, Wire};
use ditmesh_actors::client::CLIENT_NAME;
use ditmesh_transport::heap::heap_tunables;
use ditmesh_transport::{ClusterCa, Role};

use super::cores;
use super::method::Method;
use super::random_model::RandomModel;
use super::shaped_link::{Shape, ShapedLink};
use crate::cli::args::ShapedBenchArgs;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;
use crate::cli::terminal::Terminal;
use report::{Report, Run, Way};

/// Steps at the beginning of each run that are dropped.
const DROPPED_STEPS: u32 = 2;
/// Longest wait for the agents.
const UP_MAX: Duration = Duration::from_secs(60);
/// Between two attempts to reach them.
const UP_AGAIN: Duration = Duration::from_millis(100);
const CLUSTER: &str = "shaped";

/// Measures and prints.
pub(super) fn run(args: &ShapedBenchArgs, terminal: &Terminal) -> Result<(), Failure> {
    let mut interrupt = Interrupt::new()?;
    let cores = cores::two(args.cores.as_deref())?;
    let shape = Shape {
        mbit_per_s: args.mbits,
        mtu: args.link_mtu,
        loss_ppm: 0,
        queue_ms: args.queue_ms,
        delay_ms: 0,
    };
    let model = RandomModel::write(&args.size)?;
    let link = ShapedLink::set_up(shape)?;
    // Agents are started, and the coordinator is dialled, from the first end.
    link.enter(0).map_err(Failure::failed)?;
    let manifest = cluster(&model, &link, cores)?;
    let agents = Agents::start(&model.work_dir().join("cluster.toml"), &link)?;
    let client = connect(&manifest)?;
    let mut runs = Vec::new();
    for round in 0..args.rounds {
        terminal.note(&format!("round {} of {}", round + 1, args.rounds));
        for way in ways(args) {
            // Which comes first changes from round to round.
            for limited in [round % 2 == 0, round % 2 != 0] {
                link.limit(true).map_err(Failure::failed)?;
                if !limited {
                    link.limit(false).map_err(Failure::failed)?;
                }
                let request = request(&model, args.steps, way);
                let handle = client.generate(request);
                let done = interrupt.guard(handle.finish())??;
                let ranks = done.report.ranks;
                runs.push(Run { round, way, limited, ranks });
            }
        }
    }
    drop(client);
    drop(agents);
    let report = Report::of(shape, describe(args), DROPPED_STEPS as usize, &runs)
        .ok_or_else(|| Failure::failed("a run reported no times of its steps"))?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&report.text())
}

fn describe(args: &ShapedBenchArgs) -> String {
    let size = &args.size;
    let tokens = (size.latent / 2).pow(2);
    format!(
        "PixArt, hidden {} x {} heads, {} blocks, {tokens} tokens, guided, f32, random weights",
        size.hidden, size.heads, size.blocks
    )
}

/// Each method as it is, and with 8 bits on the wire.
fn ways(args: &ShapedBenchArgs) -> Vec<Way> {
    let methods = args
        .only
        .clone()
        .unwrap_or_else(|| vec![Method::Pipefusion2, Method::Ulysses2, Method::Ring2]);
    methods.into_iter().flat_map(|method| [false, true].map(|int8| Way { method, int8 })).collect()
}

fn request(model: &RandomModel, steps: u32, way: Way) -> GenerateRequest {
    let mut request = way.method.applied_to(&model.request(steps + DROPPED_STEPS));
    // The axes are all named, so the text is always one that can be read.
    request.wire = Some("int8".parse().ok().filter(|_| way.int8).unwrap_or_else(Wire::default));
    request
}

/// Writes the manifest and the certificates of two nodes of one device each.
fn cluster(model: &RandomModel, link: &ShapedLink, cores: [usize; 2]) -> Result<Manifest, Failure> {
    let folder = model.work_dir();
    let certs = folder.join("certs");
    let path = folder.join("cluster.toml");
    let node = |end: usize| {
        format!(
            "[[node]]\nname = \"n{end}\"\naddress = \"{}\"\ncontrol_port = 7000\n\
             [[node.device]]\nkind = \"cpu\"\nthreads = 1\ncores = [{}]\n\n",
            link.address(end),
            cores[end],
        )
    };
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let text = format!(
        "schema = 1\n\n[cluster]\nname = \"{CLUSTER}\"\nstate_dir = {}\n\n{}{}\
         [[model]]\nname = \"random\"\npath = {}\n\n[[group]]\nmodel = \"random\"\n\
         degrees = {{ pipefusion_degree = 2 }}\n\n\
         [security]\ncerts_dir = {}\n\n[health]\nsuspect_ms = 10000\ndead_ms = 20000\n",
        quoted(folder),
        node(0),
        node(1),
        quoted(&model.path()),
        quoted(&certs),
    );
    let written = std::fs::create_dir_all(&certs)
        .and_then(|()| std::fs::File::create(&path)?.write_all(text.as_bytes()));
    written.map_err(|error| Failure::write(&path, &error))?;
    let authority = ClusterCa::generate(CLUSTER)?;
    authority.save(&certs)?;
    for (role, name) in [(Role::Node, "n0"), (Role::Node, "n1"), (Role::Client, CLIENT_NAME)] {
        authority.issue(role, name)?.save(&certs)?;
    }
    Ok(manifest::parse::load(&path)?)
}

/// One agent in each namespace; both end when this is dropped.
struct Agents(Vec<Child>);

impl Agents {
    fn start(manifest: &PathBuf, link: &ShapedLink) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let mut agents = Self(Vec::new());
        for end in [0, 1] {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", link.namespace(end)]).arg(&program);
            command
                .arg("agent")
                .arg("--cluster")
                .arg(manifest)
                .args(["--node", &format!("n{end}")]);
            command.envs(heap_tunables()).stdin(Stdio::null()).stdout(Stdio::null());
            let started = command.spawn();
            agents.0.push(started.map_err(|error| Failure::failed(format!("an agent: {error}")))?);
        }
        Ok(agents)
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in &mut self.0 {
            let id = nix::unistd::Pid::from_raw(agent.id().cast_signed());
            // `ip netns exec` has become the agent, whose workers end with it.
            let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
            let _ = agent.wait();
        }
    }
}

fn connect(manifest: &Manifest) -> Result<ClusterClient, Failure> {
    let deadline = Instant::now() + UP_MAX;
    loop {
        match ClusterClient::connect(manifest) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(UP_AGAIN),
        }
    }
}
