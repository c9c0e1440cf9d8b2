//! One generation is one trace, whatever processes it runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::cluster_harness::{Cluster, Settings, wait_until};
use crate::otlp_receiver::{Received, Receiver};

/// The second of two stages, two patches, three steps of which the first is synchronous.
const PASSES: usize = 1 + 2 * 2;

/// How many spans of each name the generation has; more than one rank may decode.
const SPANS: [(&str, usize); 6] =
    [("generate", 1), ("request", 1), ("run", 1), ("rank", 2), ("encode", 1), ("pass", 2 * PASSES)];

fn named<'s>(spans: &'s [Received], name: &str) -> Vec<&'s Received> {
    spans.iter().filter(|received| received.span.name == name).collect()
}

fn only<'s>(spans: &'s [Received], name: &str) -> &'s Received {
    let found = named(spans, name);
    assert_eq!(found.len(), 1, "{name} in {spans:?}");
    found[0]
}

#[test]
fn a_generation_on_two_nodes_is_one_trace() {
    let receiver = Receiver::start();
    let cluster = Cluster::new(Settings::default());
    let path = cluster.folder().join("cluster.toml");
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "[telemetry]\notlp_endpoint = {:?}", receiver.url()).unwrap();
    drop(file);
    cluster.run(&["up", "--detach"]).done();
    let prompt = ["generate", "--cluster", "cluster.toml", "-p", "a red apple", "-o", "x.png"];
    let drawn = cluster.run(&[&prompt[..], &["--steps", "3"]].concat());
    assert_eq!(drawn.done(), "x.png\n");
    wait_until("spans are missing", || {
        let spans = receiver.spans();
        let is_there = |(name, count): &(&str, usize)| named(&spans, name).len() >= *count;
        SPANS.iter().all(is_there) && !named(&spans, "decode").is_empty()
    });
    let spans = receiver.spans();
    for (name, count) in SPANS {
        assert_eq!(named(&spans, name).len(), count, "{name} in {spans:?}");
    }

    let traces: BTreeSet<&[u8]> = spans.iter().map(|s| s.span.trace_id.as_slice()).collect();
    assert_eq!(traces.len(), 1);
    let by_id: BTreeMap<&[u8], &Received> =
        spans.iter().map(|s| (s.span.span_id.as_slice(), s)).collect();
    assert_eq!(by_id.len(), spans.len());
    let parents = [("request", "generate"), ("run", "request"), ("rank", "run"), ("pass", "rank")];
    let parents = [&parents[..], &[("encode", "rank"), ("decode", "rank")]].concat();
    for (child, parent) in parents {
        for received in named(&spans, child) {
            let found = by_id.get(received.span.parent_span_id.as_slice());
            let found = found.unwrap_or_else(|| panic!("{child} has no parent"));
            assert_eq!(found.span.name, parent, "parent of {child}");
            assert!(found.span.start_time_unix_nano <= received.span.start_time_unix_nano);
            assert!(received.span.start_time_unix_nano <= received.span.end_time_unix_nano);
        }
    }
    let root = only(&spans, "generate");
    assert!(root.span.parent_span_id.is_empty() && root.role == "client");
    assert_eq!(only(&spans, "request").role, "agent");

    let ranks = named(&spans, "rank");
    let numbers: BTreeSet<_> = ranks.iter().map(|rank| rank.number("rank")).collect();
    assert_eq!(numbers, BTreeSet::from([Some(0), Some(1)]));
    let processes: BTreeSet<i64> = spans.iter().map(|received| received.process).collect();
    assert_eq!(processes.len(), 4, "client, the coordinator's agent and two workers");
    assert_eq!(only(&spans, "encode").process, rank(&ranks, 0).process);
    let decoding = named(&spans, "decode");
    assert!(decoding.iter().any(|span| span.process == rank(&ranks, 1).process), "{decoding:?}");
    check_passes(&spans, &by_id, rank(&ranks, 1));
}

fn rank<'s>(ranks: &[&'s Received], number: i64) -> &'s Received {
    ranks.iter().find(|rank| rank.number("rank") == Some(number)).unwrap()
}

/// Every pass of the second stage says which pass of the first it continues.
fn check_passes(spans: &[Received], by_id: &BTreeMap<&[u8], &Received>, second: &Received) {
    let place = |pass: &Received| (pass.number("step").unwrap(), pass.number("patch"));
    let expected = [(0, None), (1, Some(0)), (1, Some(1)), (2, Some(0)), (2, Some(1))];
    let passes = named(spans, "pass");
    for process in passes.iter().map(|pass| pass.process).collect::<BTreeSet<_>>() {
        let own = passes.iter().filter(|pass| pass.process == process);
        assert_eq!(own.map(|pass| place(pass)).collect::<BTreeSet<_>>(), expected.into());
    }
    for pass in passes.iter().filter(|pass| pass.process == second.process) {
        assert_eq!(pass.span.links.len(), 1, "{pass:?}");
        let before = by_id[pass.span.links[0].span_id.as_slice()];
        assert_ne!(before.process, pass.process);
        assert_eq!(place(before), place(pass));
    }
}

/// `generate` in one process with the environment's exporter.
fn generate(folder: &std::path::Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ditmesh"));
    let model = crate::cli_generate::fixtures().join("pipelines/sigma_8x8");
    command.args(["generate", "-p", "a red apple", "--steps", "3", "-o", "x.png", "--model"]);
    command.arg(model).current_dir(folder).env_remove("DITMESH_LOG");
    command.envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_environment_names_the_collector_and_its_secrets_stay_secret() {
    let receiver = Receiver::start();
    let folder = tempfile::tempdir().unwrap();
    let url = receiver.url();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hush-hush"),
    ];
    let output = generate(folder.path(), &environment);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stderr).unwrap().matches("hush").count(), 0);
    assert!(receiver.had_header("authorization: hush-hush"));
    // All of them: the last ones leave before the process ends.
    let spans = receiver.spans();
    assert_eq!(named(&spans, "pass").len(), 3, "{spans:?}");
    assert_eq!(named(&spans, "decode").len(), 1, "{spans:?}");
    let root = only(&spans, "generate").span.span_id.clone();
    assert_eq!(only(&spans, "request").span.parent_span_id, root);
}

#[test]
fn a_collector_that_is_gone_costs_one_warning() {
    let folder = tempfile::tempdir().unwrap();
    // Taken and given back: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let output = generate(folder.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("spans are lost").count(), 1, "{stderr}");
    // One that listens and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let output = generate(folder.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("spans are lost").count(), 1, "{stderr}");
    let output = generate(folder.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://example.org")]);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.matches("no traces").count(), 1, "{stderr}");
}
