//! The agenda by behaviour, and many ranks that take runs in at random moments.

use proptest::prelude::*;

use super::*;

const SOON: Duration = Duration::from_millis(20);

fn units(run: u64, count: usize) -> Vec<Entry> {
    (0..count).map(|unit| Entry { run, unit, cost: 1 }).collect()
}

/// Carries out one unit; `None` when there is none.
fn step(agenda: &Agenda<()>) -> Option<(u64, usize)> {
    match agenda.next(SOON) {
        Next::Unit { entry, .. } => Some((entry.run, entry.unit)),
        _ => None,
    }
}

#[test]
fn the_thread_stops_at_a_proposed_run_until_it_is_told_where_it_comes_in() {
    let agenda = Agenda::default();
    agenda.append(1, (), &units(1, 6)).expect("room");
    assert_eq!(step(&agenda), Some((1, 0)));
    assert_eq!(agenda.propose(2, ()), Ok(3));
    assert_eq!((step(&agenda), step(&agenda)), (Some((1, 1)), Some((1, 2))));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| match agenda.next(Duration::from_secs(10)) {
            Next::Unit { entry, begins } => (entry.run, entry.unit, begins.is_some()),
            other => panic!("{other:?}"),
        });
        agenda.admit(2, 4, &units(2, 2)).expect("not passed");
        assert_eq!(waiting.join().expect("a unit"), (1, 3, false));
    });
    let rest: Vec<_> = std::iter::from_fn(|| step(&agenda)).collect();
    assert_eq!(rest, [(1, 4), (2, 0), (1, 5), (2, 1)]);
}

#[test]
fn a_hold_that_nobody_lifts_ends_the_run_that_was_to_come() {
    let agenda = Agenda::default();
    agenda.append(1, (), &units(1, 2)).expect("room");
    agenda.propose(2, ()).expect("room");
    assert_eq!((step(&agenda), step(&agenda)), (Some((1, 0)), Some((1, 1))));
    assert!(matches!(agenda.next(SOON), Next::Idle), "nothing is held up");
    agenda.finish(1);
    agenda.append(3, (), &units(3, 1)).expect("room");
    assert!(matches!(agenda.next(SOON), Next::Expired { run: 2, .. }));
    assert_eq!(step(&agenda), Some((3, 0)));
    assert_eq!(agenda.admit(2, 2, &units(2, 1)), Err(AgendaError::Unknown { run: 2 }));
}

#[test]
fn a_retired_run_is_passed_over_and_reported_once() {
    let agenda = Agenda::default();
    agenda.append(1, (), &units(1, 3)).expect("room");
    agenda.propose(2, ()).expect("room");
    agenda.admit(2, 0, &units(2, 3)).expect("not passed");
    assert_eq!(step(&agenda), Some((1, 0)));
    assert_eq!(agenda.retire(1), Retired::ByThread);
    assert!(agenda.finish(1) && !agenda.finish(1));
    assert_eq!(agenda.retire(1), Retired::Before);
    assert_eq!((step(&agenda), step(&agenda)), (Some((2, 0)), Some((2, 1))));
    assert_eq!(agenda.retire(2), Retired::ByThread);
    assert_eq!(step(&agenda), Some((2, 2)));
    assert_eq!(step(&agenda), None);
    assert_eq!(agenda.retire(2), Retired::Now, "the thread has left its units");
}

#[test]
fn a_third_run_and_a_point_that_is_passed_are_refused() {
    let agenda = Agenda::default();
    agenda.append(1, (), &units(1, 3)).expect("room");
    agenda.propose(2, ()).expect("room");
    assert_eq!(agenda.propose(3, ()), Err(AgendaError::Full { run: 3 }));
    step(&agenda);
    assert_eq!(
        agenda.admit(2, 0, &units(2, 1)),
        Err(AgendaError::Passed { run: 2, after: 0, begun: 1 })
    );
}

proptest! {
    /// Ranks at different places propose, are told the latest of their points, and retire runs at
    /// different moments: what they carry out of the runs that live is one order.
    #[test]
    fn all_ranks_have_one_order_wherever_they_are(
        progress in prop::collection::vec(0..12usize, 2..5),
        lengths in (1..12usize, 1..12usize),
        aborted in prop::option::of(1..3u64),
        late in prop::collection::vec(0..20usize, 5),
    ) {
        let ranks: Vec<Agenda<()>> = progress.iter().map(|_| Agenda::default()).collect();
        let mut done: Vec<Vec<(u64, usize)>> = vec![Vec::new(); ranks.len()];
        for (rank, (agenda, &steps)) in ranks.iter().zip(&progress).enumerate() {
            agenda.append(1, (), &units(1, lengths.0)).expect("room");
            done[rank].extend((0..steps).map_while(|_| step(agenda)));
        }
        let points: Vec<u64> =
            ranks.iter().map(|agenda| agenda.propose(2, ()).expect("room")).collect();
        let after = points.iter().copied().max().unwrap_or(0);
        for (rank, agenda) in ranks.iter().enumerate() {
            agenda.admit(2, after, &units(2, lengths.1)).expect("nobody has passed it");
            done[rank].extend((0..late[rank]).map_while(|_| step(agenda)));
            if let Some(run) = aborted {
                agenda.retire(run);
                agenda.finish(run);
            }
            done[rank].extend(std::iter::from_fn(|| step(agenda)));
        }
        for rank in &mut done {
            rank.retain(|(run, _)| Some(*run) != aborted);
        }
        prop_assert!(done.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", done);
    }
}
