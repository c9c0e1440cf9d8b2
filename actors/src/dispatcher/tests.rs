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

fn lost() -> GenerateError {
    GenerateError::Lost("device b/1 lost".into())
}

impl Dispatcher {
    fn at(&mut self, second: u64, event: E) -> Vec<C> {
        self.handle(Now::from_secs(second), event)
    }

    fn submit_now(&mut self, request: RequestId, stages: u32) -> Vec<C> {
        self.at(0, E::Submitted { request, degrees: degrees(stages) })
    }

    fn ready(&mut self, replica: ReplicaId, stages: u32) -> Vec<C> {
        self.at(0, E::ReplicaReady { replica, degrees: degrees(stages) })
    }
}

#[test]
fn a_request_without_a_mesh_asks_for_one_and_starts_on_it() {
    let mut dispatcher = dispatcher();
    assert_eq!(
        dispatcher.submit_now(1, 2),
        [C::Want { degrees: degrees(2) }, C::Queued { request: 1, ahead: 0 }]
    );
    assert_eq!(dispatcher.ready(7, 2), [C::Start { request: 1, replica: 7 }]);
    assert_eq!(dispatcher.running(), 1);
}

#[test]
fn one_request_per_replica_in_order_of_arrival() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    assert_eq!(dispatcher.submit_now(1, 2), [C::Start { request: 1, replica: 7 }]);
    assert_eq!(dispatcher.submit_now(2, 2), [C::Queued { request: 2, ahead: 1 }]);
    assert_eq!(dispatcher.submit_now(3, 2), [C::Queued { request: 3, ahead: 2 }]);
    assert_eq!(
        dispatcher.at(1, E::ReplicaIdle { replica: 7 }),
        [C::Start { request: 2, replica: 7 }, C::Queued { request: 3, ahead: 1 }]
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
    assert!(
        dispatcher.at(1, E::ReplicaIdle { replica: 7 }).contains(&C::Want { degrees: degrees(4) })
    );
}

#[test]
fn a_lost_replica_fails_its_request_and_keeps_the_others() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 2);
    let commands = dispatcher.at(1, E::ReplicaLost { replica: 7, error: lost() });
    assert_eq!(commands[0], C::Fail { request: 1, error: lost() });
    assert!(commands.contains(&C::Want { degrees: degrees(2) }));
    assert_eq!(dispatcher.waiting(), 1);
    assert_eq!(dispatcher.ready(8, 2), [C::Start { request: 2, replica: 8 }]);
}

#[test]
fn a_cancelled_run_keeps_its_replica_until_the_ranks_have_ended() {
    let mut dispatcher = dispatcher();
    dispatcher.ready(7, 2);
    dispatcher.submit_now(1, 2);
    dispatcher.submit_now(2, 2);
    let commands = dispatcher.at(1, E::Cancelled { request: 1 });
    assert_eq!(commands[0], C::Abort { request: 1, replica: 7 });
    assert_eq!(commands[1], C::Fail { request: 1, error: GenerateError::Cancelled });
    assert!(!commands.contains(&C::Start { request: 2, replica: 7 }));
    assert!(
        dispatcher
            .at(2, E::ReplicaIdle { replica: 7 })
            .contains(&C::Start { request: 2, replica: 7 })
    );
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
    let commands = dispatcher.at(1, E::FormFailed { degrees: degrees(2), error: error.clone() });
    assert_eq!(commands[0], C::Fail { request: 1, error });
    assert_eq!(commands[1], C::Want { degrees: degrees(4) });
}

#[test]
fn nobody_waits_for_a_mesh_forever() {
    let mut dispatcher = dispatcher();
    dispatcher.submit_now(1, 2);
    dispatcher.at(1, E::MeshAbsent { cause: "waiting for device b/1".into() });
    assert_eq!(dispatcher.at(WAIT_S - 1, E::Tick), []);
    let commands = dispatcher.at(WAIT_S, E::Tick);
    assert!(matches!(
        &commands[0],
        C::Fail { request: 1, error: GenerateError::Lost(cause) } if cause.contains("b/1")
    ));
}

fn any_event() -> impl Strategy<Value = E> {
    (0..7u8, 0..6u64, 1..3u32).prop_map(|(kind, id, stages)| match kind {
        0..=2 => E::Submitted { request: id, degrees: degrees(stages) },
        3 => E::Cancelled { request: id },
        4 => E::ReplicaReady { replica: id % 2, degrees: degrees(stages) },
        5 => E::ReplicaIdle { replica: id % 2 },
        _ => E::ReplicaLost { replica: id % 2, error: lost() },
    })
}

proptest! {
    /// Numbers requests and replicas anew, as the coordinator does, and checks every history.
    #[test]
    fn every_request_ends_once_and_no_replica_runs_two(
        history in prop::collection::vec(any_event(), 0..200)
    ) {
        let mut dispatcher = dispatcher();
        let (mut open, mut running) = (BTreeSet::new(), BTreeMap::new());
        let (mut requests, mut epoch, mut epochs) = (0, 1, [0u64; 2]);
        for (second, event) in history.into_iter().enumerate() {
            let event = match event {
                E::Submitted { degrees, .. } => {
                    requests += 1;
                    open.insert(requests);
                    E::Submitted { request: requests, degrees }
                }
                E::Cancelled { request } => {
                    E::Cancelled { request: requests.saturating_sub(request) }
                }
                E::ReplicaReady { replica, .. } if epochs[replica as usize] != 0 => continue,
                E::ReplicaReady { replica, degrees } => {
                    epoch += 1;
                    epochs[replica as usize] = epoch;
                    E::ReplicaReady { replica: epoch, degrees }
                }
                E::ReplicaIdle { replica } => {
                    if let Some(done) = running.remove(&epochs[replica as usize]) {
                        open.remove(&done);
                    }
                    E::ReplicaIdle { replica: epochs[replica as usize] }
                }
                E::ReplicaLost { replica, error } => {
                    let lost = std::mem::take(&mut epochs[replica as usize]);
                    E::ReplicaLost { replica: lost, error }
                }
                event => event,
            };
            for command in dispatcher.at(second as u64, event) {
                match command {
                    C::Start { request, replica } => {
                        prop_assert!(open.contains(&request));
                        prop_assert!(running.insert(replica, request).is_none());
                    }
                    C::Fail { request, .. } => prop_assert!(open.remove(&request)),
                    C::Abort { request, replica } => {
                        prop_assert_eq!(running.get(&replica), Some(&request));
                    }
                    _ => {}
                }
            }
            prop_assert!(dispatcher.running() <= 2);
        }
    }
}
