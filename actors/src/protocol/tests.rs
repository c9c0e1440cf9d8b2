//! Messages survive the wire, and nothing that comes in their place is more than an error.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::examine::{Examine, Target};
use super::*;
use crate::request::GenerateRequest;
use crate::status::ClusterStatus;

fn to_coordinator() -> Vec<ToCoordinator> {
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        schema: SCHEMA,
        build: "1".into(),
        cluster: "pets".into(),
        party: Party::Worker { device: DeviceId { node: "a".into(), index: 3 } },
        incarnation: 9,
        process: 77,
        fabric_address: "quic:127.0.0.1:1,127.0.0.1:2".into(),
        epoch: 4,
    };
    let request = Box::new(GenerateRequest::new("a red apple"));
    let key = RequestKey { client: 1, number: 2 };
    let call = ClientCall::Generate { key, request, inputs_follow: true };
    vec![
        ToCoordinator::Hello(Box::new(hello)),
        ToCoordinator::LinksObserved { epoch: 1, links: vec![(0, 5), (2, u64::MAX)] },
        ToCoordinator::FormFailed {
            epoch: 3,
            fault: FormFault::Links { unanswered: Some(1) },
            cause: "nobody answers".into(),
        },
        ToCoordinator::Client { id: 8, call: Box::new(call) },
        ToCoordinator::Client { id: 9, call: Box::new(ClientCall::Examine) },
    ]
}

fn from_coordinator() -> Vec<FromCoordinator> {
    let form = Form {
        epoch: 5,
        rank: 1,
        degrees: Degrees::default(),
        stage_ends: vec![4, 8],
        model: "/models/m".into(),
        model_id: 1,
        dtype: Dtype::F16,
        text_encoder: TextEncoderPolicy::Release,
        members: vec![Member { rank: 0, node: "a".into(), fabric_address: "in-process:1".into() }],
        deadline_ms: 10,
        beside: false,
        measure: vec![(0, 1)],
    };
    let target = Target {
        node: "b".into(),
        address: "127.0.0.1:7100".into(),
        what: "agent".into(),
        listening: true,
    };
    let examine = Examine { number: 1, targets: vec![target], payload_bytes_max: 8952 };
    let status = Box::new(ClusterStatus { cluster: "pets".into(), ..ClusterStatus::default() });
    vec![
        FromCoordinator::Welcome { protocol: 1, heartbeat_ms: 200, dead_ms: 1500 },
        FromCoordinator::Form(Box::new(form)),
        FromCoordinator::Measure { epoch: 1, number: 2, pair: (0, 3) },
        FromCoordinator::Examine(Box::new(examine)),
        FromCoordinator::Abort { run: 1, cause: "cancelled".into() },
        FromCoordinator::Reply { id: 1, reply: ClientReply::Status(status) },
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let to = to_coordinator().into_iter().map(|message| message.to_bytes().unwrap());
    let from = from_coordinator().into_iter().map(|message| message.to_bytes().unwrap());
    to.chain(from).collect()
}

#[test]
fn messages_survive_the_wire() {
    for message in to_coordinator() {
        assert_eq!(ToCoordinator::from_bytes(&message.to_bytes().unwrap()).unwrap(), message);
    }
    for message in from_coordinator() {
        assert_eq!(FromCoordinator::from_bytes(&message.to_bytes().unwrap()).unwrap(), message);
    }
}

#[test]
fn a_message_that_is_cut_off_is_an_error() {
    for message in to_coordinator() {
        let bytes = message.to_bytes().unwrap();
        for len in 0..bytes.len() {
            decode_anything(&bytes[..len]);
        }
        assert!(ToCoordinator::from_bytes(&bytes[..bytes.len() - 1]).is_err(), "{message:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        decode_anything(&bytes);
    }

    #[test]
    fn corrupted_messages_never_panic(
        seed: prop::sample::Index,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..8),
        cut: prop::sample::Index,
    ) {
        let seeds = seeds();
        let mut bytes = seed.get(&seeds).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decode_anything(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_anything(&bytes);
    }
}
