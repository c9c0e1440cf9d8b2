//! Each rule between the values of a manifest.
#![allow(clippy::unwrap_used)]

use super::super::{CoordinatorSection, DegreesSetting, DegreesTable, GroupSection, ModelSection};
use super::*;
use crate::request::{ModelSource, Wire};

/// Two nodes of two devices, one group of fixed degrees.
fn cluster() -> Manifest {
    let mut manifest = Manifest::in_process(ModelSource::Builtin, 2, 1);
    manifest.nodes.push(manifest.nodes[0].clone());
    manifest.nodes[1].name = "other".into();
    manifest.groups = vec![GroupSection {
        model: "model".into(),
        nodes: Vec::new(),
        degrees: DegreesSetting::Fixed(DegreesTable { cfg_degree: 2, ..Default::default() }),
        max_batch: 1,
        checkpoint_every: 1,
        wire: Wire::default(),
        quality: Default::default(),
    }];
    manifest
}

/// The violation after `edit`, as `path: message; advice`.
fn violation(edit: impl FnOnce(&mut Manifest)) -> String {
    let mut manifest = cluster();
    edit(&mut manifest);
    let Violation { at, message, advice } = check(&manifest).unwrap_err();
    format!("{at}: {message}; {}", advice.unwrap_or_default())
}

fn with_degrees(table: DegreesTable) -> String {
    violation(|manifest| manifest.groups[0].degrees = DegreesSetting::Fixed(table))
}

#[test]
fn the_plain_cluster_is_valid() {
    check(&cluster()).unwrap();
    validate(&Manifest::in_process(ModelSource::Builtin, 4, 2)).unwrap();
}

#[test]
fn schema_and_names() {
    assert!(violation(|m| m.schema = 2).starts_with("schema: schema is 2"));
    assert!(violation(|m| m.cluster.name.clear()).starts_with("cluster.name: "));
    for name in ["", "Upper", "a b", "-a", "a-", "a.b", &"a".repeat(64), "\u{e9}"] {
        let text = violation(|m| m.nodes[1].name = name.into());
        assert!(text.starts_with("node[1].name: node name"), "{text}");
    }
    assert!(violation(|m| m.nodes[1].name = "local".into()).contains("taken by node number 1"));
    assert!(violation(|m| m.models.push(m.models[0].clone())).starts_with("model[1].name: "));
}

#[test]
fn references_must_exist() {
    let text = violation(|m| m.coordinator = Some(CoordinatorSection { node: "othr".into() }));
    assert!(text.ends_with("did you mean `other`?"), "{text}");
    assert!(violation(|m| m.groups[0].model = "modl".into()).contains("did you mean `model`?"));
    assert!(violation(|m| m.groups[0].nodes = vec!["x".into()]).starts_with("group[0].nodes[0]: "));
    let twice = vec!["other".to_owned(); 2];
    assert!(violation(|m| m.groups[0].nodes = twice).contains("listed twice"));
    assert!(
        violation(|m| m.groups.push(m.groups[0].clone())).starts_with("group[1]: this version")
    );
}

#[test]
fn devices_and_threads() {
    assert!(violation(|m| m.nodes.clear()).starts_with("node: the manifest has no node"));
    assert!(violation(|m| m.nodes[1].devices.clear()).contains("`other` has no device"));
    let text = violation(|m| m.nodes[1].devices[1].threads = Some(0));
    assert!(text.starts_with("node[1].device[1].threads: threads is 0"), "{text}");
    assert!(violation(|m| m.nodes[0].devices[0].cores = vec![1, 1]).contains("core 1"));
    let text = violation(|m| {
        m.nodes[0].devices[0].cores = vec![1];
        m.nodes[0].devices[0].threads = Some(2);
    });
    assert!(text.contains("2 threads cannot each have one of 1 cores"), "{text}");
}

#[test]
fn ports_must_be_enough_and_apart() {
    assert!(violation(|m| m.nodes[0].bulk_ports = Some((9, 8))).contains("is no range"));
    let text = violation(|m| m.nodes[0].bulk_ports = Some((9000, 9000)));
    assert!(text.contains("[9000, 9005] is enough"), "{text}");
    let text = violation(|m| {
        m.nodes[0].bulk_ports = Some((9000, 9010));
        m.nodes[1].bulk_ports = Some((9010, 9020));
    });
    assert!(text.starts_with("node[1].bulk_ports: ") && text.contains("overlap"), "{text}");
    let text = violation(|m| m.nodes.iter_mut().for_each(|node| node.control_port = 7));
    assert!(text.contains("both have control_port 7"), "{text}");
    let text = violation(|m| {
        m.nodes[0].control_port = 9001;
        m.nodes[1].bulk_ports = Some((9000, 9010));
    });
    assert!(text.starts_with("node[0].control_port: "), "{text}");
    let mut apart = cluster();
    apart.nodes.iter_mut().for_each(|node| node.bulk_ports = Some((9000, 9010)));
    apart.nodes[1].address = "127.0.0.2".into();
    check(&apart).unwrap();
}

#[test]
fn addresses_are_hosts_alone() {
    for address in ["", "0.0.0.0", "::", "a b", "host:7000", "http://x", "[::1]"] {
        let text = violation(|m| m.nodes[0].address = address.into());
        assert!(text.starts_with("node[0].address: "), "{address}: {text}");
    }
    let mut manifest = cluster();
    manifest.nodes[0].address = "::1".into();
    manifest.nodes[1].address = "gpu1.example.org".into();
    check(&manifest).unwrap();
}

#[test]
fn degrees_fit_the_devices_of_the_group() {
    let text = with_degrees(DegreesTable { pipefusion_degree: 8, ..Default::default() });
    assert_eq!(
        text,
        "group[0].degrees: pipefusion_degree 8 needs 8 devices, and the nodes of this group have \
         4; pipefusion_degree 4 would fit, or degrees = \"auto\""
    );
    let text = violation(|m| {
        m.groups[0].nodes = vec!["other".into()];
        let table = DegreesTable { cfg_degree: 2, ulysses_degree: 2, ..Default::default() };
        m.groups[0].degrees = DegreesSetting::Fixed(table);
    });
    assert!(text.contains("have 2; cfg_degree 2 would fit"), "{text}");
    let huge = DegreesTable {
        cfg_degree: 2,
        pipefusion_degree: u32::MAX,
        ulysses_degree: u32::MAX,
        ..Default::default()
    };
    assert!(with_degrees(huge).contains("needs more than all devices"));
}

#[test]
fn degrees_one_by_one() {
    let one = DegreesTable::default();
    assert!(with_degrees(DegreesTable { cfg_degree: 0, ..one }).contains("cfg_degree is 0"));
    assert!(with_degrees(DegreesTable { cfg_degree: 3, ..one }).contains("expected 1 or 2"));
    let text = with_degrees(DegreesTable { ring_degree: 8, ..one });
    assert!(text.contains("ring_degree 8 needs 8 devices") && text.contains("ring_degree 4 would"));
    let text = with_degrees(DegreesTable { data_degree: 9, ..one });
    assert!(text.contains("data_degree 9 needs 9 devices"), "{text}");
    assert!(violation(|m| m.groups[0].max_batch = 0).contains("max_batch is 0, expected 1 to 8"));
}

#[test]
fn transport_and_health() {
    let text = violation(|m| m.launcher.isolation = Isolation::Process);
    assert!(text.starts_with("transport.kind: "), "{text}");
    assert!(violation(|m| m.transport.mtu_bytes = 100).contains("mtu_bytes is 100"));
    let text = violation(|m| m.transport.bulk_connections = 9);
    assert!(text.contains("bulk_connections is 9, expected 1 to 4"), "{text}");
    assert!(violation(|m| m.health.heartbeat_ms = 0).contains("heartbeat_ms is 0"));
    assert!(violation(|m| m.health.heartbeat_ms = 900).contains("must exceed heartbeat_ms (900)"));
    assert!(violation(|m| m.health.dead_ms = 800).contains("must exceed suspect_ms (800)"));
    assert!(violation(|m| m.health.op_deadline_ms = u32::MAX).contains("op_deadline_ms"));
    assert!(violation(|m| m.health.step_deadline_ms = 0).contains("step_deadline_ms"));
    assert!(violation(|m| m.health.step_deadline_factor = 0).contains("step_deadline_factor"));
    assert!(violation(|m| m.launcher.ready_deadline_ms = 0).contains("ready_deadline_ms is 0"));
}

#[test]
fn ucx_crosses_hosts_on_a_trusted_network_only() {
    let over_ucx = |m: &mut Manifest| {
        m.transport.kind = TransportKind::Ucx;
        m.nodes[1].address = "10.0.0.2".into();
    };
    let text = violation(over_ucx);
    assert!(text.starts_with("transport.kind: ucx would carry"), "{text}");
    assert!(text.contains("trusted_network = true"), "{text}");
    let mut trusted = cluster();
    over_ucx(&mut trusted);
    trusted.transport.trusted_network = true;
    check(&trusted).unwrap();
    let mut encrypted = cluster();
    over_ucx(&mut encrypted);
    encrypted.transport.other_host = Some(CarrierKind::Quic);
    check(&encrypted).unwrap();
    let text = violation(|m| m.transport.same_host = Some(CarrierKind::Ucx));
    assert!(text.starts_with("transport.same_host: "), "{text}");
}

#[test]
fn a_programs_manifest_is_told_the_path_of_the_value() {
    let mut manifest = cluster();
    manifest.models = vec![ModelSection { name: String::new(), ..manifest.models[0].clone() }];
    let text = validate(&manifest).unwrap_err().to_string();
    assert_eq!(text, "manifest, `model[0].name`: a model's name is empty");
}

#[test]
fn an_index_belongs_to_a_gpu() {
    let text = violation(|m| m.nodes[1].devices[0].index = Some(1));
    assert!(text.starts_with("node[1].device[0].index: index 1 is for gpus"), "{text}");
    assert!(text.contains("kind = \"cuda\""), "{text}");
    let mut gpus = cluster();
    for device in &mut gpus.nodes[0].devices {
        (device.kind, device.index) = (crate::manifest::DeviceKind::Cuda, Some(0));
    }
    check(&gpus).unwrap();
}
