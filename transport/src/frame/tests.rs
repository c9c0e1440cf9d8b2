//! Wire types: round trips, and bytes that lie.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::hello::{Answer, Hello, Lane};
use super::message::bounded_cause;
use super::*;
use crate::error::TransportError;
use crate::ids::{Epoch, Incarnation, PeerId, RunId, Tag};

fn any_header() -> impl Strategy<Value = FrameHeader> {
    let ids = any::<(u64, u64, u64, u32, u32)>();
    let lengths = (0..=META_BYTES_MAX as u32, 0..=FRAME_BYTES_MAX);
    (ids, lengths).prop_map(|((epoch, run, tag, slot, sequence), (meta_len, payload_len))| {
        FrameHeader {
            epoch: Epoch(epoch),
            run: RunId(run),
            tag: Tag(tag),
            slot,
            meta_len,
            payload_len,
            sequence,
        }
    })
}

fn any_meta() -> impl Strategy<Value = FrameMeta> {
    let shape = prop::collection::vec(any::<u32>(), 0..=SHAPE_DIMS_MAX);
    let optional =
        (any::<Option<u32>>(), prop::option::of("[0-9a-f-]{0,55}"), any::<Option<u64>>());
    (any::<(u8, u32, u32, u64, (bool, bool), usize)>(), shape, optional).prop_map(
        |(
            (dtype, step, patch, epoch, (reuse, residual), class),
            shape,
            (decision, traceparent, deadline_ms),
        )| {
            FrameMeta {
                dtype,
                shape: shape.into_iter().collect(),
                step,
                patch,
                epoch: Epoch(epoch),
                reuse,
                residual,
                decision,
                priority: Priority::ALL[class % Priority::ALL.len()],
                traceparent,
                deadline_ms,
            }
        },
    )
}

fn any_message() -> impl Strategy<Value = LinkMessage> {
    let grant = any::<(u64, u64, u32, u64)>().prop_map(|(run, tag, slot, bytes)| Grant {
        run: RunId(run),
        tag: Tag(tag),
        slot,
        bytes,
    });
    prop_oneof![
        prop::collection::vec(grant, 0..20).prop_map(LinkMessage::Grants),
        (any::<(u64, u32)>(), ".{0,40}").prop_map(|((run, slot), what)| {
            let (granted, offered) = ("1".to_owned(), "2".to_owned());
            LinkMessage::Refuse(Refusal { run: RunId(run), slot, what, granted, offered })
        }),
        (any::<u64>(), ".{0,40}")
            .prop_map(|(run, cause)| LinkMessage::Abort { run: RunId(run), cause }),
    ]
}

fn hello() -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 3,
        schema: SCHEMA_HASH,
        epoch: Epoch(7),
        incarnation: Incarnation(8),
        from: PeerId(0),
        to: PeerId(1),
        lane: Lane::Bulk { index: 1, of: 2 },
        build: "0.1.0".to_owned(),
        cluster: "emoji".to_owned(),
    }
}

fn answers() -> Vec<Answer> {
    let text = "text".to_owned();
    vec![
        Answer::Welcome { incarnation: Incarnation(3) },
        Answer::Version { theirs: text.clone() },
        Answer::Stale { current: Epoch(9) },
        Answer::Cluster { theirs: text.clone() },
        Answer::Identity { expected: text.clone(), found: text.clone() },
        Answer::Refused { cause: text },
    ]
}

/// One valid encoding of every wire type.
fn seeds() -> Vec<Vec<u8>> {
    let header = FrameHeader {
        epoch: Epoch(1),
        run: RunId(2),
        tag: Tag(3),
        slot: 4,
        meta_len: 5,
        payload_len: 6,
        sequence: 7,
    };
    let mut meta = FrameMeta::raw(Epoch(1), 12);
    meta.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let grant = Grant { run: RunId(1), tag: Tag(2), slot: 3, bytes: 4 };
    let abort = LinkMessage::Abort { run: RunId(1), cause: "a device is gone".to_owned() };
    let mut seeds = vec![
        header.encode().to_vec(),
        meta.encode().unwrap().to_vec(),
        LinkMessage::Grants(vec![grant; 3]).encode().unwrap().to_vec(),
        abort.encode().unwrap().to_vec(),
        hello().encode(),
    ];
    seeds.extend(answers().iter().map(Answer::encode));
    seeds
}

proptest! {
    #[test]
    fn headers_survive_the_wire(header in any_header()) {
        prop_assert_eq!(FrameHeader::decode(&header.encode(), FRAME_BYTES_MAX).unwrap(), header);
    }

    #[test]
    fn a_flipped_bit_of_a_header_is_noticed(header in any_header(), bit in 0..HEADER_BYTES * 8) {
        let mut bytes = header.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FrameHeader::decode(&bytes, FRAME_BYTES_MAX).is_err());
    }

    #[test]
    fn metadata_survives_the_wire(meta in any_meta()) {
        let bytes = meta.encode().unwrap();
        prop_assert!(bytes.len() <= META_BYTES_MAX);
        prop_assert_eq!(FrameMeta::decode(&bytes).unwrap(), meta.clone());
        let _ = meta.described_bytes();
    }

    #[test]
    fn metadata_behind_something_else_is_the_same(meta in any_meta(), before in 0usize..4) {
        let mut out = vec![7; before * 16];
        let len = meta.encode_onto(&mut out).unwrap();
        prop_assert_eq!(&out[before * 16..], &meta.encode().unwrap()[..]);
        prop_assert_eq!(len, out.len() - before * 16);
    }

    #[test]
    fn messages_survive_the_wire(message in any_message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(LinkMessage::decode(&bytes).unwrap(), message);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        decode_anything(&bytes);
    }

    #[test]
    fn corrupted_encodings_never_panic(
        seed in any::<prop::sample::Index>(),
        flips in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let seeds = seeds();
        let mut bytes = seed.get(&seeds).clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        decode_anything(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_anything(&bytes);
    }
}

#[test]
fn the_fuzz_corpus_never_panics() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/decode");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        decode_anything(&std::fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= seeds().len(), "{files} files in {corpus}");
    seeds().iter().for_each(|seed| decode_anything(seed));
}

/// `cargo test -p ditmesh-transport -- --ignored write_the_fuzz_corpus`
#[test]
#[ignore = "writes into the source tree"]
fn write_the_fuzz_corpus() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/decode");
    std::fs::create_dir_all(corpus).unwrap();
    for (number, seed) in seeds().iter().enumerate() {
        std::fs::write(format!("{corpus}/seed-{number:02}"), seed).unwrap();
    }
}

#[test]
fn lengths_are_refused_before_anything_is_read() {
    let mut header = FrameHeader {
        epoch: Epoch(1),
        run: RunId(1),
        tag: Tag(1),
        slot: 0,
        meta_len: META_BYTES_MAX as u32 + 1,
        payload_len: 0,
        sequence: 0,
    };
    let error = FrameHeader::decode(&header.encode(), FRAME_BYTES_MAX).unwrap_err();
    assert!(matches!(error, TransportError::FrameTooLarge { what: "frame metadata", .. }));
    header.meta_len = 0;
    header.payload_len = u64::MAX;
    let error = FrameHeader::decode(&header.encode(), FRAME_BYTES_MAX).unwrap_err();
    assert!(matches!(error, TransportError::FrameTooLarge { what: "frame payload", .. }));
    let error = FrameHeader::decode(&[0; 10], FRAME_BYTES_MAX).unwrap_err();
    assert!(matches!(error, TransportError::Malformed { .. }));
    let error = FrameMeta::decode(&vec![0; META_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, TransportError::FrameTooLarge { .. }));
    let error = LinkMessage::decode(&vec![0; MESSAGE_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(error, TransportError::FrameTooLarge { .. }));
}

#[test]
fn another_version_is_named() {
    let mut bytes = FrameHeader {
        epoch: Epoch(1),
        run: RunId(1),
        tag: Tag(1),
        slot: 0,
        meta_len: 0,
        payload_len: 0,
        sequence: 0,
    }
    .encode();
    bytes[4] = 99;
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    let error = FrameHeader::decode(&bytes, FRAME_BYTES_MAX).unwrap_err();
    assert!(matches!(error, TransportError::VersionMismatch { .. }));
    assert!(error.to_string().contains("version 99"), "{error}");
}

#[test]
fn shapes_are_checked_with_overflow_in_mind() {
    let mut meta = FrameMeta::raw(Epoch(1), 12);
    assert!(meta.check(12).is_ok());
    assert!(matches!(meta.check(11), Err(TransportError::Mismatch { .. })));
    meta.dtype = Dtype::F32.code();
    meta.shape = [3, 1].into();
    assert!(meta.check(12).is_ok());
    meta.shape = [u32::MAX; 8].into();
    assert!(matches!(meta.check(12), Err(TransportError::Malformed { .. })));
    meta.shape = [1; SHAPE_DIMS_MAX + 1].into();
    assert!(matches!(meta.check(4), Err(TransportError::Malformed { .. })));
    meta.shape = [4].into();
    meta.dtype = 200;
    assert!(matches!(meta.check(4), Err(TransportError::Malformed { .. })));
    meta.dtype = Dtype::Bf16.code();
    meta.reuse = true;
    assert!(meta.check(0).is_ok());
    assert!(meta.check(8).is_err());
    meta.traceparent = Some("x".repeat(TRACEPARENT_BYTES_MAX + 1));
    assert!(meta.check(0).is_err());
}

#[test]
fn hellos_and_answers_survive_the_wire() {
    assert_eq!(Hello::decode(&hello().encode()).unwrap(), hello());
    for answer in answers() {
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
    }
    assert!(Hello::decode(b"DMH1").is_err());
    assert!(Answer::decode(b"GET / HTTP/1.1").is_err());
}

#[test]
fn causes_are_cut_at_a_character() {
    assert_eq!(bounded_cause("short"), "short");
    let cut = bounded_cause(&"\u{00e9}".repeat(1000));
    assert!(cut.len() <= message::CAUSE_BYTES_MAX && cut.chars().all(|c| c == '\u{00e9}'));
}

#[test]
fn codes_of_dtypes_are_stable() {
    for code in 0..=255 {
        if let Some(dtype) = Dtype::from_code(code) {
            assert_eq!(dtype.code(), code);
            assert!(dtype.size_bytes() > 0);
        }
    }
    assert_eq!(Dtype::F32.code(), 1);
}
