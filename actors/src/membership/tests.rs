//! Membership by behaviour: tables of single events, and random histories against the invariants.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::MembershipCommand as C;
use super::MembershipEvent as E;
use super::*;
use crate::request::ModelSource;

const SUSPECT_MS: u64 = 800;
const DEAD_MS: u64 = 1500;
const TICK_MS: u64 = 100;

/// Nodes `a` and `b` with two devices each.
fn manifest() -> Manifest {
    let mut manifest = Manifest::in_process(ModelSource::Builtin, 2, 1);
    manifest.nodes[0].name = "a".into();
    let mut second = manifest.nodes[0].clone();
    second.name = "b".into();
    manifest.nodes.push(second);
    manifest.health.suspect_ms = SUSPECT_MS as u32;
    manifest.health.dead_ms = DEAD_MS as u32;
    manifest
}

fn device(node: &str, index: u32) -> DeviceId {
    DeviceId { node: node.into(), index }
}

fn agent(node: &str) -> Member {
    Member::Agent(node.into())
}

fn worker(node: &str, index: u32) -> Member {
    Member::Worker(device(node, index))
}

fn joined(member: Member, incarnation: u64) -> E {
    E::Joined { member, incarnation: Incarnation::at(incarnation), address: "here".into() }
}

fn ms(milliseconds: u64) -> Now {
    Now::from_millis(milliseconds)
}

/// Node `a` with both devices ready at time 0.
fn with_node_a() -> Membership {
    let mut membership = Membership::new(&manifest());
    for member in [agent("a"), worker("a", 0), worker("a", 1)] {
        membership.handle(ms(0), joined(member, 1));
    }
    membership
}

#[test]
fn a_link_that_both_ends_have_lost_counts_as_cut_and_one_to_the_dead_does_not() {
    let mut membership = with_node_a();
    let lost = |by: u32, to: u32| E::LinkLost { by: device("a", by), to: device("a", to) };
    assert_eq!(membership.handle(ms(10), lost(0, 1)), []);
    assert_eq!(membership.handle(ms(20), lost(1, 0)), [C::CutsChanged]);
    assert_eq!(membership.cuts(), [pair(device("a", 0), device("a", 1))]);
    let mut membership = with_node_a();
    let closed = E::SessionClosed {
        member: worker("a", 1),
        incarnation: Incarnation::at(1),
        reason: "killed".into(),
    };
    membership.handle(ms(5), closed);
    for at in [10, 20] {
        assert_eq!(membership.handle(ms(at), lost(0, 1)), []);
    }
    assert_eq!(membership.cuts(), []);
}

/// Ticks until `until`; `(time, command)` of everything that came out.
fn tick(membership: &mut Membership, from: u64, until: u64) -> Vec<(u64, C)> {
    (from..=until)
        .step_by(TICK_MS as usize)
        .flat_map(|now| membership.handle(ms(now), E::Tick).into_iter().map(move |c| (now, c)))
        .collect()
}

#[test]
fn a_device_is_ready_once_its_agent_and_its_worker_are_there() {
    for order in [[agent("a"), worker("a", 0)], [worker("a", 0), agent("a")]] {
        let mut membership = Membership::new(&manifest());
        let first = membership.handle(ms(0), joined(order[0].clone(), 1));
        assert!(!first.iter().any(|command| matches!(command, C::DeviceReady(_))));
        let second = membership.handle(ms(1), joined(order[1].clone(), 1));
        assert!(second.contains(&C::DeviceReady(device("a", 0))));
        assert!(membership.is_ready(&device("a", 0)));
    }
}

#[test]
fn strangers_and_old_incarnations_are_refused() {
    let mut membership = with_node_a();
    let table = [
        (agent("z"), 1, Refusal::Unknown(agent("z"))),
        (worker("a", 7), 1, Refusal::Unknown(worker("a", 7))),
        (
            worker("a", 0),
            1,
            Refusal::Stale {
                member: worker("a", 0),
                offered: Incarnation::at(1),
                current: Incarnation::at(1),
            },
        ),
        (
            agent("a"),
            0,
            Refusal::Stale {
                member: agent("a"),
                offered: Incarnation::at(0),
                current: Incarnation::at(1),
            },
        ),
    ];
    for (member, incarnation, refusal) in table {
        let commands = membership.handle(ms(1), joined(member.clone(), incarnation));
        assert_eq!(commands, [C::Refuse(member, Incarnation::at(incarnation), refusal)]);
    }
}

#[test]
fn an_exit_is_a_loss_at_once_and_names_the_status() {
    let mut membership = with_node_a();
    let status = "signal: 9 (SIGKILL)".to_string();
    let commands = membership.handle(
        ms(5),
        E::WorkerExited {
            device: device("a", 1),
            incarnation: Incarnation::at(1),
            status: status.clone(),
        },
    );
    let loss = Loss::Exited { status };
    assert_eq!(
        commands,
        [
            C::CloseSession(worker("a", 1), Incarnation::at(1), loss.clone()),
            C::DeviceLost(device("a", 1), loss)
        ]
    );
    assert!(membership.is_ready(&device("a", 0)));
}

#[test]
fn a_late_exit_report_does_not_hit_the_restarted_worker() {
    let mut membership = with_node_a();
    membership.handle(ms(5), joined(worker("a", 1), 2));
    let commands = membership.handle(
        ms(6),
        E::WorkerExited {
            device: device("a", 1),
            incarnation: Incarnation::at(1),
            status: "exit status: 1".into(),
        },
    );
    assert_eq!(commands, []);
    assert!(membership.is_ready(&device("a", 1)));
}

#[test]
fn a_restart_loses_the_old_life_before_the_new_one_is_ready() {
    let mut membership = with_node_a();
    let commands = membership.handle(ms(5), joined(worker("a", 0), 2));
    let loss = Loss::Replaced { by: Incarnation::at(2) };
    assert_eq!(
        commands,
        [
            C::CloseSession(worker("a", 0), Incarnation::at(1), loss.clone()),
            C::DeviceLost(device("a", 0), loss),
            C::Accept(worker("a", 0), Incarnation::at(2)),
            C::DeviceReady(device("a", 0)),
        ]
    );
}

#[test]
fn silence_makes_suspect_then_dead_and_takes_the_devices_along() {
    let mut membership = with_node_a();
    let mut commands = Vec::new();
    for now in (TICK_MS..=2000).step_by(TICK_MS as usize) {
        for index in [0, 1] {
            membership.handle(
                ms(now),
                E::Heard { member: worker("a", index), incarnation: Incarnation::at(1) },
            );
        }
        commands.extend(tick(&mut membership, now, now));
    }
    assert_eq!(commands[0], (SUSPECT_MS, C::Suspect(agent("a"), ms(SUSPECT_MS))));
    let silent = Loss::Silent { milliseconds: DEAD_MS };
    assert_eq!(commands[2], (DEAD_MS, C::NodeLost("a".into(), silent.clone())));
    let cause = Loss::Node { node: "a".into(), cause: Box::new(silent) };
    for index in [0, 1] {
        assert!(commands.contains(&(DEAD_MS, C::DeviceLost(device("a", index), cause.clone()))));
    }
    assert!(cause.to_string().contains("node a was lost: silent for 1500 ms"));
}

#[test]
fn a_suspect_that_is_heard_again_recovers() {
    let mut membership = with_node_a();
    tick(&mut membership, TICK_MS, SUSPECT_MS);
    let heard = E::Heard { member: agent("a"), incarnation: Incarnation::at(1) };
    assert_eq!(membership.handle(ms(SUSPECT_MS + 1), heard), [C::Recovered(agent("a"))]);
    assert_eq!(membership.describe(&agent("a")), "alive");
}

#[test]
fn a_coordinator_that_slept_blames_nobody() {
    let mut membership = with_node_a();
    tick(&mut membership, TICK_MS, TICK_MS);
    assert_eq!(tick(&mut membership, 60_000, 60_000 + SUSPECT_MS - TICK_MS), []);
}

#[test]
fn a_node_that_comes_back_is_ready_again() {
    let mut membership = with_node_a();
    membership.handle(
        ms(1),
        E::SessionClosed {
            member: agent("a"),
            incarnation: Incarnation::at(1),
            reason: "connection reset".into(),
        },
    );
    assert!(!membership.is_ready(&device("a", 0)));
    membership.handle(ms(2), joined(agent("a"), 2));
    let commands = membership.handle(ms(3), joined(worker("a", 0), 2));
    assert!(commands.contains(&C::DeviceReady(device("a", 0))));
}

/// A worker that dies again and again: what its last life is told when it joins.
fn flap(membership: &mut Membership, device: &DeviceId) -> Vec<C> {
    let mut last = Vec::new();
    for life in 2..2 + flapping::FLAPS_MAX as u64 {
        let (member, status) = (Member::Worker(device.clone()), "killed".to_owned());
        let incarnation = membership.incarnation(&member);
        let exited = E::WorkerExited { device: device.clone(), incarnation, status };
        membership.handle(ms(life), exited);
        last = membership.handle(ms(life), joined(member, life));
    }
    last
}

fn exited(membership: &Membership, index: u32) -> E {
    let (device, status) = (device("a", index), "killed".to_owned());
    E::WorkerExited { incarnation: membership.incarnation(&worker("a", index)), device, status }
}

#[test]
fn a_device_that_flaps_is_not_counted_on_unless_it_is_the_last_one() {
    let mut membership = with_node_a();
    let flapping = device("a", 0);
    let told = flap(&mut membership, &flapping);
    assert!(!told.contains(&C::DeviceReady(flapping.clone())), "{told:?}");
    assert!(!membership.is_ready(&flapping));
    // The other one dies: the first is better than none.
    let other = exited(&membership, 1);
    let told = membership.handle(ms(20), other);
    assert!(told.contains(&C::DeviceReady(flapping.clone())), "{told:?}");
    assert!(membership.is_ready(&flapping));
    // One that is alone is not quarantined however often it dies.
    let mut alone = Membership::new(&manifest());
    for member in [agent("a"), worker("a", 0)] {
        alone.handle(ms(0), joined(member, 1));
    }
    let told = flap(&mut alone, &flapping);
    assert!(told.contains(&C::DeviceReady(flapping)), "{told:?}");
}

/// A quarantine that ends does not keep a device whose node leaves.
#[test]
fn a_device_that_is_ready_again_on_a_node_that_leaves_is_told_to_leave_again() {
    let mut membership = with_node_a();
    let flapping = device("a", 0);
    flap(&mut membership, &flapping);
    let drain = Duration::from_secs(60);
    membership.handle(ms(10), E::Leave { node: "a".into(), drain });
    let other = exited(&membership, 1);
    let told = membership.handle(ms(20), other);
    let place = |command: &C| told.iter().position(|told| told == command);
    let ready = place(&C::DeviceReady(flapping.clone()));
    assert!(ready.is_some() && ready < place(&C::DeviceLeaving(flapping)), "{told:?}");
}

#[test]
fn a_node_that_was_declared_gone_before_a_restart_stays_out_until_it_is_admitted() {
    let mut membership = Membership::new(&manifest()).without("b");
    assert!(membership.describe(&agent("b")).contains("forced"));
    for member in [agent("b"), worker("b", 0)] {
        let told = membership.handle(ms(0), joined(member, 5));
        assert!(matches!(told.as_slice(), [C::Refuse(_, _, Refusal::Forced(_))]), "{told:?}");
    }
    membership.handle(ms(1), E::Admitted { node: "b".into(), devices: 2 });
    membership.handle(ms(2), joined(agent("b"), 6));
    let told = membership.handle(ms(2), joined(worker("b", 0), 6));
    assert!(told.contains(&C::DeviceReady(device("b", 0))), "{told:?}");
}

fn any_event() -> impl Strategy<Value = E> {
    let member = prop_oneof![
        prop_oneof![Just("a"), Just("b")].prop_map(agent),
        (prop_oneof![Just("a"), Just("b")], 0..2u32).prop_map(|(node, index)| worker(node, index)),
    ];
    (member, 1..6u64, 0..8u8).prop_map(|(member, incarnation, kind)| {
        let at = Incarnation::at(incarnation);
        match (kind, member) {
            (0..=2, member) => joined(member, incarnation),
            (3, member) => E::SessionClosed { member, incarnation: at, reason: "closed".into() },
            (4, Member::Worker(device)) => {
                E::WorkerExited { device, incarnation: at, status: "exit status: 1".into() }
            }
            (5, _) => E::Tick,
            (_, member) => E::Heard { member, incarnation: at },
        }
    })
}

proptest! {
    #[test]
    fn ready_and_lost_alternate_and_incarnations_only_grow(
        history in prop::collection::vec((any_event(), 0..700u64), 0..200)
    ) {
        let mut membership = Membership::new(&manifest());
        let mut ready: BTreeMap<DeviceId, bool> = BTreeMap::new();
        let mut newest: BTreeMap<Member, Incarnation> = BTreeMap::new();
        let mut now = 0;
        for (event, later) in history {
            now += later;
            for command in membership.handle(ms(now), event) {
                match command {
                    C::DeviceReady(device) => {
                        prop_assert_ne!(ready.insert(device, true), Some(true));
                    }
                    C::DeviceLost(device, _) => {
                        prop_assert_eq!(ready.insert(device, false), Some(true));
                    }
                    C::Accept(member, incarnation) => {
                        let before = newest.insert(member, incarnation);
                        prop_assert!(before.is_none_or(|before| before < incarnation));
                    }
                    _ => {}
                }
            }
            for (device, ready) in &ready {
                prop_assert_eq!(membership.is_ready(device), *ready);
            }
        }
    }
}
