//! The dispatcher by behaviour, and random histories against its invariants.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::DispatcherCommand as C;
use super::DispatcherEvent as E;
use super::*;

const WAIT_S: u64 = 60;

fn dispatcher() -> Dispatcher {
    Dispatcher::new(Duration::from_secs(WAIT_S))
}

fn degrees(pipefusion_degree: u32) -> Degrees {
    Degrees { pipefusion_degree, ..Degrees::default() }
}

/// One run of one picture at a time.
const ROOM: Room = Room { runs_max: 1, images_max: 1, bytes: None };

fn exactly(stages: u32) -> MeshNeed {
    MeshNeed::Exactly(degrees(stages))
}

fn need(stages: u32) -> Need {
    Need { mesh: exactly(stages), bytes: 1, shape: Some(7) }
}

fn start(run: RunNumber, requests: &[RequestId], replica: ReplicaId) -> C {
    C::Start { run, requests: requests.to_vec(), replica }
}

fn lost() -> GenerateError {
    GenerateError::Lost("device b/1 lost".into())
}

impl Dispatcher {
    fn at(&mut self, second: u64, event: E) -> Vec<C> {
        self.handle(Now::from_secs(second), event)
    }

    fn submit_now(&mut self, request: RequestId, stages: u32) -> Vec<C> {
        self.at(
            0,
            E::Submitted { request, need: need(stages), deadline: None, waited: Duration::ZERO },
        )
    }

    fn ready(&mut self, replica: ReplicaId, stages: u32) -> Vec<C> {
        self.ready_with(replica, stages, ROOM)
    }

    fn ready_with(&mut self, replica: ReplicaId, stages: u32, room: Room) -> Vec<C> {
        self.at(0, E::ReplicaReady { replica, degrees: degrees(stages), room })
    }
}

#[test]
fn a_request_without_a_mesh_asks_for_one_and_starts_on_it() {
    let mut dispatcher = dispatcher();
    assert_eq!(
        dispatcher.submit_now(1, 2),
        [C::Want { mesh: exactly(2) }, C::Queued { request: 1, ahead: 0 }]
    );
    assert_eq!(dispatcher.ready(7, 2), [start(1, &[1], 7)]);
    assert_eq!(dispatcher.running(), 1);
}

#[test]
fn one_request_per_replica_in_order_of_arrival() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    assert_eq!(dispatcher.submit_now(1, 2), [start(1, &[1], 7)]);
    assert_eq!(dispatcher.submit_now(2, 2), [C::Queued { request: 2, ahead: 1 }]);
    assert_eq!(dispatcher.submit_now(3, 2), [C::Queued { request: 3, ahead: 2 }]);
    assert_eq!(
        dispatcher.at(1, E::RunEnded { run: 1 }),
        [start(2, &[2], 7), C::Queued { request: 3, ahead: 1 }]
    );
}

#[test]
fn another_mesh_is_wanted_only_when_the_present_one_is_idle() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    assert_eq!(dispatcher.submit_now(2, 4), [C::Queued { request: 2, ahead: 1 }]);
    assert_eq!(
        dispatcher.submit_now(3, 2),
        [C::Queued { request: 3, ahead: 2 }],
        "nobody overtakes the request that waits for another mesh"
    );
    assert!(dispatcher.at(1, E::RunEnded { run: 1 }).contains(&C::Want { mesh: exactly(4) }));
}

#[test]
fn a_lost_replica_fails_its_request_and_keeps_the_others() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 2);
    let commands =
        dispatcher.at(1, E::ReplicaLost { replica: 7, going_on: Vec::new(), error: lost() });
    assert_eq!(commands[0], C::Fail { request: 1, error: lost() });
    assert!(commands.contains(&C::Want { mesh: exactly(2) }));
    assert_eq!(dispatcher.waiting(), 1);
    assert_eq!(dispatcher.ready(8, 2), [start(2, &[2], 8)]);
}

#[test]
fn requests_go_on_where_they_would_be_had_they_never_run() {
    let mut dispatcher = dispatcher();
    let room = Room { runs_max: 2, images_max: 2, bytes: None };
    dispatcher.ready_with(7, 2, room);
    for request in 1..=4 {
        dispatcher.submit_now(request, 2);
    }
    let there = Need { mesh: MeshNeed::Open { guided: true }, ..need(2) };
    let going_on = vec![(2, there), (1, there)];
    let commands = dispatcher.at(1, E::ReplicaLost { replica: 7, going_on, error: lost() });
    assert_eq!(commands[0], C::Want { mesh: there.mesh });
    let queued = [1, 2].map(|request| C::Queued { request, ahead: request as u32 - 1 });
    assert_eq!(commands[1..], queued);
    dispatcher.at(1, E::Open(OpenMeshes { guided: Some(degrees(1)), unguided: None }));
    let commands = dispatcher.ready_with(8, 1, room);
    assert_eq!(commands[0], start(3, &[1, 2], 8), "a run of its own, before those that waited");
    let late = E::ReplicaLost { replica: 7, going_on: vec![(1, there)], error: lost() };
    assert_eq!(dispatcher.at(2, late), [], "a replica is lost once");
}

#[test]
fn a_cancelled_run_keeps_its_replica_until_the_ranks_have_ended() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 2);
    let commands = dispatcher.at(1, E::Cancelled { request: 1 });
    assert_eq!(commands[0], C::Abort { run: 1, replica: 7 });
    assert_eq!(commands[1], C::Fail { request: 1, error: GenerateError::Cancelled });
    assert!(!commands.contains(&start(2, &[2], 7)));
    assert!(dispatcher.at(2, E::RunEnded { run: 1 }).contains(&start(2, &[2], 7)));
}

#[test]
fn a_waiting_request_can_be_cancelled() {
    let mut dispatcher = dispatcher();
    dispatcher.submit_now(1, 2);
    assert_eq!(
        dispatcher.at(1, E::Cancelled { request: 1 }),
        [C::Fail { request: 1, error: GenerateError::Cancelled }]
    );
    assert_eq!(dispatcher.waiting(), 0);
}

#[test]
fn the_queue_is_bounded() {
    let mut dispatcher = dispatcher();
    for request in 0..QUEUE_REQUESTS_MAX as u64 {
        dispatcher.submit_now(request, 1);
    }
    let refused = dispatcher.submit_now(9999, 1);
    assert!(matches!(
        &refused[0],
        C::Fail { request: 9999, error: GenerateError::Failed(cause) } if cause.contains("256")
    ));
    assert_eq!(dispatcher.waiting(), QUEUE_REQUESTS_MAX);
}

#[test]
fn a_mesh_that_cannot_form_fails_those_who_want_it() {
    let mut dispatcher = dispatcher();
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 4);
    let error = GenerateError::Failed("no weights".into());
    let commands = dispatcher.at(1, E::FormFailed { mesh: exactly(2), error: error.clone() });
    assert_eq!(commands[0], C::Fail { request: 1, error });
    assert_eq!(commands[1], C::Want { mesh: exactly(4) });
}

#[test]
fn nobody_waits_for_a_mesh_forever() {
    let mut dispatcher = dispatcher();
    dispatcher.submit_now(1, 2);
    dispatcher.at(1, E::MeshAbsent { cause: "waiting for device b/1".into() });
    let told = dispatcher.at(WAIT_S - 1, E::Tick);
    assert!(matches!(told.as_slice(), [C::Waits { request: 1, .. }]), "{told:?}");
    let commands = dispatcher.at(WAIT_S, E::Tick);
    assert!(matches!(
        &commands[0],
        C::Fail { request: 1, error: GenerateError::Expired(cause) } if cause.contains("b/1")
    ));
}

#[test]
fn open_requests_run_on_the_mesh_of_the_moment() {
    const OPEN: MeshNeed = MeshNeed::Open { guided: true };
    let mut dispatcher = dispatcher();
    let submit = |dispatcher: &mut Dispatcher, request| {
        dispatcher.at(
            0,
            E::Submitted {
                request,
                need: Need { mesh: OPEN, ..need(0) },
                deadline: None,
                waited: Duration::ZERO,
            },
        )
    };
    let meshes = |stages| {
        let guided = Some(Degrees { data_degree: 2, ..degrees(stages) });
        E::Open(OpenMeshes { guided, unguided: None })
    };
    assert_eq!(submit(&mut dispatcher, 1)[0], C::Want { mesh: OPEN });
    dispatcher.at(0, meshes(2));
    assert_eq!(dispatcher.ready(7, 2), [start(1, &[1], 7)], "one replica of two is the mesh too");
    submit(&mut dispatcher, 2);
    dispatcher.at(1, meshes(4));
    let ended = dispatcher.at(1, E::RunEnded { run: 1 });
    assert_eq!(ended[0], C::Want { mesh: OPEN }, "the old mesh does not serve any more");
    assert_eq!(dispatcher.ready(8, 4), [start(2, &[2], 8)]);
}

#[test]
fn a_retired_replica_ends_its_run_takes_no_other_and_is_named_idle_once() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    assert_eq!(dispatcher.at(0, E::Retired { replica: 7 }), []);
    assert_eq!(dispatcher.submit_now(2, 2), [C::Queued { request: 2, ahead: 1 }]);
    let ended = dispatcher.at(1, E::RunEnded { run: 1 });
    assert!(ended.contains(&C::Idle { replica: 7 }), "{ended:?}");
    assert!(!ended.contains(&start(2, &[2], 7)));
    assert!(!dispatcher.at(1, E::Retired { replica: 7 }).contains(&C::Idle { replica: 7 }));
    assert_eq!(dispatcher.ready(8, 2), [start(2, &[2], 8)]);
}

#[test]
fn a_request_whose_mesh_cannot_be_had_ends_and_the_others_go_on() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 8);
    dispatcher.submit_now(2, 2);
    dispatcher.at(0, E::MeshAbsent { cause: "2 devices are live".into() });
    let commands = dispatcher.at(WAIT_S, E::Tick);
    assert!(matches!(&commands[0], C::Fail { request: 1, error: GenerateError::Expired(_) }));
    assert_eq!(commands[1], start(1, &[2], 7), "the mesh that was there all the time");
}

#[test]
fn a_request_that_waits_for_a_long_run_is_not_starved() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 4);
    assert_eq!(dispatcher.at(10 * WAIT_S, E::Tick), []);
    dispatcher.at(10 * WAIT_S, E::RunEnded { run: 1 });
    let told = dispatcher.at(11 * WAIT_S - 1, E::Tick);
    assert!(matches!(told.as_slice(), [C::Waits { request: 2, .. }]), "{told:?}");
    assert!(matches!(dispatcher.at(11 * WAIT_S, E::Tick)[0], C::Fail { request: 2, .. }));
}

#[test]
fn a_second_run_shares_a_replica_that_has_room_and_a_third_waits() {
    let mut dispatcher = dispatcher();
    let room = Room { runs_max: 2, ..ROOM };
    dispatcher.ready_with(7, 2, room);
    dispatcher.ready_with(8, 2, room);
    assert_eq!(dispatcher.submit_now(1, 2), [start(1, &[1], 7)]);
    assert_eq!(dispatcher.submit_now(2, 2), [start(2, &[2], 8)], "an idle replica comes first");
    assert_eq!(dispatcher.submit_now(3, 2), [start(3, &[3], 7)]);
    assert_eq!(dispatcher.submit_now(4, 2), [start(4, &[4], 8)]);
    assert_eq!(dispatcher.submit_now(5, 2), [C::Queued { request: 5, ahead: 4 }]);
    assert_eq!(dispatcher.at(1, E::RunEnded { run: 1 }), [start(5, &[5], 7)]);
    let lost = dispatcher.at(2, E::ReplicaLost { replica: 7, going_on: Vec::new(), error: lost() });
    let failed = |request| C::Fail { request, error: super::tests::lost() };
    assert_eq!(lost, [failed(3), failed(5)]);
}

#[test]
fn a_second_run_that_does_not_fit_the_memory_waits_and_the_first_is_tried() {
    let mut dispatcher = dispatcher();
    dispatcher.ready_with(7, 2, Room { runs_max: 2, images_max: 4, bytes: Some(10) });
    let submit = |dispatcher: &mut Dispatcher, request, bytes| {
        dispatcher.at(
            0,
            E::Submitted {
                request,
                need: Need { bytes, ..need(2) },
                deadline: None,
                waited: Duration::ZERO,
            },
        )
    };
    assert_eq!(submit(&mut dispatcher, 1, 11), [start(1, &[1], 7)]);
    assert_eq!(submit(&mut dispatcher, 2, 6), [C::Queued { request: 2, ahead: 1 }]);
    assert_eq!(submit(&mut dispatcher, 3, 4), [C::Queued { request: 3, ahead: 2 }]);
    assert_eq!(
        dispatcher.at(1, E::RunEnded { run: 1 }),
        [start(2, &[2], 7), start(3, &[3], 7)],
        "6 and 4 fit, and are not one run"
    );
}

#[test]
fn equals_that_wait_become_one_run_dealt_to_idle_replicas() {
    let mut dispatcher = dispatcher();
    for request in 1..=7 {
        dispatcher.submit_now(request, 2);
    }
    let other = Need { shape: Some(8), ..need(2) };
    dispatcher
        .at(0, E::Submitted { request: 8, need: other, deadline: None, waited: Duration::ZERO });
    dispatcher.submit_now(9, 2);
    let room = Room { images_max: 4, ..ROOM };
    let first = dispatcher.ready_with(7, 2, room);
    assert_eq!(first[0], start(1, &[1, 2, 3, 4], 7));
    let second = dispatcher.ready_with(8, 2, room);
    assert_eq!(second[0], start(2, &[5, 6, 7], 8), "the eighth is of another shape");
    assert_eq!(dispatcher.at(1, E::RunEnded { run: 1 })[0], start(3, &[8], 7));
    assert_eq!(dispatcher.running(), 4);
    for request in 5..=6 {
        let commands = dispatcher.at(2, E::Cancelled { request });
        assert_eq!(commands[0], C::Fail { request, error: GenerateError::Cancelled });
    }
    let last = dispatcher.at(2, E::Cancelled { request: 7 });
    assert_eq!(last[0], C::Abort { run: 2, replica: 8 });
}

#[test]
fn a_request_that_is_withheld_starts_once_it_is_released_with_what_it_needs_then() {
    let mut dispatcher = dispatcher();
    dispatcher.ready_with(7, 2, Room { images_max: 4, ..ROOM });
    assert!(dispatcher.at(0, E::Withheld { request: 1 }).is_empty());
    assert_eq!(dispatcher.submit_now(1, 2), [C::Queued { request: 1, ahead: 0 }]);
    assert_eq!(dispatcher.submit_now(2, 2), [C::Queued { request: 2, ahead: 1 }]);
    assert_eq!(dispatcher.queue()[0].1, "the copy of its checkpoint");
    // It goes on from another step than its equal behind it, and is no longer its equal.
    let need = Some(Need { shape: Some(8), ..need(2) });
    assert_eq!(dispatcher.at(1, E::Released { request: 1, need }), [start(1, &[1], 7)]);
    assert_eq!(dispatcher.queue()[0].1, "request 1");
    dispatcher.at(1, E::Withheld { request: 2 });
    assert!(dispatcher.at(2, E::RunEnded { run: 1 }).contains(&C::Queued { request: 2, ahead: 0 }));
    let cancelled = dispatcher.at(3, E::Cancelled { request: 2 });
    assert_eq!(cancelled, [C::Fail { request: 2, error: GenerateError::Cancelled }]);
    assert!(dispatcher.withheld.is_empty());
}

fn expired(commands: &[C], id: RequestId) -> Option<String> {
    commands.iter().find_map(|command| match command {
        C::Fail { request, error: GenerateError::Expired(cause) } if *request == id => {
            Some(cause.clone())
        }
        _ => None,
    })
}

#[test]
fn a_request_waits_until_its_deadline_and_is_told_what_for() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    let deadline = Some(Duration::from_secs(5));
    dispatcher.at(0, E::Submitted { request: 2, need: need(2), deadline, waited: Duration::ZERO });
    dispatcher.submit_now(3, 2);
    assert!(dispatcher.at(4, E::Tick).is_empty());
    let commands = dispatcher.at(5, E::Tick);
    assert_eq!(expired(&commands, 2).as_deref(), Some("it waited 5 s for request 1"));
    assert!(commands.contains(&C::Queued { request: 3, ahead: 1 }), "{commands:?}");
    // One that runs has waited; after a loss it waits anew.
    dispatcher.at(6, E::RunEnded { run: 1 });
    dispatcher.at(6, E::RunEnded { run: 2 });
    dispatcher.at(6, E::Submitted { request: 4, need: need(2), deadline, waited: Duration::ZERO });
    assert!(dispatcher.at(60, E::Tick).is_empty(), "it runs");
    let going_on = vec![(4, need(2))];
    dispatcher.at(60, E::ReplicaLost { replica: 7, going_on, error: lost() });
    assert!(expired(&dispatcher.at(64, E::Tick), 4).is_none());
    let commands = dispatcher.at(65, E::Tick);
    let cause = expired(&commands, 4).expect("its deadline");
    assert!(cause.starts_with("it waited 5 s for a mesh for "), "{cause}");
    assert!(dispatcher.deadlines.is_empty(), "{:?}", dispatcher.deadlines);
}

/// A restart of the coordinator does not set its clock back, and a time that is over by then is
/// told.
#[test]
fn what_a_request_waited_before_counts_towards_its_deadline() {
    let mut dispatcher = dispatcher();
    let submitted = |request, waited| E::Submitted {
        request,
        need: need(2),
        deadline: Some(Duration::from_secs(30)),
        waited: Duration::from_secs(waited),
    };
    dispatcher.at(0, submitted(1, 0));
    dispatcher.at(0, submitted(2, 20));
    dispatcher.at(0, submitted(3, 70));
    let cause = expired(&dispatcher.at(1, E::Tick), 3).expect("its time is over");
    assert!(cause.starts_with("it waited 30 s for request 2"), "{cause}");
    assert!(expired(&dispatcher.at(9, E::Tick), 2).is_none());
    assert!(expired(&dispatcher.at(10, E::Tick), 2).is_some());
    // Once it has run it waits anew.
    dispatcher.at(10, submitted(4, 29));
    dispatcher.ready(7, 2);
    dispatcher.at(10, E::RunEnded { run: 1 });
    let going_on = vec![(4, need(2))];
    dispatcher.at(20, E::ReplicaLost { replica: 7, going_on, error: lost() });
    assert!(expired(&dispatcher.at(49, E::Tick), 4).is_none());
    assert!(expired(&dispatcher.at(50, E::Tick), 4).is_some());
}

/// What the devices cannot hold is told, and waited for as long as its caller says, also beyond
/// what a mesh takes to form and when forming it has failed.
#[test]
fn a_deadline_of_its_own_waits_for_a_mesh_that_there_is_not() {
    let mut dispatcher = dispatcher();
    let deadline = Some(Duration::from_secs(3 * WAIT_S));
    dispatcher.at(0, E::Submitted { request: 1, need: need(2), deadline, waited: Duration::ZERO });
    dispatcher.submit_now(2, 2);
    let cause = "the 1 live devices cannot hold m: rank 0 needs 9 bytes";
    dispatcher.at(0, E::MeshAbsent { cause: cause.into() });
    assert!(dispatcher.at(2, E::Tick).is_empty());
    let told = dispatcher.at(3, E::Tick);
    let [C::Waits { request: 1, cause: why }] = told.as_slice() else { panic!("{told:?}") };
    assert!(why.contains(cause), "{why}");
    assert!(dispatcher.at(4, E::Tick).is_empty(), "once");
    let error = GenerateError::Failed("device a/0 could not join the mesh".into());
    let failed = dispatcher.at(5, E::FormFailed { mesh: exactly(2), error: error.clone() });
    assert_eq!(failed, [C::Fail { request: 2, error }], "nor is the mesh wanted again at once");
    let told = dispatcher.at(6, E::Tick);
    assert!(matches!(told.as_slice(), [C::Waits { request: 1, .. }]), "another cause: {told:?}");
    assert!(dispatcher.at(2 * WAIT_S, E::Tick).is_empty());
    let cause = expired(&dispatcher.at(3 * WAIT_S, E::Tick), 1).expect("its deadline");
    assert!(cause.contains("could not join"), "{cause}");
}

fn any_event() -> impl Strategy<Value = E> {
    (0..9u8, 0..6u64, 1..3u32, 1..3usize).prop_map(|(kind, id, stages, runs_max)| match kind {
        0..=2 => {
            let shape = Some(id % 2).filter(|_| id > 1);
            let need = Need { bytes: 1 + id, shape, ..need(stages) };
            E::Submitted { request: id, need, deadline: None, waited: Duration::ZERO }
        }
        3 => E::Cancelled { request: id },
        4 => {
            let bytes = Some(4 + id).filter(|_| id % 2 == 0);
            let room = Room { runs_max, images_max: 1 + id as usize, bytes };
            E::ReplicaReady { replica: id % 2, degrees: degrees(stages), room }
        }
        5 => E::RunEnded { run: id },
        6 => E::Withheld { request: id },
        7 => E::Released { request: id, need: None },
        _ => E::ReplicaLost { replica: id % 2, going_on: Vec::new(), error: lost() },
    })
}

proptest! {
    /// Numbers requests and replicas anew, as the coordinator does, and checks every history.
    #[test]
    fn every_request_ends_once_in_order_and_no_replica_has_more_than_its_room(
        history in prop::collection::vec(any_event(), 0..200)
    ) {
        let mut dispatcher = dispatcher();
        let (mut open, mut running) = (BTreeMap::new(), BTreeMap::new());
        let (mut requests, mut epoch, mut epochs) = (0, 1, [0u64; 2]);
        let (mut rooms, mut withheld) = (BTreeMap::new(), BTreeSet::new());
        for (second, event) in history.into_iter().enumerate() {
            let event = match event {
                E::Submitted { need, deadline, waited, .. } => {
                    requests += 1;
                    open.insert(requests, need);
                    E::Submitted { request: requests, need, deadline, waited }
                }
                E::Cancelled { request } => {
                    E::Cancelled { request: requests.saturating_sub(request) }
                }
                E::Withheld { request } => {
                    // Now and then before it is submitted.
                    let request = (requests + 1).saturating_sub(request);
                    withheld.insert(request);
                    E::Withheld { request }
                }
                E::Released { request, need } => {
                    let request = (requests + 1).saturating_sub(request);
                    withheld.remove(&request);
                    E::Released { request, need }
                }
                E::ReplicaReady { replica, .. } if epochs[replica as usize] != 0 => continue,
                E::ReplicaReady { replica, degrees, room } => {
                    epoch += 1;
                    epochs[replica as usize] = epoch;
                    rooms.insert(epoch, room);
                    E::ReplicaReady { replica: epoch, degrees, room }
                }
                E::RunEnded { run } => {
                    let number = running.keys().copied().nth(run as usize).unwrap_or(0);
                    if let Some((_, done)) = running.remove(&number) {
                        let done: Vec<RequestId> = done;
                        open.retain(|request, _| !done.contains(request));
                    }
                    E::RunEnded { run: number }
                }
                E::ReplicaLost { replica, error, .. } => {
                    let replica = std::mem::take(&mut epochs[replica as usize]);
                    let lost = running.values().filter(|(on, _)| *on == replica);
                    let lost = lost.flat_map(|(_, requests)| requests.clone());
                    // Every third one is given up.
                    let going_on = lost.filter(|request| request % 3 > 0 && open.contains_key(request));
                    let going_on: Vec<_> = going_on.map(|request| (request, open[&request])).collect();
                    running.retain(|_, (on, _)| *on != replica);
                    E::ReplicaLost { replica, going_on, error }
                }
                event => event,
            };
            for command in dispatcher.at(second as u64, event) {
                match command {
                    C::Start { run, requests, replica } => {
                        let needs: Vec<Need> = requests.iter().map(|id| open[id]).collect();
                        prop_assert!(needs.iter().all(|need| *need == needs[0]));
                        prop_assert!(!requests.iter().any(|request| withheld.contains(request)));
                        prop_assert!(needs.len() == 1 || needs[0].shape.is_some());
                        let runs = |request: &RequestId| {
                            let others = running.values().flat_map(|(_, requests)| requests);
                            others.chain(&requests).any(|other| other == request)
                        };
                        let waits = open.keys().find(|request| !runs(request));
                        let last = requests.iter().max();
                        prop_assert!(waits.is_none() || waits > last, "somebody overtook");
                        let room: &Room = &rooms[&replica];
                        prop_assert!(requests.len() <= room.images_max);
                        running.insert(run, (replica, requests));
                        let here = running.values().filter(|(on, _)| *on == replica).count();
                        prop_assert!(here <= room.runs_max);
                    }
                    C::Fail { request, .. } => prop_assert!(open.remove(&request).is_some()),
                    C::Abort { run, replica } => prop_assert_eq!(running[&run].0, replica),
                    _ => {}
                }
            }
        }
    }
}
