//! A member that breaks the protocol after it was welcomed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::dial::dial;
use super::greeting::{LaneStream, Speaker};
use super::{Congestion, QuicConfig, QuicFabric};
use crate::endpoint::{EndpointSettings, QuicEndpoint};
use crate::error::TransportError;
use crate::fabric::{Fabric, FabricAddress, MeshForm, PeerAddress};
use crate::frame::hello::Lane;
use crate::frame::{FrameHeader, FrameMeta, Grant, HEADER_BYTES, LinkMessage};
use crate::identity::{ClusterCa, Role};
use crate::ids::{Epoch, Incarnation, PeerId, RunId, Tag};
use crate::link::{PostRecv, Received, Transport};
use crate::region::Region;
use crate::stack::SendStream;

const EPOCH: Epoch = Epoch(1);
const RUN: RunId = RunId(1);
const PLACE_BYTES: usize = 4096;

/// What the hostile member does to its second frame.
#[derive(Clone, Debug)]
enum Trick {
    Flip { at: usize, bit: u8 },
    Truncate { to: usize },
    Oversize { by: u64 },
    Reorder,
    Again,
    UnknownSlot { slot: u32 },
    Noise(Vec<u8>),
}

fn any_trick() -> impl Strategy<Value = Trick> {
    let frame_bytes = HEADER_BYTES + 100 + PLACE_BYTES;
    prop_oneof![
        (0..HEADER_BYTES + 60, 0..8_u8).prop_map(|(at, bit)| Trick::Flip { at, bit }),
        (0..frame_bytes).prop_map(|to| Trick::Truncate { to }),
        (1..=u64::MAX / 2).prop_map(|by| Trick::Oversize { by }),
        Just(Trick::Reorder),
        Just(Trick::Again),
        (2..u32::MAX).prop_map(|slot| Trick::UnknownSlot { slot }),
        prop::collection::vec(any::<u8>(), HEADER_BYTES..400).prop_map(Trick::Noise),
    ]
}

/// One honest member, and the streams of one that is not.
struct Stage {
    runtime: tokio::runtime::Runtime,
    _honest: Arc<dyn Fabric>,
    member: Arc<dyn Transport>,
    control: LaneStream,
    bulk: LaneStream,
    _endpoint: QuicEndpoint,
}

fn stage() -> Stage {
    let authority = ClusterCa::generate("emoji").unwrap();
    let loopback = "127.0.0.1:0".parse().unwrap();
    let identity = |name| authority.issue(Role::Node, name).unwrap();
    let config = QuicConfig::new(identity("n1"), loopback, loopback);
    let honest = QuicFabric::bind(&config).unwrap();
    let FabricAddress::Quic { control, bulk } = honest.address() else { panic!() };
    let settings = EndpointSettings {
        name: "hostile",
        bind: loopback,
        mtu_bytes: config.mtu_bytes,
        idle_timeout: config.idle_timeout,
        keep_alive: config.keep_alive,
        receive_window_bytes: 1 << 20,
        window_reserve_bytes: 0,
        socket_buffer_bytes: 1 << 20,
        congestion: Congestion::Cubic,
    };
    let endpoint = QuicEndpoint::bind(&identity("n0"), &settings).unwrap();
    let speaker = Speaker { cluster: "emoji".to_owned(), incarnation: Incarnation(1) };
    let deadline = Instant::now() + Duration::from_secs(20);
    let lane = |lane, address| {
        let hello = speaker.hello(EPOCH, PeerId(0), PeerId(1), lane);
        endpoint.spawn(dial(endpoint.dialer(), address, "n1".to_owned(), hello, deadline))
    };
    let bulk = lane(Lane::Bulk { index: 0, of: 1 }, bulk.as_slice()[0]);
    let control = lane(Lane::Control, control);
    let peer =
        PeerAddress { id: PeerId(0), name: "n0".to_owned(), address: FabricAddress::InProcess(0) };
    let form = MeshForm {
        cluster: "emoji".to_owned(),
        epoch: EPOCH,
        local: PeerId(1),
        peers: vec![peer],
        deadline,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (member, control, bulk) =
        runtime.block_on(async { tokio::join!(honest.form(form), control, bulk) });
    let (control, bulk) = (control.unwrap().unwrap(), bulk.unwrap().unwrap());
    Stage { runtime, _honest: honest, member: member.unwrap(), control, bulk, _endpoint: endpoint }
}

fn frame(slot: u32, sequence: u32, payload_len: u64) -> Vec<u8> {
    let meta = FrameMeta::raw(EPOCH, PLACE_BYTES as u32).encode().unwrap();
    let header = FrameHeader {
        epoch: EPOCH,
        run: RUN,
        tag: Tag(slot.into()),
        slot,
        meta_len: meta.len() as u32,
        payload_len,
        sequence,
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(&meta);
    bytes.resize(bytes.len() + PLACE_BYTES, 7);
    bytes
}

fn tricked(trick: &Trick) -> Vec<u8> {
    let honest = frame(1, 1, PLACE_BYTES as u64);
    match trick {
        Trick::Flip { at, bit } => {
            let mut bytes = honest;
            bytes[*at] ^= 1 << bit;
            bytes
        }
        Trick::Truncate { to } => honest[..*to].to_vec(),
        Trick::Oversize { by } => frame(1, 1, PLACE_BYTES as u64 + by),
        Trick::Reorder => frame(1, 2, PLACE_BYTES as u64),
        Trick::Again => frame(0, 1, PLACE_BYTES as u64),
        Trick::UnknownSlot { slot } => frame(*slot, 1, PLACE_BYTES as u64),
        Trick::Noise(bytes) => bytes.clone(),
    }
}

async fn write_and_end(stream: &mut SendStream, bytes: &[u8]) {
    // The other side may close while this is written.
    let _ = stream.write_all(bytes).await;
    let _ = stream.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The honest frame arrives; the other resolves with a typed error, or, where only the
    /// description was changed into another valid one, exactly as long as it was posted.
    #[test]
    fn a_hostile_member_loses_its_link_and_nobody_hangs(trick in any_trick()) {
        let mut stage = stage();
        let link = stage.member.link(PeerId(0)).unwrap();
        let post = |tag| {
            let region = Region::host(PLACE_BYTES);
            link.post_recv(PostRecv { run: RUN, tag: Tag(tag), region, len: PLACE_BYTES })
        };
        let (mut first, mut second) = (post(0), post(1));
        let bytes = [frame(0, 0, PLACE_BYTES as u64), tricked(&trick)].concat();
        stage.runtime.block_on(write_and_end(&mut stage.bulk.sending, &bytes));
        let soon = Instant::now() + Duration::from_secs(20);
        let first: Received = first.wait_until(soon).unwrap();
        prop_assert!(first.region.bytes().iter().all(|byte| *byte == 7));
        match second.wait_until(soon) {
            Ok(received) => {
                prop_assert!(matches!(trick, Trick::Flip { .. }), "{trick:?} was accepted");
                prop_assert!(received.len == PLACE_BYTES || received.meta.reuse);
            }
            Err(TransportError::PeerLost { .. } | TransportError::Mismatch { .. }
                | TransportError::Malformed { .. }) => {}
            Err(other) => prop_assert!(false, "{trick:?}: {other}"),
        }
    }

    /// Messages that no honest member sends: the link closes or goes on, and never hangs.
    #[test]
    fn hostile_messages_close_the_link(mut body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut stage = stage();
        let link = stage.member.link(PeerId(0)).unwrap();
        let post = PostRecv { run: RUN, tag: Tag(0), region: Region::host(8), len: 8 };
        let mut waiting = link.post_recv(post);
        // Twice the same grant is against the rules.
        let grant = Grant { run: RUN, tag: Tag(0), slot: 0, bytes: 8 };
        let twice = LinkMessage::Grants(vec![grant, grant]).encode().unwrap();
        if body.len() % 2 == 0 {
            body = twice.to_vec();
        }
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        stage.runtime.block_on(write_and_end(&mut stage.control.sending, &bytes));
        let lost = waiting.wait_until(Instant::now() + Duration::from_secs(20)).map(|_| ());
        prop_assert!(matches!(lost, Err(TransportError::PeerLost { .. })), "{lost:?}");
        prop_assert!(link.closed().is_some());
    }
}
