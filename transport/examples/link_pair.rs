//! Two processes, a core each, one link: what QUIC and UCX carry, beside `ucx_perftest`.
//!
//! `cargo run -p ditmesh-transport --example link_pair -- [quic|ucx-shm|ucx-net] [ROUNDS] [MIB] [PINGS]`
//!
//! Prints, for each carrier, medians over interleaved rounds (at least 7 say something): GB/s
//! (1e9 bytes) of messages of MIB MiB (64; 0 for none), microseconds of PINGS (4000) round trips
//! of 64 bytes, and the ratio to `ucx_perftest` over the same transports of UCX in the same round,
//! with its spread.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::load::{PingPong, Stream};
use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, Identity, LaneChoice, Link, MeshForm, PeerAddress, PeerId,
    QuicConfig, QuicFabric, Role, RunId, Transport, UcxConfig, UcxFabric,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const EPOCH: Epoch = Epoch(1);
const STREAM_BYTES: u64 = 2 << 30;
const IN_FLIGHT: u64 = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, carrier, folder, other] = arguments.as_slice()
        && mode == "--child"
    {
        return child(carrier, folder, other);
    }
    let carriers: Vec<&str> = match arguments.first().map(String::as_str) {
        Some("all") | None => vec!["ucx-shm", "ucx-net"],
        Some(one) => vec![one],
    };
    let rounds = arguments.get(1).map_or(7, |rounds| rounds.parse().unwrap());
    let bytes = arguments.get(2).map_or(64 << 20, |mib| mib.parse::<usize>().unwrap() << 20);
    let pings = arguments.get(3).map_or(4000, |pings| pings.parse().unwrap());
    for carrier in carriers {
        measure(carrier, rounds, bytes, pings);
    }
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

fn measure(carrier: &str, rounds: usize, bytes: usize, pings: u64) {
    let folder = tempfile::tempdir().unwrap();
    let authority = ClusterCa::generate("pair").unwrap();
    for name in ["n0", "n1"] {
        authority.issue(Role::Node, name).unwrap().save(folder.path()).unwrap();
    }
    pin(0);
    let fabric = fabric(carrier, folder.path().to_str().unwrap(), 0);
    let (mut other, mut said) = Other::start(carrier, &folder, &fabric);
    let address = said.line();
    let mesh = form(&fabric, 0, &address);
    let link = mesh.link(PeerId(1)).unwrap();
    println!("{carrier}: {:?}", link.carrier());
    let mut figures = Figures::default();
    for round in 0..rounds as u64 {
        let messages = messages_of(bytes);
        let (perftest_bw, perftest_rtt) = perftest(carrier, bytes);
        let stream =
            Stream { epoch: EPOCH, run: RunId(2 * round), bytes, messages, in_flight: IN_FLIGHT };
        let gb_s = if bytes > 0 {
            other.tell(&format!("stream {} {bytes} {messages}", stream.run));
            let took = stream.send(&*link, &*mesh, soon()).unwrap();
            (bytes as u64 * messages) as f64 / took.as_secs_f64() / 1e9
        } else {
            f64::NAN
        };
        let pings = PingPong { epoch: EPOCH, run: RunId(2 * round + 1), bytes: 64, rounds: pings };
        other.tell(&format!("ping {} {}", pings.run, pings.rounds));
        let mut each = pings.lead(&*link, soon()).unwrap();
        each.sort();
        let rtt = each[each.len() / 2].as_secs_f64() * 1e6;
        println!(
            "  {gb_s:.2} GB/s, perftest {perftest_bw:.2}; rtt {rtt:.1} us, perftest {perftest_rtt:.1}"
        );
        figures.push(gb_s, perftest_bw, rtt, perftest_rtt);
    }
    other.tell("end");
    figures.print(carrier);
}

#[derive(Default)]
struct Figures {
    gb_s: Vec<f64>,
    gb_s_ratio: Vec<f64>,
    rtt: Vec<f64>,
    rtt_ratio: Vec<f64>,
}

impl Figures {
    fn push(&mut self, gb_s: f64, perftest_gb_s: f64, rtt: f64, perftest_rtt: f64) {
        self.gb_s.push(gb_s);
        self.gb_s_ratio.push(gb_s / perftest_gb_s);
        self.rtt.push(rtt);
        self.rtt_ratio.push(rtt / perftest_rtt);
    }

    fn print(&mut self, carrier: &str) {
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            (values[values.len() / 2], values[0], values[values.len() - 1])
        };
        for (what, values) in [
            ("GB/s", &mut self.gb_s),
            ("GB/s over perftest", &mut self.gb_s_ratio),
            ("round trip us", &mut self.rtt),
            ("round trip over perftest", &mut self.rtt_ratio),
        ] {
            let (middle, least, most) = median(values);
            println!("{carrier} {what}: {middle:.2} ({least:.2}-{most:.2})");
        }
    }
}

/// How many messages a stream has.
fn messages_of(bytes: usize) -> u64 {
    STREAM_BYTES.checked_div(bytes as u64).unwrap_or(0).max(2)
}

/// GB/s of large messages, microseconds of small round trips.
fn perftest(carrier: &str, bytes: usize) -> (f64, f64) {
    let tls = match carrier {
        "ucx-shm" => "posix,sysv,cma,self",
        "ucx-net" => "tcp,self",
        _ => return (f64::NAN, f64::NAN),
    };
    let (messages, size) = (messages_of(bytes).to_string(), bytes.to_string());
    let stream = match bytes {
        0 => String::new(),
        _ => run_perftest(tls, &["-t", "tag_bw", "-s", &size, "-n", &messages, "-w", "2"]),
    };
    let small = run_perftest(tls, &["-t", "tag_lat", "-s", "64", "-n", "20000"]);
    // Columns of the final line: iterations, percentile, average and overall latency, then MB/s
    // (2^20), average and overall.
    let column = |line: &str, at: usize| {
        line.split_whitespace()
            .nth(at)
            .and_then(|word| word.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
    };
    (column(&stream, 5) * f64::from(1 << 20) / 1e9, column(&small, 3) * 2.0)
}

fn run_perftest(tls: &str, arguments: &[&str]) -> String {
    let port = "13998";
    let perftest = |core: &str| {
        let mut command = Command::new("ucx_perftest");
        command.env("UCX_TLS", tls).args(["-f", "-p", port, "-c", core]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let mut server = perftest("1").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let output = perftest("0").arg("127.0.0.1").args(arguments).output().unwrap();
    server.wait().unwrap();
    String::from_utf8_lossy(&output.stdout).trim_end().lines().last().unwrap_or_default().to_owned()
}

struct Other(Child, ChildStdin);

struct Said(BufReader<ChildStdout>);

impl Said {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Other {
    fn start(carrier: &str, folder: &tempfile::TempDir, fabric: &Arc<dyn Fabric>) -> (Self, Said) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--child", carrier, folder.path().to_str().unwrap()])
            .arg(fabric.address().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        (Self(child, stdin), Said(BufReader::new(stdout)))
    }

    fn tell(&mut self, what: &str) {
        writeln!(self.1, "{what}").unwrap();
        if what == "end" {
            self.0.wait().unwrap();
        }
    }
}

fn child(carrier: &str, folder: &str, other: &str) {
    pin(1);
    let fabric = fabric(carrier, folder, 1);
    println!("{}", fabric.address());
    let mesh = form(&fabric, 1, other);
    let link: Arc<dyn Link> = mesh.link(PeerId(0)).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["stream", run, bytes, messages] => {
                let (run, bytes) = (RunId(run.parse().unwrap()), bytes.parse().unwrap());
                let messages = messages.parse().unwrap();
                let stream = Stream { epoch: EPOCH, run, bytes, messages, in_flight: IN_FLIGHT };
                stream.receive(&*link, &*mesh, soon()).unwrap();
            }
            ["ping", run, rounds] => {
                let (run, rounds) = (RunId(run.parse().unwrap()), rounds.parse().unwrap());
                let pings = PingPong { epoch: EPOCH, run, bytes: 64, rounds };
                pings.follow(&*link, soon()).unwrap();
            }
            _ => return,
        }
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn fabric(carrier: &str, folder: &str, rank: u8) -> Arc<dyn Fabric> {
    let identity = Identity::load(folder.as_ref(), Role::Node, &format!("n{rank}")).unwrap();
    // Addresses of their own make hosts of their own.
    let host = if carrier == "ucx-net" { 1 + rank } else { 1 };
    let bind = ([127, 0, 0, host], 0).into();
    let quic = QuicConfig::new(identity, bind, bind);
    if carrier == "quic" {
        return QuicFabric::bind(&quic).unwrap();
    }
    let ucx = UcxConfig {
        same_host: LaneChoice::Ucx,
        other_host: LaneChoice::Ucx,
        trusted_network: true,
        devices: None,
    };
    UcxFabric::bind(&quic, ucx).unwrap()
}

fn form(fabric: &Arc<dyn Fabric>, rank: u32, other: &str) -> Arc<dyn Transport> {
    let id = PeerId(1 - rank);
    let peer = PeerAddress { id, name: format!("n{}", id.0), address: other.parse().unwrap() };
    let form = MeshForm {
        cluster: "pair".to_owned(),
        epoch: EPOCH,
        local: PeerId(rank),
        peers: vec![peer],
        deadline: soon(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fabric.form(form)).unwrap()
}
