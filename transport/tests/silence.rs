//! Peers that fall silent without a word, as after `kill -9` of a host.

use std::time::{Duration, Instant};

use ditmesh_transport::{
    ControlConfig, ControlEndpoint, FabricAddress, FrameMeta, LaneAddresses, PeerId, PostRecv,
    QuicFabric, Region, Role, RunId, SendFrame, SimConfig, SimNetwork, Slice, Tag, TransportError,
};

use crate::support::{EPOCH, Relay, block_on, form_of, identity, loopback, quic_config, soon};

const IDLE: Duration = Duration::from_millis(400);

#[test]
fn a_silent_peer_of_a_mesh_is_lost_on_both_sides() {
    let fabric = |name: &str| {
        let mut config = quic_config(identity(Role::Node, name));
        config.idle_timeout = IDLE;
        config.keep_alive = IDLE / 5;
        QuicFabric::bind(&config).unwrap()
    };
    let fabrics = [fabric("n0"), fabric("n1")];
    let FabricAddress::Quic { control, bulk } = fabrics[1].address() else { panic!() };
    let control = Relay::to(control);
    let bulk: Vec<_> = bulk.as_slice().iter().map(|lane| Relay::to(*lane)).collect();
    let lanes: Vec<_> = bulk.iter().map(|relay| relay.address).collect();
    let lanes = LaneAddresses::new(&lanes).unwrap();
    let relayed = FabricAddress::Quic { control: control.address, bulk: lanes };
    let places = [fabrics[0].address(), relayed];
    let forms = (form_of(&places, 0, EPOCH), form_of(&places, 1, EPOCH));
    let (a, b) =
        block_on(async { tokio::join!(fabrics[0].form(forms.0), fabrics[1].form(forms.1)) });
    let (a, b) = (a.unwrap(), b.unwrap());
    let (at_a, at_b) = (a.link(PeerId(1)).unwrap(), b.link(PeerId(0)).unwrap());
    let post = || PostRecv { run: RunId(1), tag: Tag(1), region: Region::host(4), len: 4 };
    let mut receiving = at_b.post_recv(post());
    let mut sending = at_a.send(SendFrame {
        run: RunId(1),
        tag: Tag(2),
        meta: FrameMeta::raw(EPOCH, 4),
        payload: Slice::copy_of(&[0; 4]),
    });
    // Alive for several idle timeouts while nothing is sent: the keep-alives hold it.
    let early = receiving.wait_until(Instant::now() + IDLE * 2);
    assert!(matches!(early, Err(TransportError::Deadline { .. })), "{early:?}");
    let cut = Instant::now();
    control.cut();
    bulk.iter().for_each(Relay::cut);
    let lost = receiving.wait_until(soon()).map(|_| ());
    assert!(
        matches!(&lost, Err(TransportError::PeerLost { peer: PeerId(0), cause })
            if cause.contains("silent")),
        "{lost:?}"
    );
    let lost = sending.wait_until(soon());
    assert!(matches!(lost, Err(TransportError::PeerLost { peer: PeerId(1), .. })), "{lost:?}");
    assert!(cut.elapsed() < IDLE * 5, "{:?}", cut.elapsed());
}

#[test]
fn a_silent_control_channel_is_lost_on_both_sides() {
    let endpoint = |role, name: &str| {
        let mut config = ControlConfig::new(identity(role, name), loopback());
        config.idle_timeout = IDLE;
        config.keep_alive = IDLE / 5;
        ControlEndpoint::bind(&config).unwrap()
    };
    let (client, server) = (endpoint(Role::Client, "me"), endpoint(Role::Node, "n1"));
    let relay = Relay::to(server.local_address());
    let expected = identity(Role::Node, "n1").subject().clone();
    block_on(async {
        let (here, there) =
            tokio::join!(client.connect(relay.address, &expected, soon()), server.accept());
        let (mut here, mut there) = (here.unwrap(), there.unwrap());
        relay.cut();
        let lost = there.recv().await;
        assert!(matches!(lost, Err(TransportError::SessionLost { .. })), "{lost:?}");
        let lost = here.recv().await;
        assert!(matches!(lost, Err(TransportError::SessionLost { .. })), "{lost:?}");
        let refused = here.send(vec![1], soon()).await;
        assert!(matches!(refused, Err(TransportError::SessionLost { .. })), "{refused:?}");
    });
}

fn simulated() -> (SimNetwork, [std::sync::Arc<dyn ditmesh_transport::Transport>; 2]) {
    let network = SimNetwork::new(3, SimConfig { epoch: EPOCH, ..SimConfig::default() });
    let members = [0, 1].map(|rank| network.transport(PeerId(rank)));
    (network, members)
}

#[test]
fn a_partition_is_silence_and_then_loss_in_virtual_time() {
    let (network, [a, b]) = simulated();
    let post = PostRecv { run: RunId(1), tag: Tag(1), region: Region::host(4), len: 4 };
    let mut waiting = b.link(PeerId(0)).unwrap().post_recv(post);
    network.partition(PeerId(0), PeerId(1));
    network.run_until(Duration::from_millis(1799));
    assert!(!waiting.is_ready());
    network.run_until(Duration::from_millis(1801));
    let lost = waiting.try_take().unwrap().map(|_| ());
    assert!(matches!(lost, Err(TransportError::PeerLost { peer: PeerId(0), .. })), "{lost:?}");
    assert!(a.link(PeerId(1)).unwrap().closed().is_some());
}

#[test]
fn a_healed_partition_delivers_what_was_silenced() {
    let (network, [a, b]) = simulated();
    let post = PostRecv { run: RunId(1), tag: Tag(1), region: Region::host(4), len: 4 };
    let mut waiting = b.link(PeerId(0)).unwrap().post_recv(post);
    network.partition(PeerId(0), PeerId(1));
    let _sent = a.link(PeerId(1)).unwrap().send(SendFrame {
        run: RunId(1),
        tag: Tag(1),
        meta: FrameMeta::raw(EPOCH, 4),
        payload: Slice::copy_of(b"heal"),
    });
    network.run_until(Duration::from_secs(1));
    assert!(!waiting.is_ready());
    network.heal(PeerId(0), PeerId(1));
    network.run_until_idle();
    assert_eq!(waiting.try_take().unwrap().unwrap().region.bytes(), b"heal");
}
