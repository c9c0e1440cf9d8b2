//! A node's place by flags and by what launchers put into the environment.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::manifest::parse;

/// A manifest of nodes a, b, c; a has a control port, all have addresses of their own.
fn manifest() -> Manifest {
    parse::from_str(
        r#"schema = 1
        [cluster]
        name = "demo"
        [[node]]
        name = "a"
        address = "ha"
        control_port = 7000
        [[node.device]]
        [[node]]
        name = "b"
        address = "hb"
        [[node.device]]
        [[node]]
        name = "c"
        address = "hc"
        [[node.device]]
        "#,
        "test",
    )
    .unwrap()
}

fn find(flags: RankFlags, environment: &[(&str, &str)]) -> Result<RankFacts, RankFactsError> {
    let variable = |name: &str| {
        let found = environment.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    RankFacts::find(&flags, &variable, &manifest())
}

fn slurm<'a>(id: &'a str, list: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("SLURM_JOB_ID", "7"),
        ("SLURM_NODEID", id),
        ("SLURM_PROCID", id),
        ("SLURM_LOCALID", "0"),
        ("SLURM_JOB_NUM_NODES", "3"),
        ("SLURM_JOB_NODELIST", list),
    ]
}

fn lws(index: &str) -> Vec<(&str, &str)> {
    vec![
        ("LWS_WORKER_INDEX", index),
        ("LWS_GROUP_SIZE", "3"),
        ("LWS_LEADER_ADDRESS", "demo-0.demo.space"),
    ]
}

fn rank(node_rank: u32) -> RankFlags {
    RankFlags { node_rank: Some(node_rank), ..RankFlags::default() }
}

#[test]
fn a_place_is_found_by_flags_then_by_the_environment() {
    type Case<'a> = (RankFlags, Vec<(&'a str, &'a str)>, usize, Option<&'a str>, &'a str, &'a str);
    let none = Vec::new;
    let named = |node: &str| RankFlags { node: Some(node.into()), ..RankFlags::default() };
    let table: Vec<Case<'_>> = vec![
        // flags, environment, rank, coordinator, own address, source
        (named("a"), none(), 0, None, "ha", "flags"),
        (named("b"), none(), 1, Some("ha:7000"), "hb", "flags"),
        (rank(2), none(), 2, Some("ha:7000"), "hc", "flags"),
        (RankFlags { node_rank: Some(1), ..named("b") }, none(), 1, Some("ha:7000"), "hb", "flags"),
        (
            RankFlags { coordinator: Some("x.y:9".into()), ..rank(1) },
            none(),
            1,
            Some("x.y:9"),
            "hb",
            "flags",
        ),
        (
            RankFlags { coordinator: Some("[::1]:9".into()), ..rank(1) },
            none(),
            1,
            Some("[::1]:9"),
            "hb",
            "flags",
        ),
        (
            RankFlags { address: Some("10.1.1.1".into()), ..rank(1) },
            none(),
            1,
            Some("ha:7000"),
            "10.1.1.1",
            "flags",
        ),
        (
            RankFlags { control_port: Some(8000), ..rank(1) },
            none(),
            1,
            Some("ha:8000"),
            "hb",
            "flags",
        ),
        (RankFlags::default(), slurm("0", "gpu[3-5]"), 0, None, "gpu3", "slurm"),
        (RankFlags::default(), slurm("2", "gpu[3-5]"), 2, Some("gpu3:7000"), "gpu5", "slurm"),
        (
            RankFlags::default(),
            [
                slurm("1", "gpu[3-9]"),
                vec![("SLURM_STEP_NUM_NODES", "3"), ("SLURM_STEP_NODELIST", "gpu[7-9]")],
            ]
            .concat(),
            1,
            Some("gpu7:7000"),
            "gpu8",
            "slurm",
        ),
        (rank(1), slurm("2", "gpu[3-5]"), 1, Some("gpu3:7000"), "gpu4", "flags"),
        (
            RankFlags { address: Some("ib5".into()), ..RankFlags::default() },
            slurm("2", "gpu[3-5]"),
            2,
            Some("gpu3:7000"),
            "ib5",
            "slurm",
        ),
        (RankFlags::default(), lws("0"), 0, None, "demo-0.demo.space", "lws"),
        (RankFlags::default(), lws("1"), 1, Some("demo-0.demo.space:7000"), "hb", "lws"),
        (
            RankFlags { address: Some("10.0.0.9".into()), ..RankFlags::default() },
            lws("2"),
            2,
            Some("demo-0.demo.space:7000"),
            "10.0.0.9",
            "lws",
        ),
        (
            RankFlags { address: Some("10.0.0.1".into()), ..RankFlags::default() },
            lws("0"),
            0,
            None,
            "10.0.0.1",
            "lws",
        ),
        // An empty variable is none.
        (
            rank(1),
            vec![("SLURM_NODEID", ""), ("LWS_WORKER_INDEX", "")],
            1,
            Some("ha:7000"),
            "hb",
            "flags",
        ),
    ];
    for (flags, environment, node_rank, coordinator, address, source) in table {
        let what = format!("{flags:?} {environment:?}");
        let facts = find(flags, &environment).unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut placed = manifest();
        facts.place(&mut placed);
        let own = &facts.node(&placed).unwrap().address;
        let found = (facts.node_rank, facts.coordinator.as_deref(), own.as_str(), facts.source);
        assert_eq!(found, (node_rank, coordinator, address, source), "{what}");
    }
}

#[test]
fn facts_that_disagree_name_both_sides() {
    let with = |mut base: Vec<(&'static str, &'static str)>, key, value| {
        base.retain(|(name, _)| *name != key);
        base.push((key, value));
        base
    };
    type Case<'a> = (RankFlags, Vec<(&'a str, &'a str)>, &'a [&'a str]);
    let table: Vec<Case<'_>> = vec![
        (RankFlags::default(), vec![], &["a, b, c", "--node-rank", "srun"]),
        (
            RankFlags { node: Some("d".into()), ..RankFlags::default() },
            vec![],
            &["\"d\"", "a, b, c"],
        ),
        (RankFlags { node: Some("b".into()), ..rank(2) }, vec![], &["--node b", "1", "2"]),
        (rank(3), vec![], &["--node-rank is 3", "3 nodes"]),
        (RankFlags { nodes: Some(2), ..rank(0) }, vec![], &["--nodes is 2", "3 nodes"]),
        (
            RankFlags { coordinator: Some("host".into()), ..rank(1) },
            vec![],
            &["--coordinator", "HOST:PORT"],
        ),
        (RankFlags { coordinator: Some("::1:9".into()), ..rank(1) }, vec![], &["HOST:PORT"]),
        (RankFlags::default(), slurm("3", "g[1-3]"), &["SLURM_NODEID is 3", "3 nodes"]),
        (RankFlags::default(), slurm("x", "g[1-3]"), &["SLURM_NODEID", "\"x\""]),
        (RankFlags::default(), slurm("1", "g[1-"), &["SLURM_JOB_NODELIST", "g[1-"]),
        (
            RankFlags::default(),
            with(slurm("1", "g[1-3]"), "SLURM_JOB_NUM_NODES", "2"),
            &["SLURM_JOB_NUM_NODES is 2", "3 nodes"],
        ),
        (
            RankFlags::default(),
            with(slurm("1", "g[1-3]"), "SLURM_LOCALID", "1"),
            &["SLURM_LOCALID is 1", "--ntasks-per-node=1"],
        ),
        (
            RankFlags::default(),
            with(lws("1"), "LWS_GROUP_SIZE", "4"),
            &["LWS_GROUP_SIZE is 4", "3 nodes"],
        ),
    ];
    for (flags, environment, parts) in table {
        let what = format!("{flags:?} {environment:?}");
        let error = find(flags, &environment).expect_err(&what).to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?} of {what}");
        }
    }
}

#[test]
fn a_coordinator_that_cannot_be_found_is_an_error() {
    let mut portless = manifest();
    portless.nodes[0].control_port = 0;
    let facts = RankFacts::find(&rank(1), &|_| None, &portless);
    assert_eq!(facts, Err(RankFactsError::NoPort { node: "a".into() }));
    let flags = RankFlags { control_port: Some(7001), ..rank(1) };
    let facts = RankFacts::find(&flags, &|_| None, &portless).unwrap();
    assert_eq!(facts.coordinator.as_deref(), Some("ha:7001"));
    let mut elsewhere = manifest();
    elsewhere.coordinator = Some(crate::manifest::CoordinatorSection { node: "b".into() });
    let variable =
        |name: &str| lws("2").iter().find(|(key, _)| *key == name).map(|v| v.1.to_owned());
    let facts = RankFacts::find(&RankFlags::default(), &variable, &elsewhere);
    assert_eq!(facts, Err(RankFactsError::LeaderElsewhere { node: "b".into() }));
}

#[test]
fn only_who_is_known_is_placed() {
    let facts = find(RankFlags { control_port: Some(9000), ..rank(1) }, &[]).unwrap();
    let mut placed = manifest();
    facts.place(&mut placed);
    let ports: Vec<u16> = placed.nodes.iter().map(|node| node.control_port).collect();
    assert_eq!(ports, [9000, 9000, 0], "the coordinator's and its own");
}
