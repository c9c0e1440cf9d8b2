//! An examination of the whole cluster: every agent looks, and the client hears of all at once.
//!
//! Owns who has been asked and until when ([`Examinations`], pure), and which ports there are to be
//! asked. Does not judge what was found. Invariant: whoever asks is answered at the deadline at the
//! latest, be the agents there or not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ditmesh_transport::fabric::FabricAddress;

use super::State;
use crate::examine::clock::unix_us;
use crate::membership::{Member, Now};
use crate::protocol::examine::{Examination, Examine, Examined, NodeExamined, Target};
use crate::protocol::{ClientReply, DeviceId, FailureKind, FromCoordinator};

/// How long agents have; they are told to look for less.
const DEADLINE: Duration = Duration::from_secs(20);

/// The most ports that a cluster's processes are asked for.
const PORTS_MAX: usize = 2048;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asker {
    client: u64,
    call: u64,
}

/// One examination under way.
struct Open {
    number: u64,
    asker: Asker,
    received_us: u64,
    deadline: Now,
    ports: Vec<Target>,
    /// When each agent was asked, by its node.
    asked: BTreeMap<String, u64>,
    nodes: Vec<NodeExamined>,
}

/// All examinations: one at a time.
#[derive(Default)]
pub(super) struct Examinations {
    begun: u64,
    open: Option<Open>,
}

/// An examination that is over.
struct Over {
    asker: Asker,
    received_us: u64,
    nodes: Vec<NodeExamined>,
    ports: Vec<Target>,
}

impl Examinations {
    /// Begins one; its number.
    fn begin(
        &mut self,
        now: Now,
        asker: Asker,
        received_us: u64,
        ports: Vec<Target>,
    ) -> Result<u64, String> {
        if self.open.is_some() {
            let seconds = DEADLINE.as_secs();
            let cause = "the cluster is being examined for somebody else";
            return Err(format!("{cause}; try again in {seconds} s"));
        }
        self.begun += 1;
        let (number, deadline) = (self.begun, now + DEADLINE);
        let (asked, nodes) = (BTreeMap::new(), Vec::new());
        self.open = Some(Open { number, asker, received_us, deadline, ports, asked, nodes });
        Ok(number)
    }

    /// Whether somebody waits for one.
    pub(super) fn is_under_way(&self) -> bool {
        self.open.is_some()
    }

    /// A node's agent was asked.
    fn asked(&mut self, node: &str, at_us: u64) {
        if let Some(open) = &mut self.open {
            open.asked.insert(node.into(), at_us);
        }
    }

    /// A node's agent cannot be asked, or not any more.
    fn cannot(&mut self, node: &str, why: &str) {
        let Some(open) = &mut self.open else { return };
        let asked_us = open.asked.remove(node).unwrap_or(open.received_us);
        let (node, outcome) = (node.to_owned(), Err(why.to_owned()));
        open.nodes.push(NodeExamined { node, asked_us, heard_us: asked_us, outcome });
    }

    /// It has gone, whether it was asked or not.
    fn gone(&mut self, node: &str) {
        if self.open.as_ref().is_some_and(|open| open.asked.contains_key(node)) {
            self.cannot(node, "its agent was lost meanwhile");
        }
    }

    /// It answers; what nobody asked for, or not any more, is dropped.
    fn heard(&mut self, node: &str, examination: Examination, heard_us: u64) {
        let Some(open) = self.open.as_mut().filter(|open| open.number == examination.number) else {
            return;
        };
        let Some(asked_us) = open.asked.remove(node) else { return };
        let (node, outcome) = (node.to_owned(), Ok(examination));
        open.nodes.push(NodeExamined { node, asked_us, heard_us, outcome });
    }

    /// The examination, when everybody has answered or it is time.
    fn over(&mut self, now: Now) -> Option<Over> {
        let open = self.open.as_mut()?;
        if now >= open.deadline {
            let late: Vec<_> = open.asked.keys().cloned().collect();
            let why = format!("its agent did not answer within {} s", DEADLINE.as_secs());
            late.iter().for_each(|node| self.cannot(node, &why));
        }
        let Open { asker, received_us, mut nodes, ports, .. } =
            self.open.take_if(|open| open.asked.is_empty())?;
        nodes.sort_by(|one, other| one.node.cmp(&other.node));
        Some(Over { asker, received_us, nodes, ports })
    }
}

impl State {
    /// A client wants everything looked at.
    pub(super) fn examine(&mut self, client: u64, call: u64) {
        let (asker, ports) = (Asker { client, call }, self.ports());
        let begun = self.examinations.begin(self.now(), asker, unix_us(), ports.clone());
        let number = match begun {
            Ok(number) => number,
            Err(cause) => {
                let reply = ClientReply::Failed { kind: FailureKind::Refused, cause };
                return self.reply(client, call, reply);
            }
        };
        for node in &self.manifest.nodes {
            let Some(agent) = self.sessions.get(&Member::Agent(node.name.clone())) else {
                self.examinations.cannot(&node.name, "its agent is not there");
                continue;
            };
            let targets = ports.iter().filter(|port| port.node != node.name).cloned().collect();
            let payload_bytes_max = self.manifest.transport.mtu_bytes.into();
            self.examinations.asked(&node.name, unix_us());
            let order = Box::new(Examine { number, targets, payload_bytes_max });
            agent.handle.send(FromCoordinator::Examine(order));
        }
        self.end_examination();
    }

    /// An agent has looked.
    pub(super) fn examined(&mut self, node: &str, examination: Examination) {
        self.examinations.heard(node, examination, unix_us());
        self.end_examination();
    }

    /// An agent is lost.
    pub(super) fn not_examined(&mut self, node: &str) {
        self.examinations.gone(node);
        self.end_examination();
    }

    /// Answers, if it is time.
    pub(super) fn end_examination(&mut self) {
        let Some(over) = self.examinations.over(self.now()) else { return };
        let Over { asker: Asker { client, call }, received_us, nodes, ports } = over;
        let examined = Examined { received_us, sent_us: unix_us(), nodes, ports };
        self.reply(client, call, ClientReply::Examined(Box::new(examined)));
    }

    /// Every port that a process which is there listens at.
    fn ports(&self) -> Vec<Target> {
        let mut ports = Vec::new();
        let home = self.manifest.coordinator_node();
        for node in &self.manifest.nodes {
            let (name, is_home) = (&node.name, node.name == home);
            let mut add = |address: String, what: String| {
                ports.push(Target { node: name.clone(), address, what, listening: true });
            };
            if is_home && self.address.parse::<SocketAddr>().is_ok() {
                add(self.address.clone(), "coordinator".into());
            } else if node.control_port != 0
                && self.sessions.get(&Member::Agent(name.clone())).is_some()
            {
                add(format!("{}:{}", node.address, node.control_port), "agent".into());
            }
            if is_home {
                fabric_ports(self.fabric.address(), "coordinator", &mut add);
            }
            for index in 0..node.devices.len() as u32 {
                let device = DeviceId { node: name.clone(), index };
                let is_there = self.sessions.get(&Member::Worker(device.clone())).is_some();
                if let (true, Ok(address)) =
                    (is_there, self.desk.membership.address(&device).parse())
                {
                    fabric_ports(address, &format!("device {index}"), &mut add);
                }
            }
        }
        ports.truncate(PORTS_MAX);
        ports
    }
}

/// The ports of one process's data plane.
fn fabric_ports(address: FabricAddress, of: &str, add: &mut impl FnMut(String, String)) {
    let FabricAddress::Quic { control, bulk } = address else { return };
    for (number, lane) in bulk.as_slice().iter().enumerate() {
        add(lane.to_string(), format!("{of}, bulk {number}"));
    }
    add(control.to_string(), format!("{of}, grants"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ASKER: Asker = Asker { client: 3, call: 4 };
    const BEGIN: Now = Duration::from_secs(7);

    fn answer(number: u64) -> Examination {
        let (findings, seen) = (Vec::new(), Vec::new());
        Examination { number, received_us: 1, sent_us: 2, findings, seen }
    }

    fn outcomes(over: &Over) -> Vec<(&str, bool)> {
        over.nodes.iter().map(|node| (node.node.as_str(), node.outcome.is_ok())).collect()
    }

    #[test]
    fn it_is_over_when_all_have_answered_or_gone() {
        let mut examinations = Examinations::default();
        let number = examinations.begin(BEGIN, ASKER, 5, Vec::new()).unwrap();
        for node in ["b", "a", "c"] {
            examinations.asked(node, 10);
        }
        examinations.cannot("d", "its agent is not there");
        assert!(examinations.begin(BEGIN, ASKER, 6, Vec::new()).unwrap_err().contains("20 s"));
        examinations.heard("a", answer(number), 11);
        examinations.heard("a", answer(number), 12);
        examinations.heard("c", answer(number + 1), 12);
        examinations.heard("stranger", answer(number), 12);
        assert!(examinations.over(BEGIN).is_none());
        examinations.heard("b", answer(number), 13);
        examinations.gone("c");
        examinations.gone("a");
        let over = examinations.over(BEGIN).unwrap();
        assert_eq!((over.asker, over.received_us), (ASKER, 5));
        assert_eq!(outcomes(&over), [("a", true), ("b", true), ("c", false), ("d", false)]);
        assert_eq!((over.nodes[0].asked_us, over.nodes[0].heard_us), (10, 11));
        assert!(examinations.over(BEGIN).is_none(), "once");
        assert_eq!(examinations.begin(BEGIN, ASKER, 5, Vec::new()), Ok(number + 1));
    }

    #[test]
    fn at_the_deadline_those_that_are_late_are_named() {
        let mut examinations = Examinations::default();
        examinations.begin(BEGIN, ASKER, 5, Vec::new()).unwrap();
        examinations.asked("slow", 10);
        let just_before = BEGIN + DEADLINE - Duration::from_millis(1);
        assert!(examinations.over(just_before).is_none());
        let over = examinations.over(BEGIN + DEADLINE).unwrap();
        assert_eq!(outcomes(&over), [("slow", false)]);
        assert!(over.nodes[0].outcome.as_ref().unwrap_err().contains("within 20 s"));
    }
}
