//! Who is in the cluster: nodes (their agents) and devices (their workers), alive, suspect or dead.
//!
//! A pure engine: events and the time go in, commands come out. Owns incarnations and the rules of
//! silence; does not own sessions, timers or meshes.
//!
//! Invariants: an incarnation that was seen is never accepted again; every `DeviceReady` is
//! followed by at most one `DeviceLost` of the same incarnation; a device is ready only while both
//! its worker and its node's agent are alive.

pub mod incarnation;
pub mod loss;
mod presence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use incarnation::Incarnation;
pub use loss::Loss;
use presence::{Presence, Silence, State};

use crate::manifest::{HealthSection, Manifest};
use crate::protocol::DeviceId;

/// Time since some fixed moment of this process; the engines have no clock.
pub type Now = Duration;

/// A process with a session to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// The agent of the node with this name.
    Agent(String),
    /// The worker of a device.
    Worker(DeviceId),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "node {node}"),
            Self::Worker(device) => write!(f, "device {device}"),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// A member passed the handshake.
    Joined {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
        /// Where its data plane listens; empty for agents.
        address: String,
    },
    /// A message came from a member.
    Heard {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
    },
    /// A member's session ended.
    SessionClosed {
        /// Who.
        member: Member,
        /// Which life of it.
        incarnation: Incarnation,
        /// Why.
        reason: String,
    },
    /// An agent saw its worker process end.
    WorkerExited {
        /// Which device.
        device: DeviceId,
        /// Incarnation the agent gave to that process.
        incarnation: Incarnation,
        /// `exit status: 1`, `signal: 9 (SIGKILL)`.
        status: String,
    },
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipCommand {
    /// Welcome the member that just joined.
    Accept(Member, Incarnation),
    /// Turn it away.
    Refuse(Member, Incarnation, Refusal),
    /// Close the session of a member that is no longer one.
    CloseSession(Member, Incarnation, Loss),
    /// A member is overdue.
    Suspect(Member, Duration),
    /// A suspect was heard again.
    Recovered(Member),
    /// A node's agent is there.
    NodeReady(String),
    /// A node's agent is gone.
    NodeLost(String, Loss),
    /// A device can join a mesh.
    DeviceReady(DeviceId),
    /// A device that was ready is gone.
    DeviceLost(DeviceId, Loss),
}

/// Why a member is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in the manifest.
    #[error("{0} is not in the manifest of this cluster")]
    Unknown(Member),
    /// Another life of it is newer.
    #[error("{member} offers incarnation {offered}, but incarnation {current} was here already")]
    Stale {
        /// Who.
        member: Member,
        /// What it offered.
        offered: Incarnation,
        /// The newest one seen.
        current: Incarnation,
    },
}

/// The engine.
#[derive(Debug)]
pub struct Membership {
    suspect: Duration,
    dead: Duration,
    members: BTreeMap<Member, Presence>,
    last_tick: Now,
}

impl Membership {
    /// All nodes and devices of `manifest`, absent.
    pub fn new(manifest: &Manifest) -> Self {
        let mut members = BTreeMap::new();
        for node in &manifest.nodes {
            members.insert(Member::Agent(node.name.clone()), Presence::default());
            for index in 0..node.devices.len() {
                let device = DeviceId { node: node.name.clone(), index: index as u32 };
                members.insert(Member::Worker(device), Presence::default());
            }
        }
        let HealthSection { suspect_ms, dead_ms, .. } = manifest.health;
        Self {
            suspect: Duration::from_millis(suspect_ms.into()),
            dead: Duration::from_millis(dead_ms.into()),
            members,
            last_tick: Now::ZERO,
        }
    }

    /// The same, absent, with a member whose life `incarnation` was here before: older ones are refused.
    pub fn knowing(mut self, member: &Member, incarnation: Incarnation) -> Self {
        if let Some(presence) = self.members.get_mut(member) {
            presence.incarnation = presence.incarnation.max(incarnation);
        }
        self
    }

    /// Takes one event at time `now`.
    pub fn handle(&mut self, now: Now, event: MembershipEvent) -> Vec<MembershipCommand> {
        match event {
            MembershipEvent::Joined { member, incarnation, address } => {
                self.joined(now, member, incarnation, address)
            }
            MembershipEvent::Heard { member, incarnation } => {
                let presence = self.members.get_mut(&member);
                if presence.is_some_and(|presence| presence.hear(now, incarnation)) {
                    return vec![MembershipCommand::Recovered(member)];
                }
                Vec::new()
            }
            MembershipEvent::SessionClosed { member, incarnation, reason } => {
                match self.members.get(&member) {
                    Some(presence) if presence.is_current(incarnation) => {
                        self.lose(&member, Loss::Closed { reason })
                    }
                    _ => Vec::new(),
                }
            }
            MembershipEvent::WorkerExited { device, incarnation, status } => {
                self.worker_exited(device, incarnation, status)
            }
            MembershipEvent::Tick => self.tick(now),
        }
    }

    /// Whether the device can be in a mesh: its worker and its node's agent are alive.
    pub fn is_ready(&self, device: &DeviceId) -> bool {
        self.is_alive(&Member::Agent(device.node.clone()))
            && self.is_alive(&Member::Worker(device.clone()))
    }

    /// The devices that can be in a mesh.
    pub fn ready_devices(&self) -> Vec<DeviceId> {
        let devices = self.members.keys().filter_map(|member| match member {
            Member::Worker(device) if self.is_ready(device) => Some(device.clone()),
            _ => None,
        });
        devices.collect()
    }

    /// `absent`, `alive`, `suspect`, or `dead: why`.
    pub fn describe(&self, member: &Member) -> String {
        self.members.get(member).map_or_else(|| "unknown".into(), Presence::describe)
    }

    /// Newest incarnation of a member; 0 when it never came.
    pub fn incarnation(&self, member: &Member) -> Incarnation {
        self.members.get(member).map_or(Incarnation(0), |presence| presence.incarnation)
    }

    /// Where a worker's data plane listens; empty when it is not there.
    pub fn address(&self, device: &DeviceId) -> &str {
        self.members
            .get(&Member::Worker(device.clone()))
            .map_or("", |presence| presence.address.as_str())
    }

    fn is_alive(&self, member: &Member) -> bool {
        self.members.get(member).is_some_and(Presence::is_alive)
    }

    fn joined(
        &mut self,
        now: Now,
        member: Member,
        incarnation: Incarnation,
        address: String,
    ) -> Vec<MembershipCommand> {
        let Some(current) = self.members.get(&member).map(|presence| presence.incarnation) else {
            let refusal = Refusal::Unknown(member.clone());
            return vec![MembershipCommand::Refuse(member, incarnation, refusal)];
        };
        if incarnation <= current {
            let refusal = Refusal::Stale { member: member.clone(), offered: incarnation, current };
            return vec![MembershipCommand::Refuse(member, incarnation, refusal)];
        }
        let mut commands = self.lose(&member, Loss::Replaced { by: incarnation });
        if let Some(presence) = self.members.get_mut(&member) {
            presence.join(now, incarnation, address);
        }
        commands.push(MembershipCommand::Accept(member.clone(), incarnation));
        match member {
            Member::Agent(node) => {
                commands.push(MembershipCommand::NodeReady(node.clone()));
                for device in self.devices_of(&node) {
                    if self.is_ready(&device) {
                        commands.push(MembershipCommand::DeviceReady(device));
                    }
                }
            }
            Member::Worker(device) if self.is_ready(&device) => {
                commands.push(MembershipCommand::DeviceReady(device));
            }
            Member::Worker(_) => {}
        }
        commands
    }

    fn worker_exited(
        &mut self,
        device: DeviceId,
        incarnation: Incarnation,
        status: String,
    ) -> Vec<MembershipCommand> {
        let member = Member::Worker(device);
        let Some(presence) = self.members.get_mut(&member) else { return Vec::new() };
        if presence.is_alive() && presence.incarnation.same_process(incarnation) {
            return self.lose(&member, Loss::Exited { status });
        }
        if incarnation >= presence.incarnation && !presence.is_alive() {
            presence.incarnation = incarnation;
            presence.state = State::Dead(Loss::Exited { status });
        }
        Vec::new()
    }

    /// Marks a living member dead; nothing when it was not alive.
    fn lose(&mut self, member: &Member, loss: Loss) -> Vec<MembershipCommand> {
        let ready: Vec<DeviceId> = match member {
            Member::Agent(node) => {
                self.devices_of(node).into_iter().filter(|device| self.is_ready(device)).collect()
            }
            Member::Worker(device) if self.is_ready(device) => vec![device.clone()],
            Member::Worker(_) => Vec::new(),
        };
        let Some(presence) = self.members.get_mut(member) else { return Vec::new() };
        if !presence.is_alive() {
            return Vec::new();
        }
        let incarnation = presence.incarnation;
        presence.state = State::Dead(loss.clone());
        let mut commands =
            vec![MembershipCommand::CloseSession(member.clone(), incarnation, loss.clone())];
        match member {
            Member::Agent(node) => {
                commands.push(MembershipCommand::NodeLost(node.clone(), loss.clone()));
                let cause = Loss::Node { node: node.clone(), cause: Box::new(loss) };
                commands.extend(
                    ready
                        .into_iter()
                        .map(|device| MembershipCommand::DeviceLost(device, cause.clone())),
                );
                for device in self.devices_of(node) {
                    commands.extend(self.lose(&Member::Worker(device), cause.clone()));
                }
            }
            Member::Worker(_) => commands.extend(
                ready.into_iter().map(|device| MembershipCommand::DeviceLost(device, loss.clone())),
            ),
        }
        commands
    }

    fn tick(&mut self, now: Now) -> Vec<MembershipCommand> {
        let slept = now.saturating_sub(self.last_tick) > self.suspect;
        self.last_tick = now;
        if slept {
            // It was this process that did not run: what the others sent is still unread.
            for presence in self.members.values_mut() {
                presence.excuse(now);
            }
            return Vec::new();
        }
        let overdue: Vec<(Member, Silence)> = self
            .members
            .iter_mut()
            .filter_map(|(member, presence)| {
                Some((member.clone(), presence.check(now, self.suspect, self.dead)?))
            })
            .collect();
        let mut commands = Vec::new();
        for (member, silence) in overdue {
            match silence {
                Silence::Suspect(silent) => {
                    commands.push(MembershipCommand::Suspect(member, silent));
                }
                Silence::Dead(silent) => commands.extend(
                    self.lose(&member, Loss::Silent { milliseconds: silent.as_millis() as u64 }),
                ),
            }
        }
        commands
    }

    fn devices_of(&self, node: &str) -> Vec<DeviceId> {
        self.members
            .keys()
            .filter_map(|member| match member {
                Member::Worker(device) if device.node == node => Some(device.clone()),
                _ => None,
            })
            .collect()
    }
}
