//! Strangers: what they can make this process hold, and whether members still get in.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::quic::{HANDSHAKES_MAX, HANDSHAKES_UNPROVEN_MAX};
use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, FabricAddress, QuicConfig, QuicFabric, Role, TransportError,
};

use crate::alone::{Footprint, alone, full_scale, is_role, start};
use crate::support::{
    CLUSTER, addresses, block_on, form_all, form_of, identity, loopback, quic_fabrics, soon,
};

/// What a flood may add to this process, in bytes: the handshakes that may be under way, the
/// packets of callers that wait, and what the allocator keeps of the rest.
const FLOOD_BYTES_MAX: u64 = 12 << 20;

fn ports(fabric: &Arc<dyn Fabric>) -> Vec<SocketAddr> {
    match fabric.address() {
        FabricAddress::Quic { control, bulk } => {
            std::iter::once(control).chain(bulk.as_slice().iter().copied()).collect()
        }
        other => panic!("{other}"),
    }
}

/// What members' certificates are for, among others.
pub(crate) const SERVER_NAME: &str = "member.emoji.ditmesh.internal";

/// A client that shows no certificate, and speaks as members do.
fn stranger() -> quinn::ClientConfig {
    stranger_by(b"ditmesh")
}

/// A client that shows no certificate, by this protocol.
pub(crate) fn stranger_by(protocol: &[u8]) -> quinn::ClientConfig {
    let dir = tempfile::tempdir().unwrap();
    identity(Role::Node, "n9").save(dir.path()).unwrap();
    let pem = std::fs::read(dir.path().join("ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(quic))
}

/// Lets what comes in pass on to `target`, and nothing back: whoever calls is never answered.
fn one_way(target: SocketAddr) -> SocketAddr {
    let front = UdpSocket::bind(loopback()).unwrap();
    let back = UdpSocket::bind(loopback()).unwrap();
    let address = front.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, _)) = front.recv_from(&mut buffer) {
            let _ = back.send_to(&buffer[..len], target);
        }
    });
    address
}

/// Starts `callers` handshakes that never hear an answer.
async fn half_open(target: SocketAddr, callers: usize) -> Vec<quinn::Endpoint> {
    let config = stranger();
    let mut endpoints = Vec::new();
    for _ in 0..callers.div_ceil(100) {
        let endpoint = quinn::Endpoint::client(loopback()).unwrap();
        let address = one_way(target);
        for _ in 0..100 {
            let calling = endpoint.connect_with(config.clone(), address, SERVER_NAME).unwrap();
            tokio::spawn(async move { drop(calling.await) });
        }
        endpoints.push(endpoint);
    }
    endpoints
}

#[test]
fn handshakes_that_never_end_hold_little_and_keep_nobody_out() {
    let test = "hostile::handshakes_that_never_end_hold_little_and_keep_nobody_out";
    if is_role("callers") {
        return never_end();
    }
    alone(test, || {
        let fabrics = quic_fabrics(2);
        assert!(form_all(&fabrics, Epoch(1)).iter().all(Result::is_ok));
        let callers = if full_scale() { 8 * HANDSHAKES_MAX } else { 16 * HANDSHAKES_UNPROVEN_MAX };
        // What the callers themselves hold is not to be measured.
        let mut others = start(test, "callers");
        let mut tell = others.stdin.take().unwrap();
        let mut lines = BufReader::new(others.stdout.take().unwrap()).lines();
        let before = Footprint::now();
        for port in ports(&fabrics[1]) {
            writeln!(tell, "{port} {}", callers / 3).unwrap();
            lines.find(|line| line.as_ref().unwrap() == CALLING).unwrap().unwrap();
        }
        let formed = form_all(&fabrics, Epoch(2));
        assert!(formed.iter().all(Result::is_ok), "{:?}", formed[0].as_ref().err());
        let after = Footprint::now();
        let grown = after.resident_bytes.saturating_sub(before.resident_bytes);
        assert!(grown < FLOOD_BYTES_MAX, "{callers} strangers take {grown} bytes");
        drop(tell);
        others.wait().unwrap();
    });
}

/// Says that the callers of one line have begun.
const CALLING: &str = "calling";

/// Calls as its standard input says, line by line, until that ends.
fn never_end() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap();
    let (mut floods, mut told) = (Vec::new(), std::io::stdout().lock());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let (port, callers) = line.split_once(' ').unwrap();
        let (port, callers) = (port.parse().unwrap(), callers.parse().unwrap());
        floods.push(runtime.block_on(half_open(port, callers)));
        writeln!(told, "\n{CALLING}").unwrap();
    }
    runtime.shutdown_background();
}

#[test]
fn callers_without_a_certificate_are_turned_away_and_leave_nothing() {
    alone("hostile::callers_without_a_certificate_are_turned_away_and_leave_nothing", || {
        let fabrics = quic_fabrics(2);
        let callers = if full_scale() { 2000 } else { 100 };
        let call = |port: SocketAddr, callers: usize| {
            block_on(async {
                let endpoint = quinn::Endpoint::client(loopback()).unwrap();
                let config = stranger();
                for _ in 0..callers {
                    let calling = endpoint.connect_with(config.clone(), port, SERVER_NAME).unwrap();
                    // A client is through before the server has seen that there is no certificate.
                    if let Ok(connection) = calling.await {
                        connection.closed().await;
                    }
                }
            });
        };
        let ports = ports(&fabrics[1]);
        ports.iter().for_each(|port| call(*port, 20));
        let before = Footprint::now();
        ports.iter().for_each(|port| call(*port, callers));
        let after = Footprint::now();
        assert!(after.descriptors <= before.descriptors, "{before:?} {after:?}");
        assert!(after.threads <= before.threads, "{before:?} {after:?}");
        let grown = after.resident_bytes.saturating_sub(before.resident_bytes);
        assert!(grown < FLOOD_BYTES_MAX, "{callers} strangers leave {grown} bytes");
        assert!(form_all(&fabrics, Epoch(1)).iter().all(Result::is_ok));
    });
}

#[test]
fn packets_that_are_noise_change_nothing() {
    let fabrics = quic_fabrics(2);
    let members: Vec<_> = form_all(&fabrics, Epoch(1)).into_iter().map(Result::unwrap).collect();
    let noise = UdpSocket::bind(loopback()).unwrap();
    let mut state = 7_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for port in ports(&fabrics[1]) {
        for _ in 0..2000 {
            let len = next() as usize % 1500;
            let mut packet: Vec<u8> = (0..len).map(|_| next() as u8).collect();
            // Half of them look like the first packet of a handshake.
            if let (Some(first), 0) = (packet.first_mut(), next() % 2) {
                *first = 0xc3;
            }
            let _ = noise.send_to(&packet, port);
        }
    }
    let closed = members[1].link(ditmesh_transport::PeerId(0)).unwrap().closed();
    assert_eq!(closed, None);
    assert!(form_all(&fabrics, Epoch(2)).iter().all(Result::is_ok));
}

/// A member that only the wrong authority vouches for gets an error that says so, quickly.
#[test]
fn a_member_of_another_authority_learns_why_it_is_refused() {
    let ours = quic_fabrics(1);
    let other = ClusterCa::generate(CLUSTER).unwrap();
    let config = QuicConfig::new(other.issue(Role::Node, "n0").unwrap(), loopback(), loopback());
    let theirs = QuicFabric::bind(&config).unwrap();
    let places = [theirs.address(), ours[0].address()];
    let begun = Instant::now();
    let error = block_on(theirs.form(form_of(&places, 0, Epoch(1)))).map(|_| ()).unwrap_err();
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5) && begun < soon());
    assert_eq!(addresses(&ours).len(), 1);
}
