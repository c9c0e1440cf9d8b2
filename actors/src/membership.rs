//! Who is in the cluster: nodes (their agents) and devices (their workers), alive, suspect or dead.
//!
//! A pure engine: events and the time go in, commands come out. Owns incarnations, the rules of
//! silence, who is known, who leaves, who flaps and which links between workers count as cut; does
//! not own sessions, timers or meshes.
//!
//! Invariants: an incarnation that was seen is never accepted again; every `DeviceReady` is
//! followed by at most one `DeviceLost` of the same incarnation; a device is ready only while both
//! its worker and its node's agent are alive and neither is quarantined; nobody is quarantined who
//! is there while no device is ready; a node that leaves is
//! released exactly once, at its deadline at the latest; one that was forced out is refused until
//! it is admitted anew.

pub mod cuts;
mod event;
pub mod flapping;
pub mod incarnation;
mod leaving;
pub mod loss;
#[cfg(test)]
mod oracle;
mod presence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use cuts::{Cuts, Pair, pair};
pub use event::{MembershipCommand, MembershipEvent, Refusal};
pub use incarnation::Incarnation;
use leaving::Leaving;
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

/// The engine.
#[derive(Debug)]
pub struct Membership {
    suspect: Duration,
    dead: Duration,
    members: BTreeMap<Member, Presence>,
    leaving: Leaving,
    cuts: Cuts,
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
            leaving: Leaving::default(),
            cuts: Cuts::default(),
            last_tick: Now::ZERO,
        }
    }

    /// The same, absent, with a member whose life `incarnation` was here before: older ones are
    /// refused.
    pub fn knowing(mut self, member: &Member, incarnation: Incarnation) -> Self {
        if let Some(presence) = self.members.get_mut(member) {
            presence.incarnation = presence.incarnation.max(incarnation);
        }
        self
    }

    /// The same, with a node that was declared gone for good: it is refused until it is admitted
    /// anew.
    pub fn without(mut self, node: &str) -> Self {
        self.leaving.force(node);
        if let Some(presence) = self.members.get_mut(&Member::Agent(node.into())) {
            presence.state = State::Dead(Loss::Forced);
        }
        self
    }

    /// Takes one event at time `now`.
    pub fn handle(&mut self, now: Now, event: MembershipEvent) -> Vec<MembershipCommand> {
        let mut commands = self.take(now, event);
        commands.extend(self.parole());
        commands
    }

    fn take(&mut self, now: Now, event: MembershipEvent) -> Vec<MembershipCommand> {
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
                        self.lose(now, &member, Loss::Closed { reason })
                    }
                    _ => Vec::new(),
                }
            }
            MembershipEvent::WorkerExited { device, incarnation, status } => {
                self.worker_exited(now, device, incarnation, status)
            }
            MembershipEvent::Hung { device, milliseconds } => {
                self.lose(now, &Member::Worker(device), Loss::Hung { milliseconds })
            }
            MembershipEvent::Admitted { node, devices } => self.admit(&node, devices),
            MembershipEvent::Leave { node, drain } => self.leave(&node, now + drain),
            MembershipEvent::Vacated { node } => self.release(&node),
            MembershipEvent::ForceLeave { node } => self.force(now, &node),
            MembershipEvent::LinkLost { by, to } => {
                let newly = self.is_ready(&by)
                    && self.is_ready(&to)
                    && self.cuts.reported(now, pair(by, to));
                newly.then_some(MembershipCommand::CutsChanged).into_iter().collect()
            }
            MembershipEvent::Unlinked { by } => {
                let newly = self.cuts.unlinked(now, &by);
                newly.then_some(MembershipCommand::CutsChanged).into_iter().collect()
            }
            MembershipEvent::Tick => self.tick(now),
        }
    }

    /// Where nobody else is there, members that flap are better than none: their quarantines end.
    fn parole(&mut self) -> Vec<MembershipCommand> {
        if !self.ready_devices().is_empty() {
            return Vec::new();
        }
        for presence in self.members.values_mut().filter(|presence| presence.is_alive()) {
            presence.flapping.parole();
        }
        self.ready_again(self.ready_devices())
    }

    /// Devices can be used; those that were told to leave before are told again.
    fn ready_again(&self, devices: Vec<DeviceId>) -> Vec<MembershipCommand> {
        let leaving = |device: &&DeviceId| self.leaving.is_leaving(&device.node);
        let again: Vec<DeviceId> = devices.iter().filter(leaving).cloned().collect();
        let ready = devices.into_iter().map(MembershipCommand::DeviceReady);
        ready.chain(again.into_iter().map(MembershipCommand::DeviceLeaving)).collect()
    }

    /// Whether the device can be in a mesh: its worker and its node's agent are alive and sound.
    pub fn is_ready(&self, device: &DeviceId) -> bool {
        !self.leaving.is_released(&device.node)
            && self.is_sound(&Member::Agent(device.node.clone()))
            && self.is_sound(&Member::Worker(device.clone()))
    }

    /// Links between workers that count as cut.
    pub fn cuts(&self) -> Vec<Pair> {
        let devices = self.members.keys().filter_map(|member| match member {
            Member::Worker(device) => Some(device.clone()),
            Member::Agent(_) => None,
        });
        self.cuts.among(&devices.collect::<Vec<_>>())
    }

    /// Nodes that are draining.
    pub fn draining(&self) -> Vec<String> {
        self.leaving.draining()
    }

    /// Whether the node is on its way out, or out.
    pub fn is_leaving(&self, node: &str) -> bool {
        self.leaving.is_leaving(node)
    }

    /// Whether the node's agent is there.
    pub fn is_there(&self, node: &str) -> bool {
        self.members.get(&Member::Agent(node.into())).is_some_and(Presence::is_alive)
    }

    /// Nodes whose agents are there.
    pub fn nodes_there(&self) -> Vec<String> {
        let there = self.members.iter().filter_map(|(member, presence)| match member {
            Member::Agent(node) if presence.is_alive() => Some(node.clone()),
            _ => None,
        });
        there.collect()
    }

    /// Whether a node of this name is known.
    pub fn knows(&self, node: &str) -> bool {
        self.members.contains_key(&Member::Agent(node.into()))
    }

    /// Forgets a node that has left and was not one from the start.
    pub fn forget(&mut self, node: &str) {
        self.members.retain(|member, _| match member {
            Member::Agent(name) => name != node,
            Member::Worker(device) => device.node != node,
        });
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

    fn is_sound(&self, member: &Member) -> bool {
        self.members.get(member).is_some_and(Presence::is_sound)
    }

    fn admit(&mut self, node: &str, devices: usize) -> Vec<MembershipCommand> {
        if !self.is_there(node) {
            self.leaving.pardon(node);
        }
        self.members.entry(Member::Agent(node.into())).or_default();
        for index in 0..devices as u32 {
            let device = DeviceId { node: node.into(), index };
            self.members.entry(Member::Worker(device)).or_default();
        }
        Vec::new()
    }

    fn leave(&mut self, node: &str, deadline: Now) -> Vec<MembershipCommand> {
        if !self.is_there(node) || !self.leaving.begin(node, deadline) {
            return Vec::new();
        }
        self.devices_of(node).into_iter().map(MembershipCommand::DeviceLeaving).collect()
    }

    fn release(&mut self, node: &str) -> Vec<MembershipCommand> {
        match self.leaving.release(node) {
            true => vec![MembershipCommand::Release(node.into())],
            false => Vec::new(),
        }
    }

    /// A node's time is over: what still runs on its devices loses them.
    fn expel(&mut self, node: &str) -> Vec<MembershipCommand> {
        let ready = self.devices_of(node).into_iter().filter(|device| self.is_ready(device));
        let lost = |device| MembershipCommand::DeviceLost(device, Loss::Left);
        let mut commands: Vec<MembershipCommand> = ready.map(lost).collect();
        commands.extend(self.release(node));
        commands
    }

    fn force(&mut self, now: Now, node: &str) -> Vec<MembershipCommand> {
        let lost = self.lose(now, &Member::Agent(node.into()), Loss::Forced);
        self.leaving.force(node);
        lost
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
        let (Member::Agent(node) | Member::Worker(DeviceId { node, .. })) = &member;
        let node = node.clone();
        if self.leaving.is_forced(&node) {
            let refusal = Refusal::Forced(member.clone());
            return vec![MembershipCommand::Refuse(member, incarnation, refusal)];
        }
        if incarnation <= current {
            let refusal = Refusal::Stale { member: member.clone(), offered: incarnation, current };
            return vec![MembershipCommand::Refuse(member, incarnation, refusal)];
        }
        let mut commands = self.lose(now, &member, Loss::Replaced { by: incarnation });
        match &member {
            Member::Agent(node) if self.leaving.is_released(node) => self.leaving.forget(node),
            Member::Agent(_) => {}
            Member::Worker(device) => self.cuts.forget(device),
        }
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
        if self.leaving.is_leaving(&node) {
            // It was told before this life.
            let ready = commands.iter().filter_map(|command| match command {
                MembershipCommand::DeviceReady(device) => Some(device.clone()),
                _ => None,
            });
            let leaving: Vec<_> = ready.map(MembershipCommand::DeviceLeaving).collect();
            commands.extend(leaving);
        }
        commands
    }

    fn worker_exited(
        &mut self,
        now: Now,
        device: DeviceId,
        incarnation: Incarnation,
        status: String,
    ) -> Vec<MembershipCommand> {
        let member = Member::Worker(device);
        let Some(presence) = self.members.get_mut(&member) else { return Vec::new() };
        if presence.is_alive() && presence.incarnation.same_process(incarnation) {
            return self.lose(now, &member, Loss::Exited { status });
        }
        if incarnation >= presence.incarnation && !presence.is_alive() {
            presence.incarnation = incarnation;
            presence.state = State::Dead(Loss::Exited { status });
        }
        Vec::new()
    }

    /// Marks a living member dead; nothing when it was not alive.
    fn lose(&mut self, now: Now, member: &Member, loss: Loss) -> Vec<MembershipCommand> {
        let (Member::Agent(node) | Member::Worker(DeviceId { node, .. })) = member;
        let released = self.leaving.is_released(node);
        let loss = if released { Loss::Left } else { loss };
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
        // Only a death of its own counts: not that of its node, nor what somebody asked for.
        let own = !matches!(loss, Loss::Left | Loss::Forced | Loss::Node { .. });
        if own && let Some(quarantine) = presence.flapping.died(now) {
            commands.push(MembershipCommand::Quarantined(member.clone(), quarantine));
        }
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
                    commands.extend(self.lose(now, &Member::Worker(device), cause.clone()));
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
                Silence::Dead(silent) => {
                    let loss = Loss::Silent { milliseconds: silent.as_millis() as u64 };
                    commands.extend(self.lose(now, &member, loss));
                }
            }
        }
        for node in self.leaving.overdue(now) {
            commands.extend(self.expel(&node));
        }
        commands.extend(self.end_quarantines(now));
        if self.cuts.expire(now) {
            commands.push(MembershipCommand::CutsChanged);
        }
        commands
    }

    fn end_quarantines(&mut self, now: Now) -> Vec<MembershipCommand> {
        let before = self.ready_devices();
        let mut ended = false;
        for presence in self.members.values_mut() {
            ended |= presence.flapping.release(now);
        }
        if !ended {
            return Vec::new();
        }
        let ready = self.ready_devices().into_iter();
        self.ready_again(ready.filter(|device| !before.contains(device)).collect())
    }

    /// Devices of a node, there or not.
    pub fn devices_of(&self, node: &str) -> Vec<DeviceId> {
        self.members
            .keys()
            .filter_map(|member| match member {
                Member::Worker(device) if device.node == node => Some(device.clone()),
                _ => None,
            })
            .collect()
    }
}
