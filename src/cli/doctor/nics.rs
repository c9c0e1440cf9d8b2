//! The network devices through which hosts reach each other: what they take off the processor.
//!
//! Owns which offloads matter to QUIC: packets are written as one and cut up by the kernel or the
//! device (which wants checksums to be the device's, too), and put together again when they come.

use std::collections::BTreeSet;

use ditmesh_actors::protocol::examine::{Finding, Level, Nic};

use super::cluster::View;

const SEGMENTATION: &str = "tx-generic-segmentation";
const UDP_SEGMENTATION: &str = "tx-udp-segmentation";
const CHECKSUMS: [&str; 3] = ["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"];
const RECEIVE: &str = "rx-gro";

/// Kinds of virtual devices that hand what was written as one to their other end as one: nothing is
/// cut up on the way, so there is nothing to put together, and receive offload is off by default.
const UNCUT: [&str; 2] = ["veth", "netkit"];

/// Every device of every host, once.
pub(super) fn judge(views: &[View<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for View { node, seen } in views {
        let mut names = BTreeSet::new();
        let nics = seen.iter().filter_map(|seen| seen.nic.as_ref());
        for nic in nics.filter(|nic| names.insert(&nic.name)) {
            findings.extend(judged(nic).into_iter().map(|finding| finding.on(*node)));
        }
    }
    findings
}

fn judged(nic: &Nic) -> Vec<Finding> {
    let name = &nic.name;
    let Some(features) = &nic.features else {
        let found = format!("{name}: the kernel does not tell its offloads");
        return vec![Finding::amiss("NIC", Level::Unknown, found, format!("ethtool -k {name}"))];
    };
    let on = |feature: &str| features.iter().any(|it| it == feature);
    let cut = match (on(SEGMENTATION), on(UDP_SEGMENTATION)) {
        (true, true) => "cuts packets up itself",
        (true, false) => "has packets cut up by the kernel, all at once",
        (false, _) => "has every packet pass the kernel by itself: segmentation is off",
    };
    let sums = CHECKSUMS.iter().any(|feature| on(feature));
    let checksums = if sums { "" } else { "; checksums are off, without which nothing is cut up" };
    let sending = format!("{name} {cut}{checksums}");
    let sending = match sums && on(SEGMENTATION) {
        true => Finding::ok("NIC send", sending),
        false => {
            let fix = format!("ethtool -K {name} tx on gso on");
            Finding::amiss("NIC send", Level::Slow, sending, fix)
        }
    };
    let uncut = nic.kind.as_deref().filter(|kind| UNCUT.contains(kind));
    let receiving = match (on(RECEIVE), uncut) {
        (true, _) => {
            Finding::ok("NIC receive", format!("{name} puts packets together as they come"))
        }
        (false, Some(kind)) => {
            let found = format!("{name} ({kind}) gets uncut what its other end writes");
            Finding::ok("NIC receive", found)
        }
        (false, None) => {
            let found = format!("{name} hands every packet up by itself: receive offload is off");
            Finding::amiss("NIC receive", Level::Slow, found, format!("ethtool -K {name} gro on"))
        }
    };
    vec![sending, receiving]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(features: &[&str]) -> Nic {
        let features = Some(features.iter().map(|it| (*it).to_owned()).collect());
        Nic { name: "eth0".into(), mtu_bytes: 9000, kind: None, features }
    }

    fn levels(nic: &Nic) -> Vec<(Level, Option<String>)> {
        judged(nic).into_iter().map(|finding| (finding.level, finding.fix)).collect()
    }

    #[test]
    fn what_is_off_comes_with_what_turns_it_on() {
        let all = nic(&[SEGMENTATION, "tx-checksum-ip-generic", RECEIVE]);
        assert_eq!(levels(&all), [(Level::Ok, None), (Level::Ok, None)]);
        let send = (Level::Slow, Some("ethtool -K eth0 tx on gso on".to_owned()));
        let receive = (Level::Slow, Some("ethtool -K eth0 gro on".to_owned()));
        assert_eq!(levels(&nic(&[SEGMENTATION])), [send.clone(), receive.clone()]);
        assert_eq!(levels(&nic(&["tx-checksum-ipv4"])), [send, receive]);
        let untold = Nic { features: None, ..nic(&[]) };
        let untold = levels(&untold);
        assert_eq!(untold, [(Level::Unknown, Some("ethtool -k eth0".to_owned()))]);
    }

    #[test]
    fn a_pair_of_virtual_devices_needs_no_receive_offload_and_other_kinds_do() {
        let of = |kind: &str| Nic {
            kind: Some(kind.to_owned()),
            ..nic(&[SEGMENTATION, "tx-checksum-ip-generic"])
        };
        assert_eq!(levels(&of("veth")), [(Level::Ok, None), (Level::Ok, None)]);
        assert_eq!(levels(&of("vxlan"))[1].0, Level::Slow);
        let cut = Nic { kind: Some("veth".to_owned()), ..nic(&["tx-checksum-ip-generic"]) };
        let cut: Vec<_> = levels(&cut).into_iter().map(|(level, _)| level).collect();
        assert_eq!(cut, [Level::Slow, Level::Ok]);
    }
}
