//! Forming meshes, and who is refused.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    ClusterCa, Epoch, Fabric, FabricAddress, InProcessHub, LaneAddresses, PeerId, QuicFabric, Role,
    Transport, TransportError,
};

use crate::support::{
    CLUSTER, EPOCH, addresses, block_on, form_all, form_of, identity, in_process_fabrics, loopback,
    quic_config, quic_fabrics,
};

type Formed = Result<Arc<dyn Transport>, TransportError>;

fn error_of(formed: Formed) -> TransportError {
    formed.map(|_| ()).unwrap_err()
}

fn a_stale_epoch_is_refused(fabrics: &[Arc<dyn Fabric>]) {
    let current = form_all(fabrics, Epoch(5));
    assert!(current.iter().all(Result::is_ok));
    for stale in [Epoch(4), Epoch(5)] {
        let form = form_of(&addresses(fabrics), 0, stale);
        let error = error_of(block_on(fabrics[0].form(form)));
        assert!(
            matches!(error, TransportError::StaleEpoch { current: Epoch(5), offered }
                if offered == stale),
            "{error}"
        );
    }
    let next = form_all(fabrics, Epoch(6));
    assert!(next.iter().all(Result::is_ok));
}

#[test]
fn a_stale_epoch_is_refused_in_process() {
    a_stale_epoch_is_refused(&in_process_fabrics(3));
}

#[test]
fn a_stale_epoch_is_refused_over_quic() {
    a_stale_epoch_is_refused(&quic_fabrics(3));
}

/// The peer is ahead: its answer says so.
#[test]
fn a_peer_that_is_ahead_refuses_the_old_epoch() {
    for fabrics in [in_process_fabrics(3), quic_fabrics(3)] {
        let ahead = &fabrics[1..];
        let places = addresses(&fabrics);
        let forms = [1, 2].map(|rank| {
            let mut form = form_of(&places, rank, Epoch(5));
            form.peers.retain(|peer| peer.id != PeerId(0));
            form
        });
        let [one, two] = forms;
        block_on(async {
            let (one, two) = tokio::join!(ahead[0].form(one), ahead[1].form(two));
            let _meshes = (one.unwrap(), two.unwrap());
            let mut old = form_of(&places, 0, Epoch(3));
            old.peers.truncate(1);
            let error = error_of(fabrics[0].form(old).await);
            assert!(
                matches!(error, TransportError::StaleEpoch { current: Epoch(5), .. }),
                "{error}"
            );
        });
    }
}

#[test]
fn whoever_is_missing_is_named_at_the_deadline() {
    for fabrics in [in_process_fabrics(2), quic_fabrics(2)] {
        for rank in [0, 1] {
            let mut form = form_of(&addresses(&fabrics), rank, EPOCH);
            form.deadline = Instant::now() + Duration::from_millis(50);
            let error = error_of(block_on(fabrics[rank].form(form)));
            let TransportError::Connect { peer, .. } = &error else { panic!("{error}") };
            assert!(peer.contains(&format!("n{}", 1 - rank)), "{error}");
        }
        // The attempt may be repeated.
        assert!(form_all(&fabrics, EPOCH).iter().all(Result::is_ok));
    }
}

/// A peer that is not there at all is given up long before the deadline, and named; one that is
/// there and has not joined yet is waited for.
#[test]
fn a_peer_that_does_not_answer_is_named_early() {
    let mut config = quic_config(identity(Role::Node, "n0"));
    config.idle_timeout = Duration::from_millis(100);
    config.keep_alive = Duration::from_millis(20);
    let caller = QuicFabric::bind(&config).unwrap();
    let silent = UdpSocket::bind(loopback()).unwrap();
    let nowhere = silent.local_addr().unwrap();
    let bulk = LaneAddresses::new(&[nowhere]).unwrap();
    let places = [caller.address(), FabricAddress::Quic { control: nowhere, bulk }];
    let form = form_of(&places, 0, EPOCH);
    let deadline = form.deadline;
    let error = error_of(block_on(caller.form(form)));
    let TransportError::Unanswered { peer: PeerId(1), name, .. } = &error else {
        panic!("{error}")
    };
    assert!(name == "n1" && error.to_string().contains("UDP"), "{error}");
    assert!(Instant::now() + Duration::from_secs(5) < deadline, "only at the deadline");
    let there = quic_fabrics(2);
    let places = [caller.address(), there[1].address()];
    let mut form = form_of(&places, 0, EPOCH);
    form.deadline = Instant::now() + config.idle_timeout * 8;
    let error = error_of(block_on(caller.form(form)));
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
}

#[test]
fn early_callers_wait_until_the_mesh_is_formed() {
    let fabrics = quic_fabrics(2);
    let places = addresses(&fabrics);
    block_on(async {
        let (fabric, form) = (Arc::clone(&fabrics[0]), form_of(&places, 0, EPOCH));
        let early = tokio::spawn(async move { fabric.form(form).await });
        let mut first = form_of(&places, 1, Epoch(0));
        first.peers.clear();
        fabrics[1].form(first).await.unwrap();
        let late = fabrics[1].form(form_of(&places, 1, EPOCH)).await;
        let _meshes = (late.unwrap(), early.await.unwrap().unwrap());
    });
}

#[test]
fn another_cluster_is_refused() {
    let fabrics = in_process_fabrics(2);
    let places = addresses(&fabrics);
    let mut other = form_of(&places, 1, EPOCH);
    other.cluster = "glyphs".to_owned();
    let own = form_of(&places, 0, EPOCH);
    let (one, two) = block_on(async { tokio::join!(fabrics[0].form(own), fabrics[1].form(other)) });
    for error in [error_of(one), error_of(two)] {
        assert!(matches!(error, TransportError::WrongCluster { .. }), "{error}");
    }
    let quic = quic_fabrics(1);
    let mut form = form_of(&addresses(&quic), 0, EPOCH);
    form.cluster = "glyphs".to_owned();
    let error = error_of(block_on(quic[0].form(form)));
    assert!(matches!(error, TransportError::WrongCluster { .. }), "{error}");
}

#[test]
fn members_that_disagree_on_their_numbers_are_told() {
    let fabrics = in_process_fabrics(2);
    let places = addresses(&fabrics);
    let own = form_of(&places, 0, EPOCH);
    let mut other = form_of(&places, 1, EPOCH);
    other.local = PeerId(7);
    let (one, two) = block_on(async { tokio::join!(fabrics[0].form(own), fabrics[1].form(other)) });
    for error in [error_of(one), error_of(two)] {
        assert!(matches!(error, TransportError::Mismatch { .. }), "{error}");
    }
}

#[test]
fn hubs_know_nothing_of_each_other() {
    let (one, two) = (InProcessHub::new().fabric(), InProcessHub::new().fabric());
    let mut form = form_of(&[one.address(), two.address()], 0, EPOCH);
    form.peers[0].address = ditmesh_transport::FabricAddress::InProcess(99);
    let error = error_of(block_on(one.form(form)));
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
}

/// Forms rank 0 against a fabric that nobody else drives but the given one.
fn dial_against(
    caller: &Arc<dyn Fabric>,
    accepting: &Arc<dyn Fabric>,
    renamed: bool,
) -> TransportError {
    let places = [caller.address(), accepting.address()];
    let mut own = form_of(&places, 0, EPOCH);
    if renamed {
        own.peers[0].name = "n9".to_owned();
    }
    let other = form_of(&places, 1, EPOCH);
    block_on(async {
        tokio::select! {
            formed = caller.form(own) => error_of(formed),
            formed = accepting.form(other) => panic!("formed: {}", formed.is_ok()),
        }
    })
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let stranger = ClusterCa::generate(CLUSTER).unwrap().issue(Role::Node, "n0").unwrap();
    let caller = QuicFabric::bind(&quic_config(stranger)).unwrap();
    let accepting = QuicFabric::bind(&quic_config(identity(Role::Node, "n1"))).unwrap();
    let error = dial_against(&caller, &accepting, false);
    assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("ditmesh certs"), "{error}");
}

#[test]
fn a_peer_under_another_name_is_refused_by_the_caller() {
    let fabrics = quic_fabrics(2);
    let error = dial_against(&fabrics[0], &fabrics[1], true);
    let TransportError::WrongIdentity { expected, found } = &error else { panic!("{error}") };
    assert!(expected.contains("n9") && found.contains("n1"), "{error}");
}

#[test]
fn a_caller_under_another_name_or_role_is_refused() {
    for (role, name) in [(Role::Node, "n7"), (Role::Client, "n0")] {
        let caller = QuicFabric::bind(&quic_config(identity(role, name))).unwrap();
        let accepting = QuicFabric::bind(&quic_config(identity(Role::Node, "n1"))).unwrap();
        let error = dial_against(&caller, &accepting, false);
        let TransportError::WrongIdentity { expected, found } = &error else { panic!("{error}") };
        assert!(expected.contains("n0") && found.contains(name), "{error}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = quic_fabrics(1);
    let ditmesh_transport::FabricAddress::Quic { bulk, .. } = taken[0].address() else { panic!() };
    let mut config = quic_config(identity(Role::Node, "n1"));
    let bulk = bulk.as_slice()[1];
    config.bulk_bind = bulk;
    let error = QuicFabric::bind(&config).map(|_| ()).unwrap_err();
    let TransportError::Bind { address, .. } = &error else { panic!("{error}") };
    assert_eq!(*address, bulk);
    assert!(error.to_string().contains("port is taken"), "{error}");
}

#[test]
fn closing_a_fabric_closes_its_meshes() {
    for fabrics in [in_process_fabrics(2), quic_fabrics(2)] {
        let mut meshes = form_all(&fabrics, EPOCH).into_iter().map(Result::unwrap);
        let (own, other) = (meshes.next().unwrap(), meshes.next().unwrap());
        let link = other.link(PeerId(0)).unwrap();
        let region = other.allocate(8);
        let post = ditmesh_transport::PostRecv {
            run: ditmesh_transport::RunId(1),
            tag: ditmesh_transport::Tag(1),
            region,
            len: 8,
        };
        let mut waiting = link.post_recv(post);
        fabrics[0].close();
        let lost = waiting.wait_until(crate::support::soon()).map(|_| ());
        assert!(matches!(lost, Err(TransportError::PeerLost { peer: PeerId(0), .. })), "{lost:?}");
        assert!(own.link(PeerId(1)).unwrap().closed().is_some());
        let error = error_of(block_on(fabrics[0].form(form_of(&[], 0, Epoch(2)))));
        assert!(matches!(error, TransportError::Closed { .. }), "{error}");
    }
}
