//! A naive oracle of membership, and random histories of both: after every event the oracle replays
//! the whole history from the beginning, with plain rules and no commands, and must agree.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::MembershipCommand as C;
use super::MembershipEvent as E;
use super::cuts::CUT_FOR;
use super::flapping::{FLAP_WINDOW, FLAPS_MAX, QUARANTINE_FIRST, QUARANTINE_MAX};
use super::*;
use crate::manifest::NodeSection;
use crate::request::ModelSource;

const SUSPECT: Duration = Duration::from_millis(800);
const DEAD: Duration = Duration::from_millis(1500);

/// One member as the oracle sees it.
#[derive(Clone, Default)]
struct Life {
    incarnation: u64,
    alive: bool,
    heard: Now,
    deaths: Vec<Now>,
    quarantines: u32,
    quarantined_until: Option<Now>,
}

#[derive(Default)]
struct Oracle {
    lives: BTreeMap<Member, Life>,
    draining: BTreeMap<String, Now>,
    released: BTreeSet<String>,
    forced: BTreeSet<String>,
    last_tick: Now,
    /// Who said when that the way between two ends is gone, the latest last.
    reports: Vec<(Now, [End; 2])>,
}

/// Of a way between nodes the node, of one within a node the device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Node(String),
    Device(DeviceId),
}

impl End {
    fn is_of(&self, device: &DeviceId) -> bool {
        match self {
            Self::Node(node) => *node == device.node,
            Self::Device(end) => end == device,
        }
    }
}

fn way(a: &DeviceId, b: &DeviceId) -> [End; 2] {
    let mut ends = match a.node == b.node {
        true => [End::Device(a.clone()), End::Device(b.clone())],
        false => [End::Node(a.node.clone()), End::Node(b.node.clone())],
    };
    ends.sort();
    ends
}

impl Oracle {
    fn replay(members: &[Member], history: &[(Now, E)]) -> Self {
        let lives = members.iter().map(|member| (member.clone(), Life::default())).collect();
        let mut oracle = Self { lives, ..Self::default() };
        for (now, event) in history {
            oracle.apply(*now, event);
        }
        oracle
    }

    fn is_ready(&self, device: &DeviceId) -> bool {
        let sound = |member: Member| {
            let life = self.lives.get(&member);
            life.is_some_and(|life| life.alive && life.quarantined_until.is_none())
        };
        !self.released.contains(&device.node)
            && sound(Member::Agent(device.node.clone()))
            && sound(Member::Worker(device.clone()))
    }

    /// Two reports, neither of them older than a minute when the next one came, are a cut.
    fn is_cut(&self, a: &DeviceId, b: &DeviceId) -> bool {
        let of_way = self.reports.iter().filter(|(_, ends)| *ends == way(a, b));
        let times: Vec<Now> = of_way.map(|(at, _)| *at).collect();
        matches!(times.as_slice(), [.., first, second] if *second - *first < CUT_FOR)
    }

    fn apply(&mut self, now: Now, event: &E) {
        match event {
            E::Joined { member, incarnation, .. } => self.join(now, member, incarnation.0),
            E::Heard { member, incarnation } => {
                if let Some(life) = self.lives.get_mut(member)
                    && life.alive
                    && life.incarnation == incarnation.0
                {
                    life.heard = now;
                }
            }
            E::SessionClosed { member, incarnation, .. } => {
                let life = &self.lives[member];
                if life.alive && life.incarnation == incarnation.0 {
                    self.die(now, member, true);
                }
            }
            E::WorkerExited { device, incarnation, .. } => {
                let member = Member::Worker(device.clone());
                let life = &self.lives[&member];
                if life.alive && Incarnation(life.incarnation).same_process(*incarnation) {
                    self.die(now, &member, true);
                } else if !life.alive && incarnation.0 >= life.incarnation {
                    self.lives.get_mut(&member).expect("a member").incarnation = incarnation.0;
                }
            }
            E::Hung { device, .. } => self.die(now, &Member::Worker(device.clone()), true),
            E::Leave { node, drain } => {
                let here = self.lives[&Member::Agent(node.clone())].alive;
                if here && !self.draining.contains_key(node) && !self.released.contains(node) {
                    self.draining.insert(node.clone(), now + *drain);
                }
            }
            E::Vacated { node } => {
                if self.draining.remove(node).is_some() {
                    self.released.insert(node.clone());
                }
            }
            E::ForceLeave { node } => {
                self.die(now, &Member::Agent(node.clone()), false);
                self.draining.remove(node);
                self.released.insert(node.clone());
                self.forced.insert(node.clone());
            }
            E::Admitted { node, .. } if self.lives[&Member::Agent(node.clone())].alive => {}
            E::Admitted { node, .. } => {
                self.draining.remove(node);
                self.released.remove(node);
                self.forced.remove(node);
            }
            E::LinkLost { by, to } => {
                if self.is_ready(by) && self.is_ready(to) {
                    self.reports.push((now, way(by, to)));
                }
            }
            E::Unlinked { by } => {
                let known: BTreeSet<_> = self.reports.iter().map(|(_, way)| way.clone()).collect();
                let own = known.into_iter().filter(|way| way.iter().any(|end| end.is_of(by)));
                self.reports.extend(own.map(|way| (now, way)));
            }
            E::Tick => self.tick(now),
        }
        let devices = self.lives.keys().filter_map(|member| match member {
            Member::Worker(device) => Some(device),
            Member::Agent(_) => None,
        });
        if !devices.into_iter().any(|device| self.is_ready(device)) {
            let alive = self.lives.values_mut().filter(|life| life.alive);
            alive.for_each(|life| life.quarantined_until = None);
        }
    }

    fn join(&mut self, now: Now, member: &Member, incarnation: u64) {
        let node = node_of(member);
        if self.forced.contains(node) || incarnation <= self.lives[member].incarnation {
            return;
        }
        self.die(now, member, true);
        match member {
            Member::Agent(_) => drop(self.released.remove(node)),
            Member::Worker(device) => {
                self.reports.retain(|(_, way)| !way.iter().any(|end| end.is_of(device)));
            }
        }
        let life = self.lives.get_mut(member).expect("a member");
        (life.incarnation, life.alive, life.heard) = (incarnation, true, now);
    }

    fn tick(&mut self, now: Now) {
        let slept = now - self.last_tick > SUSPECT;
        self.last_tick = now;
        if slept {
            self.lives.values_mut().for_each(|life| life.heard = now);
            return;
        }
        // In the order of members: a node takes its workers along before they are looked at.
        for member in self.lives.keys().cloned().collect::<Vec<_>>() {
            if self.lives[&member].alive && now - self.lives[&member].heard >= DEAD {
                self.die(now, &member, true);
            }
        }
        let overdue = self.draining.iter().filter(|(_, deadline)| **deadline <= now);
        for node in overdue.map(|(node, _)| node.clone()).collect::<Vec<_>>() {
            self.draining.remove(&node);
            self.released.insert(node);
        }
        for life in self.lives.values_mut() {
            life.quarantined_until = life.quarantined_until.filter(|until| *until > now);
        }
        let fresh = self.reports.iter().filter(|(at, _)| now - *at < CUT_FOR);
        let fresh: BTreeSet<_> = fresh.map(|(_, way)| way.clone()).collect();
        self.reports.retain(|(_, way)| fresh.contains(way));
    }

    fn die(&mut self, now: Now, member: &Member, own: bool) {
        let own = own && !self.released.contains(node_of(member));
        let life = self.lives.get_mut(member).expect("a member");
        if !life.alive {
            return;
        }
        life.alive = false;
        if own {
            let recent = |life: &Life| {
                life.deaths.iter().filter(|death| now - **death < FLAP_WINDOW).count()
            };
            // Only the latest deaths are remembered.
            let latest = life.deaths.iter().rev().take(FLAPS_MAX);
            if !latest.into_iter().any(|death| now - *death < FLAP_WINDOW) {
                life.quarantines = 0;
            }
            life.deaths.push(now);
            if recent(life) >= FLAPS_MAX {
                let length = QUARANTINE_FIRST * 2u32.pow(life.quarantines.min(16));
                life.quarantined_until = Some(now + length.min(QUARANTINE_MAX));
                life.quarantines += 1;
            }
        }
        if let Member::Agent(node) = member {
            for worker in self.lives.keys().cloned().collect::<Vec<_>>() {
                if matches!(&worker, Member::Worker(device) if device.node == *node) {
                    self.die(now, &worker, false);
                }
            }
        }
    }
}

fn node_of(member: &Member) -> &str {
    match member {
        Member::Agent(node) => node,
        Member::Worker(device) => &device.node,
    }
}

fn device(node: &str, index: u32) -> DeviceId {
    DeviceId { node: node.into(), index }
}

fn members() -> Vec<Member> {
    let node = |name: &str| {
        let workers = (0..2).map(|index| Member::Worker(device(name, index)));
        workers.chain([Member::Agent(name.into())]).collect::<Vec<_>>()
    };
    ["a", "b"].into_iter().flat_map(node).collect()
}

fn membership() -> Membership {
    let mut manifest = Manifest::in_process(ModelSource::Builtin, 2, 1);
    manifest.nodes[0].name = "a".into();
    let second = NodeSection { name: "b".into(), ..manifest.nodes[0].clone() };
    manifest.nodes.push(second);
    manifest.health.suspect_ms = SUSPECT.as_millis() as u32;
    manifest.health.dead_ms = DEAD.as_millis() as u32;
    Membership::new(&manifest)
}

/// An event, and milliseconds before it.
fn any_event() -> impl Strategy<Value = (u64, E)> {
    let who = (0..6usize, 1..12u64, 0..3u64);
    let pause = prop_oneof![40 => 0..400u64, 1 => 20_000..70_000u64];
    (0..18u8, who, pause).prop_map(|(kind, (member_index, process, session), pause)| {
        let member = members()[member_index].clone();
        let incarnation = Incarnation(Incarnation::at(process).0 + session);
        let node = node_of(&member).to_owned();
        let (address, reason) = (String::new(), String::new());
        let event = match kind {
            0..=3 => E::Joined { member, incarnation, address },
            4..=5 => E::Heard { member, incarnation },
            6 => E::SessionClosed { member, incarnation, reason },
            7 => {
                let device = device(&node, process as u32 % 2);
                E::WorkerExited { device, incarnation, status: String::new() }
            }
            8 => E::Leave { node, drain: Duration::from_millis(process * 200) },
            9 => E::Vacated { node },
            10 if process == 1 => E::ForceLeave { node },
            10 => E::Admitted { node, devices: 2 },
            12..=13 => {
                let ends = ["a", "b"].map(|node| [device(node, 0), device(node, 1)]).concat();
                let (by, to) = (ends[member_index % 4].clone(), ends[process as usize % 4].clone());
                E::LinkLost { by, to }
            }
            14 => E::Unlinked { by: device(&node, process as u32 % 2) },
            11 => E::Hung { device: device(&node, process as u32 % 2), milliseconds: 9 },
            _ => E::Tick,
        };
        (pause, event)
    })
}

proptest! {
    #[test]
    fn the_engine_agrees_with_the_oracle_and_tells_every_change_once(
        events in prop::collection::vec(any_event(), 0..120)
    ) {
        let (mut engine, members) = (membership(), members());
        let (mut history, mut now) = (Vec::new(), Now::ZERO);
        let (mut told, mut releases) = (BTreeSet::new(), BTreeMap::new());
        for (pause, event) in events {
            now += Duration::from_millis(pause);
            history.push((now, event.clone()));
            for command in engine.handle(now, event) {
                match command {
                    C::DeviceReady(device) => {
                        prop_assert!(told.insert(device.clone()), "{device} is ready twice");
                        releases.remove(&device.node);
                    }
                    C::DeviceLost(device, _) => {
                        prop_assert!(told.remove(&device), "{device} was not ready and is lost");
                    }
                    C::Release(node) => {
                        let again = releases.insert(node.clone(), now).is_some();
                        prop_assert!(!again, "{node} is released twice in one life");
                        // What it still had nobody counts on any more.
                        told.retain(|device: &DeviceId| device.node != node);
                    }
                    C::Accept(Member::Agent(node), _) => { releases.remove(&node); }
                    _ => {}
                }
            }
            let oracle = Oracle::replay(&members, &history);
            let cuts: BTreeSet<_> = engine.cuts().into_iter().collect();
            for (a, b) in [("a", "a"), ("a", "b"), ("b", "b")] {
                for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| (device(a, i), device(b, j))) {
                    let expected = a < b && oracle.is_cut(&a, &b);
                    prop_assert!(a >= b || cuts.contains(&pair(a, b)) == expected, "cuts {:?} after {:?}", cuts, history);
                }
            }
            for node in ["a", "b"] {
                for index in 0..2 {
                    let device = device(node, index);
                    let expected = oracle.is_ready(&device);
                    prop_assert_eq!(engine.is_ready(&device), expected, "{} after {:?}", device, history);
                    prop_assert_eq!(told.contains(&device), expected, "{} told after {:?}", device, history);
                }
            }
        }
    }
}
