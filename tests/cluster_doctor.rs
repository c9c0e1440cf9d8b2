//! `ditmesh doctor --cluster` on hosts in network namespaces: frame sizes that differ at one end or
//! between the ends, ports behind a firewall and ports where nobody listens, clocks over a far way.

use serde_json::Value;

use crate::cluster_harness::wait_until;
use crate::network_lab::{DELAY, Lab, Network};

/// What doctor found, as JSON.
struct Found(Vec<Value>);

impl Found {
    fn of(lab: &Lab) -> Self {
        let ended = lab.run(&["doctor", "--cluster", "cluster.toml", "--json"]);
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let findings = report["findings"].as_array().unwrap().clone();
        let problem = findings.iter().any(|finding| finding["level"] == "problem");
        assert_eq!((ended.code, report["sound"].as_bool()), (Some(problem.into()), Some(!problem)));
        for finding in &findings {
            assert!(finding["level"] == "ok" || finding["fix"].is_string(), "{finding}");
        }
        Self(findings)
    }

    /// The findings of one check, as seen on `node`'s host (or here), about `about`.
    fn all(&self, check: &str, node: Option<&str>, about: &str) -> Vec<&Value> {
        let is_it = |finding: &&Value| {
            finding["check"] == check
                && finding["node"].as_str() == node
                && finding["found"].as_str().unwrap().contains(about)
        };
        self.0.iter().filter(is_it).collect()
    }

    fn one(&self, check: &str, node: Option<&str>, about: &str) -> &Value {
        match self.all(check, node, about).as_slice() {
            [one] => one,
            found => panic!("{check} on {node:?} about {about}: {found:?} of {:#?}", self.0),
        }
    }
}

fn text<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

#[test]
fn doctor_finds_the_end_the_port_and_the_clock() {
    let Some(mut lab) = Lab::start(&["a", "b"], 1, "ulysses_degree = 2") else { return };
    frames(&lab);
    ports(&lab);
    clocks(&mut lab);
    nobody_there(&mut lab);
}

/// Frames of 1500 and 9000 bytes at each end, and between.
fn frames(lab: &Lab) {
    let sizes = |a: u32, between: u32, b: u32| {
        lab.frames("a", a, 9000);
        lab.frames("b", b, between);
        Found::of(lab)
    };
    let size = |found: &Found, from: &str, to: &str| {
        let finding = found.one("path MTU", Some(from), &format!("to node {to}:"));
        (text(finding, "level").to_owned(), text(finding, "found").to_owned())
    };
    let jumbo = sizes(9000, 9000, 9000);
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (level, found) = size(&jumbo, from, to);
        assert!(level == "ok" && found.contains("up to 8952 bytes"), "{found}");
    }
    let small_end = sizes(9000, 9000, 1500);
    let (level, found) = size(&small_end, "a", "b");
    assert!(found.contains("up to 1472 bytes"), "{found}");
    assert!(found.ends_with("limited by the other end: eth0 has 1500"), "{found}");
    assert_eq!(level, "slow");
    let fix = text(small_end.one("path MTU", Some("a"), "to node b:"), "fix");
    assert!(fix.starts_with("ip link set dev eth0 mtu 9000   # on node b"), "{fix}");
    let (_, found) = size(&small_end, "b", "a");
    assert!(found.ends_with("limited by this end: eth0 has 1500"), "{found}");
    let small_switch = sizes(9000, 1500, 9000);
    let (level, found) = size(&small_switch, "a", "b");
    assert!(found.contains("limited between the ends"), "{found}");
    assert_eq!(level, "slow");
    for (node, device) in [("a", "eth0"), ("b", "eth0")] {
        small_switch.one("NIC send", Some(node), device);
        small_switch.one("NIC receive", Some(node), device);
        small_switch.one("host", Some(node), "as it should be");
    }
}

/// A firewall on b that keeps this host out of one port of its worker, silently or politely.
fn ports(lab: &Lab) {
    let open = Found::of(lab);
    let reached = open.one("reachability", None, "node b answers");
    assert!(text(reached, "found").contains("device 0, bulk 1; device 0, grants"), "{reached}");
    let status = lab.status();
    let worker = status.nodes.iter().find(|node| node.name == "b").unwrap();
    let port = worker.devices[0].address.rsplit_once(':').unwrap().1.to_owned();
    for (rule, said) in [("DROP", "a firewall drops UDP"), ("REJECT", "a firewall rejects it")] {
        lab.firewall("b", &format!("-p udp --dport {port} -j {rule}"));
        let found = Found::of(lab);
        let blocked = found.one("reachability", None, &format!(":{port})"));
        assert_eq!(text(blocked, "level"), "problem");
        assert!(text(blocked, "found").contains("blocked"), "{blocked}");
        assert!(text(blocked, "found").ends_with(said), "{blocked}");
        assert!(text(blocked, "fix").contains(&format!("--dport {port} -j ACCEPT")), "{blocked}");
        // Its other ports are open, and to a all are.
        found.one("reachability", None, "node b answers");
        let others = found.one("reachability", Some("a"), "node b");
        assert_eq!(text(others, "level"), "ok");
    }
    lab.firewall("b", "");
}

/// Clocks of one machine agree, however far away a host seems to be.
fn clocks(lab: &mut Lab) {
    lab.network("b", Network::Far);
    let found = Found::of(lab);
    lab.network("b", Network::Well);
    let milliseconds = |text: &str| text.trim_end_matches(" ms").parse::<f64>().unwrap();
    for (node, error_min_ms) in [("a", 0.0), ("b", DELAY.as_secs_f64() * 1e3)] {
        let finding = found.one("clock skew", None, &format!("node {node}:"));
        let found = text(finding, "found").to_owned();
        let (_, found) = found.split_once(": ").unwrap();
        let (apart, error) = found.split_once(", give or take ").unwrap();
        let apart = milliseconds(apart.split(" ms").next().unwrap());
        let error = milliseconds(error);
        eprintln!("clock of {node}: {apart} ms, give or take {error} ms");
        assert!(error >= error_min_ms, "{finding}: a way of {DELAY:?} takes its time");
        assert!(apart <= error + 1.0, "{finding}: one machine has one clock");
    }
}

/// What cannot be looked at is said: a node without its agent, then a cluster that is not up.
fn nobody_there(lab: &mut Lab) {
    lab.kill("b");
    wait_until("b is lost", || {
        let status = lab.status();
        let b = status.nodes.iter().find(|node| node.name == "b").unwrap();
        b.process == 0 && b.devices.iter().all(|device| device.process == 0)
    });
    let found = Found::of(lab);
    let closed = found.one("reachability", None, "node b");
    assert!(text(closed, "found").contains("nobody listens"), "{closed}");
    assert_eq!(text(closed, "level"), "problem");
    for check in ["clock skew", "host"] {
        let unknown = found.one(check, None, "node b: not looked at");
        assert_eq!(text(unknown, "level"), "unknown");
    }
    lab.kill("a");
    let found = Found::of(lab);
    for check in ["clock skew", "path MTU", "reachability", "host"] {
        let unknown = found.one(check, None, "take a running cluster");
        assert_eq!(text(unknown, "level"), "unknown", "{unknown}");
        assert!(text(unknown, "fix").starts_with("ditmesh up"), "{unknown}");
    }
}
