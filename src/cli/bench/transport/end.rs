//! The process of one end: it binds, joins and runs what it is told, pinned to a core.
//!
//! Owns its wires. Orders come as lines of JSON on stdin, one answer each goes to stdout; the end
//! of stdin is the end of the process. Nothing is measured but inside an order.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use ditmesh::manifest::{CongestionKind, TransportSection};
use ditmesh_transport::{Congestion, Fabric, Identity, QuicConfig, Role};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::subject::Subject;
use super::wire::{Run, Seen, Wire};
use super::{datagram_wire, link_wire, quinn_wire, stream_wire};
use crate::cli::failure::Failure;

/// Who this end is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) rank: u8,
    pub(super) core: Option<usize>,
    pub(super) ip: IpAddr,
    pub(super) settings: Settings,
    /// Certificate, key and authority of this end: files by their names.
    pub(super) identity: BTreeMap<String, String>,
}

/// Of the product's QUIC.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) mtu_bytes: u16,
    pub(super) bulk_connections: u8,
    pub(super) congestion: CongestionKind,
}

impl Settings {
    /// Those of a manifest.
    pub(super) fn of(transport: &TransportSection) -> Self {
        let TransportSection { mtu_bytes, bulk_connections, congestion, .. } = *transport;
        Self { mtu_bytes, bulk_connections, congestion }
    }

    /// Applies them.
    pub(super) fn apply(self, quic: &mut QuicConfig) {
        quic.mtu_bytes = self.mtu_bytes;
        quic.bulk_lanes = self.bulk_connections;
        quic.congestion = match self.congestion {
            CongestionKind::Cubic => Congestion::Cubic,
            CongestionKind::NewReno => Congestion::NewReno,
            CongestionKind::Bbr => Congestion::Bbr,
            CongestionKind::Auto => Congestion::Auto,
        };
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(&TransportSection::default())
    }
}

/// What an end is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// Listens; answered with the address.
    Bind(Subject),
    /// Joins the other end.
    Join(Subject, String),
    /// Runs, all at once; answered with [`Done`].
    Run(Vec<Run>),
}

/// What an end answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Bound(String),
    Joined,
    Ran(Done),
    Failed(String),
}

/// What an end saw of its runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// In the order of the runs.
    pub(super) seen: Vec<Seen>,
    /// Of this process, in seconds of user and system time.
    pub(super) cpu_s: f64,
    /// How often its threads gave up their core or lost it.
    pub(super) switches: u64,
}

enum Bound {
    Fabric(Arc<dyn Fabric>),
    Tcp(Option<TcpListener>),
    Quinn(Box<quinn_wire::Bound>),
    Udp(UdpSocket),
}

struct End {
    start: Start,
    identity: Identity,
    bound: BTreeMap<Subject, Bound>,
    wires: BTreeMap<Subject, Box<dyn Wire>>,
}

/// Lives until stdin ends.
pub(crate) fn run() -> Result<(), Failure> {
    let mut lines = std::io::stdin().lock().lines();
    let first = lines.next().transpose().map_err(Failure::failed)?;
    let start: Start = serde_json::from_str(&first.unwrap_or_default()).map_err(Failure::usage)?;
    if let Some(core) = start.core {
        let mut set = CpuSet::new();
        let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        pinned.map_err(|error| Failure::failed(format!("cannot pin to core {core}: {error}")))?;
    }
    let name = format!("n{}", start.rank);
    let identity = unpack(&start.identity, &name)?;
    let mut end = End { start, identity, bound: BTreeMap::new(), wires: BTreeMap::new() };
    for line in lines {
        let line = line.map_err(Failure::failed)?;
        let answer = match serde_json::from_str(&line) {
            Ok(order) => end.obey(order).unwrap_or_else(Answer::Failed),
            Err(error) => Answer::Failed(format!("no order: {error}")),
        };
        let answer = serde_json::to_string(&answer).map_err(Failure::failed)?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).map_err(Failure::failed)?;
    }
    Ok(())
}

/// The identity that came with the orders; its files are gone when this returns.
fn unpack(files: &BTreeMap<String, String>, name: &str) -> Result<Identity, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::failed)?;
    for (file, text) in files {
        let mut open = std::fs::OpenOptions::new();
        let file = open.write(true).create_new(true).mode(0o600).open(folder.path().join(file));
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(Failure::failed)?;
    }
    Ok(Identity::load(folder.path(), Role::Node, name)?)
}

impl End {
    fn obey(&mut self, order: Order) -> Result<Answer, String> {
        match order {
            Order::Bind(subject) => self.bind(subject).map(Answer::Bound),
            Order::Join(subject, peer) => {
                let wire = self.join(subject, &peer)?;
                self.wires.insert(subject, wire);
                Ok(Answer::Joined)
            }
            Order::Run(runs) => self.run(&runs).map(Answer::Ran),
        }
    }

    fn bind(&mut self, subject: Subject) -> Result<String, String> {
        let Start { rank, ip, settings, .. } = self.start;
        let (bound, address) = match subject.fabric(self.identity.clone(), ip, rank, settings) {
            Some(fabric) => {
                let fabric = fabric?;
                let address = fabric.address().to_string();
                (Bound::Fabric(fabric), address)
            }
            None => match subject {
                Subject::QuinnDefault | Subject::QuinnOneThread | Subject::Control => {
                    let own_thread = subject == Subject::QuinnDefault;
                    let (bound, address) = match subject {
                        Subject::Control => quinn_wire::bind_control(&self.identity, ip)?,
                        _ => quinn_wire::bind_quinn(&self.identity, ip, own_thread)?,
                    };
                    (Bound::Quinn(Box::new(bound)), address.to_string())
                }
                Subject::Udp => {
                    let socket = datagram_wire::bind(ip)?;
                    let address = socket.local_addr().map_err(|error| error.to_string())?;
                    (Bound::Udp(socket), address.to_string())
                }
                _ if rank == 0 => (Bound::Tcp(None), SocketAddr::new(ip, 0).to_string()),
                _ => {
                    let listener = stream_wire::listen(ip)?;
                    let address = listener.local_addr().map_err(|error| error.to_string())?;
                    (Bound::Tcp(Some(listener)), address.to_string())
                }
            },
        };
        self.bound.insert(subject, bound);
        Ok(address)
    }

    fn join(&mut self, subject: Subject, peer: &str) -> Result<Box<dyn Wire>, String> {
        let socket = || peer.parse::<SocketAddr>().map_err(|error| error.to_string());
        let rank = self.start.rank;
        match self.bound.remove(&subject) {
            None => Err(format!("{} was not bound", subject.name())),
            Some(Bound::Fabric(fabric)) => {
                let cluster = self.identity.subject().cluster.clone();
                let peer = peer.parse().map_err(|error| format!("{error}"))?;
                link_wire::join(fabric, cluster, (rank, peer), subject.is_on_gpu())
            }
            Some(Bound::Quinn(bound)) => quinn_wire::join(*bound, &self.identity, rank, socket()?),
            Some(Bound::Udp(own)) => datagram_wire::join(own, socket()?),
            Some(Bound::Tcp(listener)) => {
                let tls = (subject == Subject::Tls).then_some(&self.identity);
                stream_wire::join(listener, socket()?, tls)
            }
        }
    }

    fn run(&mut self, runs: &[Run]) -> Result<Done, String> {
        let before = used()?;
        let mut taken = Vec::new();
        for run in runs {
            let wire = self.wires.remove(&run.subject);
            let wire = wire.ok_or_else(|| format!("{} was not joined", run.subject.name()))?;
            taken.push((*run, wire));
        }
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> =
                taken.iter_mut().map(|(run, wire)| scope.spawn(move || wire.run(run))).collect();
            let ended = threads.into_iter().map(|thread| match thread.join() {
                Ok(seen) => seen,
                Err(_) => Err("a measuring thread ended badly".to_owned()),
            });
            ended.collect::<Vec<_>>()
        });
        self.wires.extend(taken.into_iter().map(|(run, wire)| (run.subject, wire)));
        let seen = results.into_iter().collect::<Result<Vec<_>, _>>()?;
        let after = used()?;
        Ok(Done {
            seen,
            cpu_s: after.cpu_s - before.cpu_s,
            switches: after.switches - before.switches,
        })
    }
}

struct Used {
    cpu_s: f64,
    switches: u64,
}

fn used() -> Result<Used, String> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|error| error.to_string())?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
    Ok(Used {
        cpu_s: seconds(usage.user_time()) + seconds(usage.system_time()),
        switches: switches.unsigned_abs(),
    })
}
