//! Formation by behaviour.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::FormationCommand as C;
use super::FormationEvent as E;
use super::*;
use crate::coordinator::mesh_plan::exactly;
use crate::membership::cuts::{Pair, pair};

const OPEN: MeshNeed = MeshNeed::Open { guided: true };

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

fn lost(replica: u64, cause: &str, retry: Retry) -> E {
    E::ReplicaLost { replica, cause: cause.into(), retry, unfit: None }
}

/// All devices as one pipeline.
fn one_pipeline(devices: &[DeviceId]) -> MeshPlans {
    let plan = MeshPlan {
        degrees: stages(devices.len() as u32, 1),
        num_pipeline_patch: None,
        step: None,
        devices: devices.to_vec(),
        around_cuts: false,
    };
    let plan = if devices.is_empty() { Err(NoMesh::NoDevice) } else { Ok(plan) };
    MeshPlans { guided: plan.clone(), unguided: plan, exact: None }
}

/// Pipelines of two, as many as there are.
fn pairs(devices: &[DeviceId]) -> MeshPlans {
    let replicas = devices.len() / 2;
    let plan = match replicas {
        0 => Err(NoMesh::NoDevice),
        _ => Ok(MeshPlan {
            degrees: stages(2, replicas as u32),
            num_pipeline_patch: None,
            step: None,
            devices: devices.iter().take(2 * replicas).cloned().collect(),
            around_cuts: false,
        }),
    };
    MeshPlans { guided: plan.clone(), unguided: plan, exact: None }
}

/// Formation with somebody who answers its `Plan`s at once.
struct Planned {
    formation: Formation,
    planner: fn(&[DeviceId]) -> MeshPlans,
    cut: Vec<Pair>,
}

impl Planned {
    /// The commands of an event, those to plan and to tell the dispatcher of open meshes apart.
    fn handle(&mut self, event: E) -> Vec<C> {
        let mut all = Vec::new();
        let mut commands = self.formation.handle(event);
        while !commands.is_empty() {
            let mut next = Vec::new();
            for command in commands {
                match command {
                    C::Plan(Question { number, devices, exact }) => {
                        let of =
                            |degrees| (degrees, exactly(degrees, &devices, &self.cut, &[(0, 1)]));
                        let plans = MeshPlans { exact: exact.map(of), ..(self.planner)(&devices) };
                        let plans = Box::new(plans);
                        next.extend(self.formation.handle(E::Planned { number, plans }));
                    }
                    C::Open(_) => {}
                    command => all.push(command),
                }
            }
            commands = next;
        }
        all
    }

    /// A group of `count` devices, all ready; and the commands of the last event.
    fn all_ready(count: u32, planner: fn(&[DeviceId]) -> MeshPlans) -> (Self, Vec<C>) {
        let formation = Formation::new((0..count).map(device).collect(), OPEN, 0);
        let mut planned = Self { formation, planner, cut: Vec::new() };
        let mut last = Vec::new();
        for index in 0..count {
            last = planned.handle(ready(index));
        }
        (planned, last)
    }

    /// As [`Self::all_ready`], formed.
    fn all_formed(count: u32, planner: fn(&[DeviceId]) -> MeshPlans) -> Self {
        let (mut planned, last) = Self::all_ready(count, planner);
        for command in last {
            if let C::Form(order) = command {
                planned.handle(E::Formed(order.replica));
            }
        }
        planned
    }
}

fn form(replica: u64, data: u32, degrees: Degrees, indices: &[u32]) -> C {
    let (num_pipeline_patch, beside) = (None, false);
    let devices = devices(indices);
    let step = None;
    C::Form(FormOrder { replica, data, degrees, num_pipeline_patch, step, devices, beside })
}

fn form_beside(replica: u64, data: u32, degrees: Degrees, indices: &[u32]) -> C {
    let C::Form(order) = form(replica, data, degrees, indices) else { unreachable!() };
    C::Form(FormOrder { beside: true, ..order })
}

fn is_dissolved(command: &C, id: u64) -> bool {
    matches!(command, C::Dissolve { replica, .. } if *replica == id)
}

#[test]
fn the_mesh_forms_when_the_last_expected_device_is_ready() {
    let formation = Formation::new(devices(&[0, 1]), OPEN, 0);
    let mut planned = Planned { formation, planner: one_pipeline, cut: Vec::new() };
    assert_eq!(planned.handle(ready(1)), [C::Absent { cause: "waiting for device a/0".into() }]);
    assert_eq!(planned.handle(ready(0)), [form(1, 0, stages(2, 1), &[0, 1])]);
    assert_eq!(planned.handle(E::Formed(1)), [C::Ready { replica: 1, degrees: stages(2, 1) }]);
    assert_eq!(planned.formation.complete(), Some(vec![1]));
    assert!(planned.formation.is_seated(&device(0)));
}

/// The devices have changed since the planner was asked.
#[test]
fn an_answer_to_an_older_question_is_not_taken() {
    let mut formation = Formation::new(devices(&[0, 1]), OPEN, 0);
    let mut asked = |event: E| {
        let commands = formation.handle(event);
        commands.into_iter().find_map(|command| match command {
            C::Plan(question) => Some((question.number, one_pipeline(&question.devices))),
            _ => None,
        })
    };
    asked(ready(0));
    let (first, both) = asked(ready(1)).expect("two devices are planned for");
    let (second, one) = asked(E::DeviceLost(device(1))).expect("one is planned for");
    let late = formation.handle(E::Planned { number: first, plans: Box::new(both) });
    assert!(late.is_empty(), "{late:?}");
    let answered = formation.handle(E::Planned { number: second, plans: Box::new(one) });
    assert!(answered.contains(&form(1, 0, stages(1, 1), &[0])), "{answered:?}");
}

#[test]
fn devices_that_never_came_are_not_waited_for_for_ever() {
    let formation = Formation::new(devices(&[0, 1]), OPEN, 0);
    let mut planned = Planned { formation, planner: one_pipeline, cut: Vec::new() };
    planned.handle(ready(1));
    assert_eq!(planned.handle(E::Settled), [form(1, 0, stages(1, 1), &[1])]);
}

#[test]
fn epochs_go_on_after_those_the_workers_have_seen() {
    let formation = Formation::new(devices(&[0]), OPEN, 0);
    let mut planned = Planned { formation, planner: one_pipeline, cut: Vec::new() };
    let commands = planned.handle(E::DeviceReady { device: device(0), epoch: 41 });
    assert_eq!(commands, [form(42, 0, stages(1, 1), &[0])]);
}

#[test]
fn survivors_of_a_loss_form_what_they_can_and_the_better_mesh_comes_beside_it() {
    let mut planned = Planned::all_formed(3, one_pipeline);
    assert_eq!(planned.handle(E::DeviceLost(device(1))), []);
    let cause = "device a/1 lost";
    let survivors = planned.handle(lost(1, cause, Retry::WhenReady));
    assert_eq!(survivors, [form(2, 0, stages(2, 1), &[0, 2])]);
    planned.handle(E::Formed(2));
    // Who was there stays where it was.
    assert_eq!(planned.handle(ready(1)), [form_beside(3, 0, stages(3, 1), &[0, 2, 1])]);
    assert_eq!(planned.formation.complete(), Some(vec![2]), "the old one serves meanwhile");
    assert_eq!(planned.handle(E::Formed(3)), [C::Retire { replica: 2 }]);
    let switch = planned.handle(E::Idle(2));
    assert!(is_dissolved(&switch[0], 2), "{switch:?}");
    assert_eq!(switch[1], C::Ready { replica: 3, degrees: stages(3, 1) });
    assert_eq!(planned.formation.complete(), Some(vec![3]));
}

#[test]
fn a_leaving_device_keeps_its_seat_until_the_next_mesh_is_there() {
    let mut planned = Planned::all_formed(3, one_pipeline);
    let leaving = planned.handle(E::DeviceLeaving(device(0)));
    assert_eq!(leaving, [form_beside(2, 0, stages(2, 1), &[1, 2])]);
    assert!(planned.formation.is_used(&device(0)));
    assert_eq!(planned.handle(E::Formed(2)), [C::Retire { replica: 1 }]);
    planned.handle(E::Idle(1));
    assert!(!planned.formation.is_used(&device(0)));
    assert_eq!(planned.handle(E::DeviceLost(device(0))), [], "it was not counted on any more");
}

#[test]
fn the_last_device_leaves_when_its_mesh_is_idle() {
    let mut planned = Planned::all_formed(1, one_pipeline);
    let leaving = planned.handle(E::DeviceLeaving(device(0)));
    assert_eq!(leaving[0], C::Retire { replica: 1 });
    let gone = planned.handle(E::Idle(1));
    assert!(is_dissolved(&gone[0], 1));
    assert_eq!(gone[1], C::Absent { cause: "no device is live".into() });
    assert_eq!(planned.handle(ready(0)), [form(2, 0, stages(1, 1), &[0])]);
}

#[test]
fn a_better_mesh_that_does_not_form_leaves_the_present_one_alone() {
    let mut planned = Planned::all_formed(1, one_pipeline);
    planned.handle(ready(1));
    let failed = planned.handle(lost(2, "the ranks do not agree", Retry::Never));
    assert_eq!(failed, []);
    assert_eq!(planned.formation.complete(), Some(vec![1]));
    assert_eq!(planned.handle(ready(2)), [form_beside(3, 0, stages(3, 1), &[0, 1, 2])]);
}

/// Where memory is short the present mesh ends its runs and goes before the next one is built.
#[test]
fn a_mesh_that_does_not_fit_beside_the_present_one_is_built_when_that_has_gone() {
    let mut planned = Planned::all_formed(2, one_pipeline);
    assert_eq!(planned.handle(ready(2)), [form_beside(2, 0, stages(3, 1), &[0, 1, 2])]);
    let cause = "device a/0 has 9 bytes, 5 too few for both meshes".to_owned();
    let first = planned.handle(E::NoRoomBeside { replica: 2, cause: cause.clone() });
    assert!(is_dissolved(&first[0], 2), "{first:?}");
    assert_eq!(first[1..], [C::Retire { replica: 1 }]);
    assert_eq!(planned.formation.complete(), Some(vec![1]), "until its last run has ended");
    let then = planned.handle(E::Idle(1));
    assert!(is_dissolved(&then[0], 1), "{then:?}");
    assert_eq!(then[1..], [form(3, 0, stages(3, 1), &[0, 1, 2])]);
    let degrees = stages(3, 1);
    assert_eq!(planned.handle(E::Formed(3)), [C::Ready { replica: 3, degrees }]);
    // What others need is looked at anew.
    assert_eq!(planned.handle(ready(3)), [form_beside(4, 0, stages(4, 1), &[0, 1, 2, 3])]);
    assert_eq!(planned.handle(E::NoRoomBeside { replica: 2, cause }), [], "that is long over");
}

#[test]
fn a_device_that_cannot_load_its_part_is_done_without() {
    let (mut planned, _) = Planned::all_ready(3, one_pipeline);
    let unfit = Some(device(1));
    let cause = "no weights".to_owned();
    let lost = E::ReplicaLost { replica: 1, cause, retry: Retry::Never, unfit };
    assert_eq!(planned.handle(lost), [form(2, 0, stages(2, 1), &[0, 2])]);
    let again = planned.handle(ready(1));
    assert_eq!(again[1..], [form(3, 0, stages(3, 1), &[0, 2, 1])], "another life, another try");
}

#[test]
fn other_degrees_dissolve_the_mesh_first() {
    let mut planned = Planned::all_formed(4, one_pipeline);
    let need = MeshNeed::Exactly(stages(2, 1));
    assert_eq!(planned.handle(E::Want(need)), [C::Retire { replica: 1 }]);
    let commands = planned.handle(E::Idle(1));
    assert!(is_dissolved(&commands[0], 1));
    assert_eq!(commands[1], form(2, 0, stages(2, 1), &[0, 1]));
    assert_eq!(planned.handle(E::Want(need)), [], "it is being formed already");
}

#[test]
fn degrees_that_a_request_names_go_around_a_cut_link_or_wait_for_it() {
    let mut planned = Planned::all_formed(3, one_pipeline);
    planned.cut = vec![pair(device(0), device(1))];
    let need = MeshNeed::Exactly(stages(2, 1));
    assert_eq!(planned.handle(E::Want(need)), [C::Retire { replica: 1 }]);
    let commands = planned.handle(E::Idle(1));
    assert_eq!(commands[1], form(2, 0, stages(2, 1), &[0, 2]));
    planned.handle(E::Formed(2));
    planned.handle(E::DeviceLost(device(2)));
    let commands = planned.handle(lost(2, "", Retry::WhenReady));
    let Some(C::Absent { cause }) = commands.last() else { panic!("{commands:?}") };
    assert!(cause.contains("what is cut between them leaves none: a/0 and a/1"), "{cause}");
    planned.cut.clear();
    assert_eq!(planned.handle(E::CutsChanged), [form(3, 0, stages(2, 1), &[0, 1])]);
}

#[test]
fn a_mesh_that_is_wanted_is_planned_before_others_give_way() {
    let mut planned = Planned::all_formed(3, one_pipeline);
    let need = MeshNeed::Exactly(stages(2, 1));
    let commands = planned.formation.handle(E::Want(need));
    let [C::Plan(Question { number, exact: Some(_), .. })] = commands.as_slice() else {
        panic!("{commands:?}")
    };
    assert_eq!(planned.formation.complete(), Some(vec![1]), "nothing gives way yet");
    assert_eq!(planned.formation.handle(E::Want(need)), [], "it is asked once");
    let plan = exactly(stages(2, 1), &devices(&[0, 1, 2]), &[], &[(0, 1)]);
    let plans = MeshPlans { exact: Some((stages(2, 1), plan)), ..one_pipeline(&[]) };
    let plans = Box::new(plans);
    let commands = planned.formation.handle(E::Planned { number: *number, plans });
    assert!(commands.contains(&C::Retire { replica: 1 }), "{commands:?}");
}

/// While a mesh is planned for the first of the queue, that may give up and the next one begin on
/// the meshes that stand: these end what they run, and all of them are known to be going before
/// anything is moved from one to another.
#[test]
fn replicas_that_give_way_for_other_degrees_are_all_retired_first() {
    let mut planned = Planned::all_formed(4, pairs);
    let commands = planned.handle(E::Want(MeshNeed::Exactly(stages(4, 1))));
    assert_eq!(commands, [C::Retire { replica: 1 }, C::Retire { replica: 2 }]);
    assert!(is_dissolved(&planned.handle(E::Idle(2))[0], 2));
    let commands = planned.handle(E::Idle(1));
    assert!(is_dissolved(&commands[0], 1));
    assert_eq!(commands[1], form(3, 0, stages(4, 1), &[0, 1, 2, 3]));
}

#[test]
fn what_failed_is_not_tried_again_by_itself() {
    let (mut planned, _) = Planned::all_ready(2, one_pipeline);
    assert_eq!(
        planned.handle(lost(1, "no weights", Retry::Never)),
        [C::Failed { mesh: OPEN, cause: "no weights".into() }]
    );
    assert_eq!(planned.formation.failure(), Some("no weights"));
    assert_eq!(planned.handle(E::Want(OPEN)), [form(2, 0, stages(2, 1), &[0, 1])]);
}

#[test]
fn links_are_tried_a_few_times_in_a_row_and_a_formed_mesh_starts_the_count_anew() {
    let (mut planned, _) = Planned::all_ready(2, one_pipeline);
    let lost = |replica| lost(replica, "no link", Retry::AFewTimes);
    for replica in 1..=3 {
        let again = [form(replica + 1, 0, stages(2, 1), &[0, 1])];
        assert_eq!(planned.handle(lost(replica)), again);
    }
    planned.handle(E::Formed(4));
    for replica in 4..=6 {
        let again = [form(replica + 1, 0, stages(2, 1), &[0, 1])];
        assert_eq!(planned.handle(lost(replica)), again);
    }
    assert_eq!(planned.handle(lost(7)), [C::Failed { mesh: OPEN, cause: "no link".into() }]);
}

#[test]
fn every_link_that_turns_out_to_be_cut_is_worth_as_many_tries_again() {
    let (mut planned, _) = Planned::all_ready(2, one_pipeline);
    let lost = |replica| lost(replica, "no link", Retry::AFewTimes);
    for replica in 1..=9 {
        if replica % 3 == 0 {
            planned.handle(E::CutsChanged);
        }
        let again = [form(replica + 1, 0, stages(2, 1), &[0, 1])];
        assert_eq!(planned.handle(lost(replica)), again, "{replica}");
    }
}

#[test]
fn replicas_have_devices_of_their_own_and_fail_alone() {
    let mut planned = Planned::all_formed(4, pairs);
    assert_eq!(planned.formation.complete(), Some(vec![1, 2]));
    planned.handle(E::DeviceLost(device(0)));
    assert_eq!(planned.handle(lost(1, "", Retry::WhenReady)), []);
    assert_eq!(planned.formation.complete(), Some(vec![2]), "one replica is the mesh of three");
    assert_eq!(planned.handle(ready(0)), [form(3, 0, stages(2, 2), &[0, 1])]);
}

/// The devices are the same, and who sits with whom is not.
#[test]
fn replicas_over_a_cut_link_are_not_of_the_mesh_that_goes_around_it() {
    fn crossed(devices: &[DeviceId]) -> MeshPlans {
        let [a, b, c, d] = devices else { return pairs(devices) };
        let apart = [a, c, b, d].map(DeviceId::clone);
        let around = |plan| MeshPlan { around_cuts: true, ..plan };
        let plan = pairs(&apart).guided.map(around);
        MeshPlans { guided: plan.clone(), unguided: plan, exact: None }
    }
    let (mut planned, _) = Planned::all_ready(4, pairs);
    planned.handle(E::Formed(1));
    planned.planner = crossed;
    let commands = planned.handle(E::CutsChanged);
    assert!(is_dissolved(&commands[0], 2), "it is not even formed: {commands:?}");
    let next = [form_beside(3, 0, stages(2, 2), &[0, 2]), form_beside(4, 1, stages(2, 2), &[1, 3])];
    assert_eq!(commands[1..], next);
}

#[test]
fn a_spare_changes_nothing() {
    let mut planned = Planned::all_formed(2, pairs);
    assert_eq!(planned.handle(ready(2)), []);
    planned.handle(E::DeviceLost(device(0)));
    let spare = planned.handle(lost(1, "", Retry::WhenReady));
    assert_eq!(spare, [form(2, 0, stages(2, 1), &[1, 2])]);
}

#[test]
fn news_of_a_dissolved_replica_is_ignored() {
    let (mut planned, _) = Planned::all_ready(2, one_pipeline);
    planned.handle(E::Want(MeshNeed::Exactly(stages(1, 1))));
    assert_eq!(planned.handle(lost(1, "late", Retry::Never)), []);
    assert_eq!(planned.handle(E::Formed(1)), []);
    assert_eq!(planned.formation.failure(), None);
}

#[test]
fn degrees_above_the_live_devices_say_who_is_away() {
    let mut planned = Planned::all_formed(2, one_pipeline);
    planned.handle(E::DeviceLost(device(0)));
    planned.handle(lost(1, "", Retry::WhenReady));
    let commands = planned.handle(E::Want(MeshNeed::Exactly(stages(2, 1))));
    let Some(C::Absent { cause }) = commands.last() else { panic!("{commands:?}") };
    assert!(cause.contains("needs 2 devices, 1 are live (without a/0)"), "{cause}");
}

#[test]
fn a_device_that_stays_after_all_does_not_sit_in_the_next_mesh_too() {
    let (mut planned, _) = Planned::all_ready(4, pairs);
    planned.handle(E::Formed(1));
    planned.handle(E::DeviceLeaving(device(1)));
    let stays = planned.handle(ready(1));
    assert!(stays.iter().any(|command| is_dissolved(command, 3)), "{stays:?}");
    assert!(stays.contains(&form(4, 1, stages(2, 2), &[2, 3])), "{stays:?}");
    let seats = planned.formation.serving.iter().chain(&planned.formation.next);
    let seats: Vec<_> = seats.flat_map(|replica| replica.devices.clone()).collect();
    assert_eq!(seats.iter().collect::<BTreeSet<_>>().len(), seats.len(), "{seats:?}");
}

proptest! {
    #[test]
    fn no_device_sits_twice_and_epochs_grow_and_the_idle_cluster_ends_on_its_target(
        history in prop::collection::vec((0..8u8, 0..5u32, 1..3u32), 0..120),
        many in any::<bool>(),
    ) {
        let planner = if many { pairs } else { one_pipeline };
        let (mut planned, first) = Planned::all_ready(4, planner);
        let (mut newest, mut forming) = (first.len() as u64, BTreeSet::new());
        forming.extend(1..=newest);
        let finish = (0..20).map(|_| (7, 0, 0));
        for (kind, index, depth) in history.into_iter().chain(finish) {
            let nth = |set: &BTreeSet<u64>| set.iter().nth(index as usize % set.len().max(1)).copied();
            let event = match kind {
                0 => ready(index),
                1 => E::DeviceLost(device(index)),
                2 => E::DeviceLeaving(device(index)),
                3 => E::Want(MeshNeed::Exactly(stages(depth, 1))),
                4 => E::Want(OPEN),
                5 => {
                    let retry = [Retry::WhenReady, Retry::AFewTimes, Retry::Never][index as usize % 3];
                    lost(nth(&forming).unwrap_or(newest), "lost", retry)
                }
                _ => match nth(&forming) {
                    Some(id) => E::Formed(id),
                    None => E::Want(planned.formation.wanted),
                },
            };
            if let E::Formed(id) | E::ReplicaLost { replica: id, .. } = &event {
                forming.remove(id);
            }
            let gone = if let E::DeviceLost(device) = &event { Some(device.clone()) } else { None };
            let mut commands = planned.handle(event);
            // The mesh of a lost device ends a moment later.
            let meshes = planned.formation.serving.iter().chain(&planned.formation.next);
            let ended = meshes.filter(|r| gone.as_ref().is_some_and(|gone| r.devices.contains(gone)));
            let ended: Vec<u64> = ended.map(|replica| replica.id).collect();
            for id in ended {
                forming.remove(&id);
                commands.extend(planned.handle(lost(id, "lost", Retry::WhenReady)));
            }
            while let Some(command) = commands.pop() {
                match command {
                    C::Form(order) => {
                        prop_assert!(order.replica > 0);
                        newest = newest.max(order.replica);
                        forming.insert(order.replica);
                    }
                    C::Retire { replica } => commands.extend(planned.handle(E::Idle(replica))),
                    C::Dissolve { replica, .. } => { forming.remove(&replica); }
                    _ => {}
                }
            }
            for mesh in [&planned.formation.serving, &planned.formation.next] {
                let seats: Vec<_> = mesh.iter().flat_map(|r| r.devices.clone()).collect();
                let distinct: BTreeSet<_> = seats.iter().cloned().collect();
                prop_assert_eq!(seats.len(), distinct.len());
            }
        }
        let formation = &planned.formation;
        prop_assert!(formation.next.is_empty(), "a switch never ends: {:?}", formation);
        if let Ok(target) = formation.target() {
            let full = formation.serving.len() == target.degrees.data_degree as usize;
            prop_assert!(full && formation.serving.iter().all(|r| r.is_of(&target, formation.is_exact()) && r.formed),
                "{:?}", formation);
        }
    }
}
