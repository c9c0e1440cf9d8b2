//! Two or more members over each transport, and a relay that can fall silent.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use ditmesh_transport::{
    ClusterCa, Completion, Epoch, Fabric, FabricAddress, Identity, InProcessHub, LaneChoice,
    MeshForm, PeerAddress, PeerId, QuicConfig, QuicFabric, Role, SimConfig, SimNetwork, Transport,
    TransportError, UcxConfig, UcxFabric,
};
use nix::sys::socket::{setsockopt, sockopt};

pub(crate) const EPOCH: Epoch = Epoch(1);
pub(crate) const CLUSTER: &str = "emoji";

/// What a slow relay holds, the kernel's bookkeeping of each packet included.
const RELAY_QUEUE_BYTES: usize = 16 << 10;

static AUTHORITY: LazyLock<ClusterCa> = LazyLock::new(|| ClusterCa::generate(CLUSTER).unwrap());

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn identity(role: Role, name: &str) -> Identity {
    AUTHORITY.issue(role, name).unwrap()
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn quic_config(identity: Identity) -> QuicConfig {
    let mut config = QuicConfig::new(identity, loopback(), loopback());
    config.idle_timeout = Duration::from_secs(20);
    config
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) fn node_name(rank: usize) -> String {
    format!("n{rank}")
}

pub(crate) fn quic_fabrics(members: usize) -> Vec<Arc<dyn Fabric>> {
    let fabric =
        |rank| QuicFabric::bind(&quic_config(identity(Role::Node, &node_name(rank)))).unwrap();
    (0..members).map(fabric).collect()
}

pub(crate) fn in_process_fabrics(members: usize) -> Vec<Arc<dyn Fabric>> {
    let hub = InProcessHub::new();
    (0..members).map(|_| hub.fabric()).collect()
}

/// The form of one member, all to all.
pub(crate) fn form_of(addresses: &[FabricAddress], rank: usize, epoch: Epoch) -> MeshForm {
    let peers = addresses.iter().enumerate().filter(|(other, _)| *other != rank);
    let peers = peers.map(|(other, address)| PeerAddress {
        id: PeerId(other as u32),
        name: node_name(other),
        address: *address,
    });
    MeshForm {
        cluster: CLUSTER.to_owned(),
        epoch,
        local: PeerId(rank as u32),
        peers: peers.collect(),
        deadline: soon(),
    }
}

pub(crate) fn addresses(fabrics: &[Arc<dyn Fabric>]) -> Vec<FabricAddress> {
    fabrics.iter().map(|fabric| fabric.address()).collect()
}

/// Forms one mesh of all fabrics.
pub(crate) fn form_all(
    fabrics: &[Arc<dyn Fabric>],
    epoch: Epoch,
) -> Vec<Result<Arc<dyn Transport>, TransportError>> {
    let addresses = addresses(fabrics);
    block_on(async {
        let mut tasks = Vec::new();
        for (rank, fabric) in fabrics.iter().enumerate() {
            let (fabric, form) = (Arc::clone(fabric), form_of(&addresses, rank, epoch));
            tasks.push(tokio::spawn(async move { fabric.form(form).await }));
        }
        let mut formed = Vec::new();
        for task in tasks {
            formed.push(task.await.unwrap());
        }
        formed
    })
}

/// Where the members of a mesh over UCX take each other to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// On one host: shared memory.
    Same,
    /// On hosts of their own, by their addresses: TCP.
    Other,
}

impl Host {
    pub(crate) fn carrier(self) -> &'static str {
        match self {
            Self::Same => "ucx-shm",
            Self::Other => "ucx-net",
        }
    }

    pub(crate) fn address(self, rank: usize) -> SocketAddr {
        match self {
            Self::Same => loopback(),
            Self::Other => SocketAddr::from(([127, 0, 0, 1 + rank as u8], 0)),
        }
    }

    pub(crate) fn config(self, rank: usize) -> QuicConfig {
        let mut config = quic_config(identity(Role::Node, &node_name(rank)));
        config.control_bind = self.address(rank);
        config.bulk_bind = self.address(rank);
        config
    }
}

/// Whether UCX can be opened here; CI installs it, elsewhere the tests say that they are skipped.
pub(crate) fn ucx_is_here() -> bool {
    match ditmesh_transport::ucx::version() {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("DITMESH_TEST_UCX").is_none(), "{error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

pub(crate) fn only_ucx() -> UcxConfig {
    UcxConfig {
        same_host: LaneChoice::Ucx,
        other_host: LaneChoice::Ucx,
        trusted_network: true,
        devices: None,
    }
}

pub(crate) fn ucx_fabrics(members: usize, host: Host) -> Option<Vec<Arc<dyn Fabric>>> {
    let fabric = |rank| UcxFabric::bind(&host.config(rank), only_ucx()).unwrap();
    ucx_is_here().then(|| (0..members).map(fabric).collect())
}

/// Members of one mesh, whatever carries it.
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) members: Vec<Arc<dyn Transport>>,
    network: Option<SimNetwork>,
    _fabrics: Vec<Arc<dyn Fabric>>,
}

impl World {
    pub(crate) fn in_process(members: usize) -> Self {
        Self::of("in-process", in_process_fabrics(members))
    }

    pub(crate) fn quic(members: usize) -> Self {
        Self::of("quic", quic_fabrics(members))
    }

    /// None where there is no UCX.
    pub(crate) fn ucx(members: usize, host: Host) -> Option<Self> {
        Some(Self::of(host.carrier(), ucx_fabrics(members, host)?))
    }

    pub(crate) fn sim(members: usize) -> Self {
        let config = SimConfig { epoch: EPOCH, ..SimConfig::default() };
        let network = SimNetwork::new(7, config);
        let transports = (0..members).map(|rank| network.transport(PeerId(rank as u32)));
        let members = transports.collect();
        Self { name: "sim", members, network: Some(network), _fabrics: Vec::new() }
    }

    fn of(name: &'static str, fabrics: Vec<Arc<dyn Fabric>>) -> Self {
        let members = form_all(&fabrics, EPOCH).into_iter().map(Result::unwrap).collect();
        Self { name, members, network: None, _fabrics: fabrics }
    }

    /// Lets virtual time pass, where time is virtual.
    pub(crate) fn settle(&self) {
        if let Some(network) = &self.network {
            network.run_until_idle();
        }
    }

    pub(crate) fn take<T>(&self, mut completion: Completion<T>) -> Result<T, TransportError> {
        self.settle();
        completion.wait_until(soon())
    }
}

/// Forwards UDP both ways between one dialling side and `target`, until it is cut; maybe at a rate
/// in the direction of `target`, with a short queue.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn to(target: SocketAddr) -> Self {
        Self::at_rate(target, None)
    }

    /// So many bytes per second; what does not fit into the queue is lost.
    pub(crate) fn slow(target: SocketAddr, bytes_per_s: u32) -> Self {
        Self::at_rate(target, Some(bytes_per_s))
    }

    fn at_rate(target: SocketAddr, bytes_per_s: Option<u32>) -> Self {
        let front = Arc::new(UdpSocket::bind(loopback()).unwrap());
        if bytes_per_s.is_some() {
            setsockopt(&front, sockopt::RcvBuf, &RELAY_QUEUE_BYTES).unwrap();
        }
        let back = Arc::new(UdpSocket::bind(loopback()).unwrap());
        let address = front.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let caller = Arc::new(Mutex::new(None::<SocketAddr>));
        let (cut_in, seen, out) = (Arc::clone(&cut), Arc::clone(&caller), Arc::clone(&back));
        let inward = Arc::clone(&front);
        forward(inward, move |bytes, from| {
            *seen.lock().unwrap() = Some(from);
            if let Some(rate) = bytes_per_s {
                // The network's own pace.
                std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(rate)));
            }
            if !cut_in.load(Ordering::SeqCst) {
                let _ = out.send_to(bytes, target);
            }
        });
        let cut_out = Arc::clone(&cut);
        forward(back, move |bytes, _| {
            let to = *caller.lock().unwrap();
            if let (Some(to), false) = (to, cut_out.load(Ordering::SeqCst)) {
                let _ = front.send_to(bytes, to);
            }
        });
        Self { address, cut }
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }
}

/// The thread ends with the test binary.
fn forward(socket: Arc<UdpSocket>, each: impl Fn(&[u8], SocketAddr) + Send + 'static) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            each(&buffer[..len], from);
        }
    });
}
