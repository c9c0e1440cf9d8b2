//! Forming meshes over UCX: what is chosen, and who refuses what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    Epoch, Fabric, FabricAddress, FrameMeta, LaneAddresses, LaneChoice, PeerId, PostRecv,
    QuicFabric, Region, RunId, SendFrame, Slice, Tag, Transport, TransportError, UcxConfig,
    UcxFabric,
};

use crate::support::{
    EPOCH, Host, Relay, block_on, form_all, form_of, soon, ucx_fabrics, ucx_is_here,
};

type Formed = Result<Arc<dyn Transport>, TransportError>;

/// Two members; the fabrics are kept by the caller, and with them the links.
fn two(host: Host, configs: [Option<UcxConfig>; 2]) -> (Vec<Arc<dyn Fabric>>, Vec<Formed>) {
    let fabric = |(rank, ucx): (usize, Option<UcxConfig>)| match ucx {
        Some(ucx) => UcxFabric::bind(&host.config(rank), ucx).unwrap(),
        None => QuicFabric::bind(&host.config(rank)).unwrap(),
    };
    let fabrics: Vec<Arc<dyn Fabric>> = configs.into_iter().enumerate().map(fabric).collect();
    let formed = form_all(&fabrics, EPOCH);
    (fabrics, formed)
}

fn carriers(formed: &[Formed]) -> [(&'static str, String); 2] {
    [(0, 1), (1, 0)].map(|(at, to)| {
        let mesh = formed[at].as_ref().map_err(ToString::to_string).unwrap();
        let carrier = mesh.link(PeerId(to)).unwrap().carrier();
        (carrier.name, carrier.why)
    })
}

fn with(same_host: LaneChoice, other_host: LaneChoice, trusted_network: bool) -> UcxConfig {
    UcxConfig { same_host, other_host, trusted_network, devices: None }
}

#[test]
fn auto_shares_memory_within_a_host_and_encrypts_between_hosts() {
    let auto = with(LaneChoice::Auto, LaneChoice::Auto, true);
    let (_held, within) = two(Host::Same, [Some(auto.clone()), Some(auto.clone())]);
    let expected = if ucx_is_here() { "ucx-shm" } else { "quic" };
    for (name, why) in carriers(&within) {
        assert_eq!(name, expected, "{why}");
        assert!(why.contains("UCX"), "{why}");
    }
    let (_held, between) = two(Host::Other, [Some(auto.clone()), Some(auto)]);
    for (name, why) in carriers(&between) {
        assert_eq!(name, "quic");
        assert!(why.contains("auto encrypts"), "{why}");
    }
    let mesh = between[0].as_ref().map_err(ToString::to_string).unwrap();
    assert!(mesh.caps().encrypted);
}

#[test]
fn auto_stays_on_quic_with_a_peer_that_has_nothing_else() {
    let auto = with(LaneChoice::Auto, LaneChoice::Auto, false);
    for configs in [[Some(auto.clone()), None], [None, Some(auto.clone())]] {
        let (_fabrics, formed) = two(Host::Same, configs);
        assert!(carriers(&formed).iter().all(|(name, _)| *name == "quic"));
    }
}

#[test]
fn what_was_demanded_and_cannot_be_had_is_an_error_at_both_ends() {
    let demanded = with(LaneChoice::Ucx, LaneChoice::Ucx, true);
    let (_fabrics, formed) = two(Host::Same, [Some(demanded), None]);
    let mut errors = formed.into_iter().map(|formed| formed.map(|_| ()));
    let own = errors.next().unwrap().unwrap_err();
    assert!(matches!(own, TransportError::Mismatch { .. }), "{own}");
}

#[test]
fn ucx_crosses_hosts_only_where_the_network_is_trusted() {
    let untrusted = with(LaneChoice::Ucx, LaneChoice::Ucx, false);
    let (_fabrics, formed) = two(Host::Other, [Some(untrusted.clone()), Some(untrusted)]);
    for formed in formed {
        let error = formed.map(|_| ()).unwrap_err();
        let typed = matches!(error, TransportError::UntrustedNetwork { .. });
        assert!(typed && error.to_string().contains("trusted_network = true"), "{error}");
    }
}

#[test]
fn a_mesh_over_ucx_says_that_it_is_not_encrypted() {
    for host in [Host::Same, Host::Other] {
        let Some(fabrics) = ucx_fabrics(3, host) else { return };
        let meshes: Vec<_> = form_all(&fabrics, EPOCH).into_iter().map(Result::unwrap).collect();
        for mesh in &meshes {
            assert_eq!(mesh.caps().name, host.carrier());
            assert!(!mesh.caps().encrypted);
        }
        let stale = form_all(&fabrics, Epoch(0));
        let stale = stale
            .into_iter()
            .all(|formed| matches!(formed.map(|_| ()), Err(TransportError::StaleEpoch { .. })));
        assert!(stale);
        assert!(form_all(&fabrics, Epoch(2)).iter().all(Result::is_ok));
    }
}

#[test]
fn closing_a_fabric_over_ucx_is_told_to_its_peers() {
    for host in [Host::Same, Host::Other] {
        let Some(mut fabrics) = ucx_fabrics(2, host) else { return };
        let meshes: Vec<_> = form_all(&fabrics, EPOCH).into_iter().map(Result::unwrap).collect();
        let link = meshes[1].link(PeerId(0)).unwrap();
        let begun = Instant::now();
        drop(fabrics.remove(0));
        let deadline = begun + Duration::from_secs(10);
        while link.closed().is_none() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(link.closed().is_some_and(|cause| cause.contains("fabric was closed")));
    }
}

/// Grants too: QUIC is silent here, though not yet for so long that the link would be lost.
#[test]
fn places_are_granted_over_ucx() {
    let Some(fabrics) = ucx_fabrics(2, Host::Same) else { return };
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
    assert_eq!(at_a.carrier().name, "ucx-shm");
    control.cut();
    bulk.iter().for_each(Relay::cut);
    for tag in 0..100 {
        let (run, tag) = (RunId(1), Tag(tag));
        let send = SendFrame {
            run,
            tag,
            meta: FrameMeta::raw(EPOCH, 4),
            payload: Slice::copy_of(&[tag.0 as u8; 4]),
        };
        let post = PostRecv { run, tag, region: Region::host(4), len: 4 };
        // Whichever comes first.
        let (mut sending, mut receiving) = match tag.0 % 2 {
            0 => (at_a.send(send), at_b.post_recv(post)),
            _ => {
                let receiving = at_b.post_recv(post);
                (at_a.send(send), receiving)
            }
        };
        let received = receiving.wait_until(soon()).unwrap();
        assert_eq!(received.region.bytes(), [tag.0 as u8; 4]);
        sending.wait_until(soon()).unwrap();
    }
}
