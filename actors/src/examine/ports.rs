//! The ports of other hosts, as they are seen from here.
//!
//! Owns who is asked at the same time, and until when. What a question is, is the transport's.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Instant;

use ditmesh_transport::interface::Interface;
use ditmesh_transport::probe::{
    ANSWER_MAX, Answer, PROBE_BYTES_MIN, ask, host_answers, largest_payload,
};

use crate::protocol::examine::{Nic, PortAnswer, Seen, Target};

/// Ports asked at the same time.
const AT_ONCE: usize = 16;

/// IP and UDP in front of a packet, in bytes.
const HEADERS_V4_BYTES: u32 = 28;
const HEADERS_V6_BYTES: u32 = 48;

/// The largest UDP payload that fits into frames of `mtu_bytes` towards `address`.
pub fn payload_within(mtu_bytes: u32, is_ipv4: bool) -> u32 {
    mtu_bytes.saturating_sub(if is_ipv4 { HEADERS_V4_BYTES } else { HEADERS_V6_BYTES })
}

/// Asks every target, and measures the path to the first port of each node that answers. Blocks
/// this thread, hardly longer than until `deadline`: what is left then is not asked.
pub fn look(targets: &[Target], payload_bytes_max: u32, deadline: Instant) -> Vec<Seen> {
    let mut seen = Vec::with_capacity(targets.len());
    for some in targets.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let asking: Vec<_> =
                some.iter().map(|target| scope.spawn(move || see(target, deadline))).collect();
            for (asked, target) in asking.into_iter().zip(some) {
                let broken = || not_asked(target, "looking at it failed");
                seen.push(asked.join().unwrap_or_else(|_| broken()));
            }
        });
    }
    measure_paths(&mut seen, payload_bytes_max, deadline);
    seen
}

fn see(target: &Target, deadline: Instant) -> Seen {
    let Some(address) = address(target) else {
        return not_asked(target, "its address is unknown here");
    };
    if Instant::now() >= deadline {
        return not_asked(target, "there was no time left");
    }
    let answer = match ask(address, PROBE_BYTES_MIN, ANSWER_MAX) {
        Ok(Answer::Listens(_)) => PortAnswer::Listens,
        Ok(Answer::NobodyListens) => PortAnswer::NobodyListens,
        Ok(Answer::Rejected(words)) => PortAnswer::Rejected(words),
        Ok(Answer::TooLarge) => {
            let words = format!("packets of {PROBE_BYTES_MIN} bytes, QUIC's least, do not fit");
            PortAnswer::Rejected(words)
        }
        Ok(Answer::Silent) => {
            PortAnswer::Silent { host_answers: host_answers(address.ip()).unwrap_or(false) }
        }
        Err(error) => PortAnswer::NotAsked(error.to_string()),
    };
    let nic = Interface::towards(address.ip()).ok().map(|it| Nic {
        name: it.name,
        mtu_bytes: it.mtu_bytes,
        kind: it.kind,
        features: it.features.map(|on| on.into_iter().collect()),
    });
    Seen { target: target.clone(), answer, nic, payload_bytes: None }
}

/// Looked up by the one who asks: a name may mean something else elsewhere.
fn address(target: &Target) -> Option<SocketAddr> {
    target.address.to_socket_addrs().ok()?.next()
}

fn not_asked(target: &Target, why: &str) -> Seen {
    let (target, answer) = (target.clone(), PortAnswer::NotAsked(why.into()));
    Seen { target, answer, nic: None, payload_bytes: None }
}

/// Of each node one path, by its first port that answers.
fn measure_paths(seen: &mut [Seen], payload_bytes_max: u32, deadline: Instant) {
    let mut nodes = BTreeSet::new();
    let mut first: Vec<_> = seen
        .iter_mut()
        .filter(|it| it.answer == PortAnswer::Listens && nodes.insert(it.target.node.clone()))
        .collect();
    for some in first.chunks_mut(AT_ONCE) {
        if Instant::now() >= deadline {
            return;
        }
        thread::scope(|scope| {
            for one in some {
                scope.spawn(move || one.payload_bytes = payload(one, payload_bytes_max));
            }
        });
    }
}

fn payload(seen: &Seen, payload_bytes_max: u32) -> Option<u32> {
    let address = address(&seen.target)?;
    let fits = |nic: &Nic| payload_within(nic.mtu_bytes, address.is_ipv4());
    let most = seen.nic.as_ref().map_or(payload_bytes_max, |nic| fits(nic).min(payload_bytes_max));
    let found = largest_payload(address, usize::try_from(most).ok()?).ok()??;
    u32::try_from(found).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn target(node: &str, address: SocketAddr) -> Target {
        let (node, what) = (node.into(), "control".into());
        Target { node, address: address.to_string(), what, listening: true }
    }

    #[test]
    fn a_mute_port_of_a_host_that_answers_is_told_from_one_that_is_closed() {
        let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let targets = [target("a", mute.local_addr().unwrap()), target("b", closed)];
        let seen = look(&targets, 8952, Instant::now() + Duration::from_secs(30));
        assert_eq!(seen[0].answer, PortAnswer::Silent { host_answers: true });
        assert_eq!(seen[1].answer, PortAnswer::NobodyListens);
        assert_eq!(seen[1].nic.as_ref().unwrap().name, "lo");
        assert_eq!(seen[0].payload_bytes, None);
    }

    #[test]
    fn after_the_deadline_nobody_is_asked() {
        let seen = look(&[target("a", ([127, 0, 0, 1], 9).into())], 8952, Instant::now());
        assert!(matches!(&seen[0].answer, PortAnswer::NotAsked(why) if why.contains("time")));
    }
}
