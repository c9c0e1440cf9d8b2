//! Both ends' answers, and what they come to.
#![allow(clippy::unwrap_used)]

use ditmesh::manifest;
use ditmesh_actors::protocol::examine::Target;

use super::*;

fn cluster() -> Manifest {
    let node = |name: &str, last: u8| {
        format!(
            "[[node]]\nname = \"{name}\"\naddress = \"10.0.0.{last}\"\ncontrol_port = 7100\n\
             bulk_ports = [7101, 7116]\n[[node.device]]\n"
        )
    };
    let text = ["schema = 1\n[cluster]\nname = \"t\"\n", &node("a", 1), &node("b", 2)].concat();
    manifest::parse::from_str(&text, "t.toml").unwrap()
}

fn nic(mtu_bytes: u32) -> Nic {
    Nic { name: "eth0".into(), mtu_bytes, kind: None, features: None }
}

fn seen(node: &str, port: u16, answer: PortAnswer, listening: bool) -> Seen {
    let address = format!("10.0.0.{}:{port}", if node == "a" { 1 } else { 2 });
    let target = Target { node: node.into(), address, what: "agent".into(), listening };
    Seen { target, answer, nic: None, payload_bytes: None }
}

fn measured(node: &str, mtu: u32, payload: u32) -> Seen {
    let open = seen(node, 7100, PortAnswer::Listens, true);
    Seen { nic: Some(nic(mtu)), payload_bytes: Some(payload), ..open }
}

/// Of a to b and of b to a.
fn sizes(a_to_b: Seen, b_to_a: Option<Seen>) -> Vec<Finding> {
    let (forth, back) = ([a_to_b], b_to_a.map(|seen| [seen]));
    let mut views = vec![View { node: Some("a"), seen: &forth }];
    if let Some(back) = &back {
        views.push(View { node: Some("b"), seen: back });
    }
    let all = judge(&cluster(), &views);
    all.into_iter().filter(|finding| finding.check == "path MTU").collect()
}

#[test]
fn the_end_that_limits_a_path_is_named() {
    let both = sizes(measured("b", 9000, 8952), Some(measured("a", 9000, 8952)));
    assert!(both.iter().all(|finding| finding.level == Level::Ok), "{both:?}");
    let [forth, back] =
        sizes(measured("b", 9000, 1472), Some(measured("a", 1500, 1472))).try_into().unwrap();
    assert_eq!((forth.node.as_deref(), back.node.as_deref()), (Some("a"), Some("b")));
    assert!(forth.found.ends_with("limited by the other end: eth0 has 1500"), "{forth:?}");
    assert!(forth.fix.unwrap().contains("mtu 9000   # on node b"));
    assert!(back.found.ends_with("limited by this end: eth0 has 1500"), "{back:?}");
    let between = sizes(measured("b", 9000, 1472), Some(measured("a", 9000, 1472)));
    for finding in &between {
        assert!(finding.found.contains("limited between the ends"), "{finding:?}");
        assert_eq!(finding.level, Level::Slow);
    }
    let alone = sizes(measured("b", 9000, 4000), None);
    assert!(alone[0].found.contains("nobody could ask"), "{alone:?}");
}

#[test]
fn a_path_that_nobody_answers_on_is_unknown_and_a_smaller_wish_is_met() {
    let silent = seen("b", 7100, PortAnswer::Silent { host_answers: true }, true);
    let unknown = sizes(Seen { nic: Some(nic(9000)), ..silent }, None);
    assert_eq!(unknown[0].level, Level::Unknown);
    assert_eq!(unknown[0].fix.as_deref(), Some("tracepath -n 10.0.0.2"));
    let mut modest = cluster();
    modest.transport.mtu_bytes = 1472;
    let plain = [measured("b", 1500, 1472)];
    let findings = judge(&modest, &[View { node: None, seen: &plain }]);
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
}

#[test]
fn a_blocked_port_is_told_from_one_where_nobody_listens() {
    let judged = |port, answer, listening| {
        let seen = [seen("b", port, answer, listening)];
        let mut findings = judge(&cluster(), &[View { node: None, seen: &seen }]);
        findings.remove(0)
    };
    let closed = || PortAnswer::NobodyListens;
    let not_up = judged(7100, closed(), false);
    assert!(not_up.found.contains("it is not up"), "{not_up:?}");
    assert_eq!(not_up.fix.as_deref(), Some("ditmesh up"));
    let rejected = judged(7100, closed(), true);
    assert!(rejected.found.contains("blocked"), "{rejected:?}");
    assert_eq!(judged(7101, closed(), false).level, Level::Ok);
    for (host_answers, listening) in [(true, false), (false, true)] {
        let dropped = judged(7101, PortAnswer::Silent { host_answers }, listening);
        assert!(dropped.found.contains("blocked"), "{dropped:?}");
        assert!(dropped.fix.unwrap().contains("--dport 7101:7116"));
    }
    let dead = judged(7100, PortAnswer::Silent { host_answers: false }, false);
    assert!(dead.found.contains("host is down, or"), "{dead:?}");
    let prohibited = judged(7100, PortAnswer::Rejected("no route to host".into()), true);
    assert!(prohibited.found.contains("blocked on the way: no route"), "{prohibited:?}");
    for finding in [not_up, rejected, dead, prohibited] {
        assert_eq!(finding.level, Level::Problem);
    }
    let not_asked = judged(7100, PortAnswer::NotAsked("no time".into()), true);
    assert_eq!((not_asked.level, not_asked.fix.is_some()), (Level::Unknown, true));
}
