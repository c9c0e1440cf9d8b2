//! Formation by behaviour.

use proptest::prelude::*;

use super::FormationCommand as C;
use super::FormationEvent as E;
use super::*;

fn device(index: u32) -> DeviceId {
    DeviceId { node: "a".into(), index }
}

fn devices(indices: &[u32]) -> Vec<DeviceId> {
    indices.iter().map(|&index| device(index)).collect()
}

fn stages(pipefusion_degree: u32, data_degree: u32) -> Degrees {
    Degrees { pipefusion_degree, data_degree, ..Degrees::default() }
}

fn ready(index: u32) -> E {
    E::DeviceReady { device: device(index), epoch: 0 }
}

/// A group of `count` devices, all ready, which wants `degrees`; the commands of the last event.
fn all_ready(count: u32, degrees: Degrees) -> (Formation, Vec<C>) {
    let mut formation = Formation::new((0..count).map(device).collect(), degrees);
    let mut last = Vec::new();
    for index in 0..count {
        last = formation.handle(ready(index));
    }
    (formation, last)
}

fn form(replica: u64, data: u32, degrees: Degrees, indices: &[u32]) -> C {
    C::Form { replica, data, degrees, devices: devices(indices) }
}

#[test]
fn the_mesh_forms_when_the_last_device_it_needs_is_ready() {
    let mut formation = Formation::new(devices(&[0, 1]), stages(2, 1));
    assert_eq!(formation.handle(ready(1)), [C::Absent { cause: "waiting for device a/0".into() }]);
    assert_eq!(formation.handle(ready(0)), [form(1, 0, stages(2, 1), &[0, 1])]);
    assert_eq!(formation.handle(E::Formed(1)), [C::Ready { replica: 1, degrees: stages(2, 1) }]);
    assert!(formation.is_complete() && formation.is_seated(&device(0)));
}

#[test]
fn epochs_go_on_after_those_the_workers_have_seen() {
    let mut formation = Formation::new(devices(&[0]), stages(1, 1));
    let commands = formation.handle(E::DeviceReady { device: device(0), epoch: 41 });
    assert_eq!(commands, [form(42, 0, stages(1, 1), &[0])]);
}

#[test]
fn a_lost_device_is_waited_for_and_the_mesh_is_rebuilt() {
    let (mut formation, _) = all_ready(2, stages(2, 1));
    formation.handle(E::Formed(1));
    formation.handle(E::DeviceLost(device(1)));
    let lost =
        E::ReplicaLost { replica: 1, cause: "device a/1 lost".into(), retry: Retry::WhenReady };
    assert_eq!(
        formation.handle(lost),
        [C::Absent { cause: "waiting for lost device a/1 to come back".into() }]
    );
    assert_eq!(formation.handle(ready(1)), [form(2, 0, stages(2, 1), &[0, 1])]);
}

#[test]
fn a_spare_takes_the_place_of_a_lost_device() {
    let (mut formation, _) = all_ready(3, stages(2, 1));
    formation.handle(E::DeviceLost(device(0)));
    let lost = E::ReplicaLost { replica: 1, cause: String::new(), retry: Retry::WhenReady };
    assert_eq!(formation.handle(lost), [form(2, 0, stages(2, 1), &[1, 2])]);
}

#[test]
fn other_degrees_dissolve_the_mesh_first() {
    let (mut formation, _) = all_ready(4, stages(4, 1));
    let commands = formation.handle(E::Want(stages(2, 1)));
    assert!(matches!(&commands[0], C::Dissolve { replica: 1, .. }));
    assert_eq!(commands[1], form(2, 0, stages(2, 1), &[0, 1]));
    assert_eq!(formation.handle(E::Want(stages(2, 1))), [], "it is being formed already");
}

#[test]
fn what_failed_is_not_tried_again_by_itself() {
    let (mut formation, _) = all_ready(2, stages(2, 1));
    let lost = E::ReplicaLost { replica: 1, cause: "no weights".into(), retry: Retry::Never };
    assert_eq!(
        formation.handle(lost),
        [C::Failed { degrees: stages(2, 1), cause: "no weights".into() }]
    );
    assert_eq!(formation.failure(), Some("no weights"));
    assert_eq!(formation.handle(E::Want(stages(2, 1))), [form(2, 0, stages(2, 1), &[0, 1])]);
}

#[test]
fn links_are_tried_a_few_times_in_a_row_and_a_formed_mesh_starts_the_count_anew() {
    let (mut formation, _) = all_ready(2, stages(2, 1));
    let lost =
        |replica| E::ReplicaLost { replica, cause: "no link".into(), retry: Retry::AFewTimes };
    for replica in 1..=3 {
        let again = [form(replica + 1, 0, stages(2, 1), &[0, 1])];
        assert_eq!(formation.handle(lost(replica)), again);
    }
    formation.handle(E::Formed(4));
    for replica in 4..=6 {
        let again = [form(replica + 1, 0, stages(2, 1), &[0, 1])];
        assert_eq!(formation.handle(lost(replica)), again);
    }
    assert_eq!(
        formation.handle(lost(7)),
        [C::Failed { degrees: stages(2, 1), cause: "no link".into() }]
    );
}

#[test]
fn replicas_have_devices_of_their_own_and_fail_alone() {
    let (mut formation, last) = all_ready(4, stages(2, 2));
    assert_eq!(last, [form(2, 1, stages(2, 2), &[2, 3])]);
    formation.handle(E::Formed(1));
    formation.handle(E::Formed(2));
    formation.handle(E::DeviceLost(device(0)));
    formation.handle(E::ReplicaLost { replica: 1, cause: String::new(), retry: Retry::WhenReady });
    assert!(formation.is_seated(&device(3)) && !formation.is_complete());
    assert_eq!(formation.handle(ready(0)), [form(3, 0, stages(2, 2), &[0, 1])]);
}

#[test]
fn news_of_a_dissolved_replica_is_ignored() {
    let (mut formation, _) = all_ready(2, stages(2, 1));
    formation.handle(E::Want(stages(1, 1)));
    let late = E::ReplicaLost { replica: 1, cause: "late".into(), retry: Retry::Never };
    assert_eq!(formation.handle(late), []);
    assert_eq!(formation.handle(E::Formed(1)), []);
    assert_eq!(formation.failure(), None);
}

#[test]
fn degrees_above_the_devices_say_so() {
    let (mut formation, _) = all_ready(2, stages(2, 1));
    let commands = formation.handle(E::Want(stages(8, 1)));
    assert!(matches!(
        commands.last(),
        Some(C::Absent { cause }) if cause.contains("than the 2 devices there are")
    ));
}

proptest! {
    #[test]
    fn no_device_sits_twice_and_epochs_grow(
        history in prop::collection::vec((0..5u8, 0..4u32, 1..3u32, 1..3u32), 0..100)
    ) {
        let (mut formation, _) = all_ready(4, stages(2, 1));
        let mut newest = 1;
        for (kind, index, depth, copies) in history {
            let event = match kind {
                0 => ready(index),
                1 => E::DeviceLost(device(index)),
                2 => E::Want(stages(depth, copies)),
                3 => E::Formed(newest),
                _ => E::ReplicaLost {
                    replica: newest,
                    cause: String::new(),
                    retry: [Retry::WhenReady, Retry::AFewTimes, Retry::Never][index as usize % 3],
                },
            };
            for command in formation.handle(event) {
                if let C::Form { replica, devices, .. } = command {
                    prop_assert!(replica > newest);
                    newest = replica;
                    prop_assert!(devices.iter().all(|device| formation.ready.contains(device)));
                }
            }
            let seats: Vec<_> = formation.replicas().flat_map(|r| r.devices.clone()).collect();
            let distinct: BTreeSet<_> = seats.iter().cloned().collect();
            prop_assert_eq!(seats.len(), distinct.len());
        }
    }
}
