//! The agenda by behaviour, and many ranks that take runs in at random moments.

use proptest::prelude::*;

use super::*;

fn units(run: u64, count: usize) -> Vec<Entry> {
    (0..count).map(|unit| Entry { run, unit, cost: 1 }).collect()
}

/// Carries out one unit; `None` when there is none.
fn step(agenda: &mut Agenda<()>) -> Option<(u64, usize)> {
    match agenda.take_next() {
        Next::Unit { entry, .. } => Some((entry.run, entry.unit)),
        _ => None,
    }
}

fn all(agenda: &mut Agenda<()>) -> Vec<(u64, usize)> {
    std::iter::from_fn(|| step(agenda)).collect()
}

#[test]
fn the_thread_stops_at_a_proposed_run_until_it_is_told_where_it_comes_in() {
    let mut agenda = Agenda::default();
    agenda.append(1, (), units(1, 6)).expect("room");
    assert_eq!(step(&mut agenda), Some((1, 0)));
    assert_eq!(agenda.propose(2, (), units(2, 2)), Ok(3));
    assert_eq!(all(&mut agenda), [(1, 1), (1, 2)]);
    assert!(matches!(agenda.take_next(), Next::Held));
    agenda.admit(2, 4).expect("not passed");
    assert!(matches!(agenda.take_next(), Next::Unit { number: 3, begins: None, .. }));
    assert_eq!(all(&mut agenda), [(1, 4), (2, 0), (1, 5), (2, 1)]);
    assert!(matches!(agenda.take_next(), Next::Idle));
}

#[test]
fn a_hold_that_nobody_lifts_ends_the_run_that_was_to_come() {
    let mut agenda = Agenda::default();
    agenda.append(1, (), units(1, 2)).expect("room");
    agenda.propose(2, (), units(2, 1)).expect("room");
    assert_eq!(all(&mut agenda), [(1, 0), (1, 1)]);
    assert!(matches!(agenda.take_next(), Next::Idle), "nothing is held up");
    agenda.finish(1);
    agenda.append(3, (), units(3, 1)).expect("room");
    assert!(matches!(agenda.take_next(), Next::Held));
    assert_eq!(agenda.expire(), Some((2, ())));
    assert_eq!(step(&mut agenda), Some((3, 0)));
    assert!(agenda.knows(2) && !agenda.is_live(2), "it may come in elsewhere");
    assert_eq!(agenda.retire(2), Retired::Before);
    assert_eq!(agenda.admit(2, 2), Err(AgendaError::Unknown { run: 2 }));
}

#[test]
fn a_retired_run_is_passed_over_and_reported_once() {
    let mut agenda = Agenda::default();
    agenda.append(1, (), units(1, 3)).expect("room");
    agenda.propose(2, (), units(2, 3)).expect("room");
    agenda.admit(2, 0).expect("not passed");
    assert_eq!(step(&mut agenda), Some((1, 0)));
    assert_eq!(agenda.retire(1), Retired::ByThread);
    assert!(agenda.finish(1) && !agenda.finish(1));
    assert_eq!(agenda.retire(1), Retired::Before);
    assert_eq!((step(&mut agenda), step(&mut agenda)), (Some((2, 0)), Some((2, 1))));
    assert_eq!(agenda.retire(2), Retired::ByThread);
    assert_eq!(step(&mut agenda), Some((2, 2)));
    assert_eq!(step(&mut agenda), None);
    assert_eq!(agenda.retire(2), Retired::Now, "the thread has left its units");
}

#[test]
fn a_third_run_and_a_point_that_is_passed_are_refused() {
    let mut agenda = Agenda::default();
    agenda.append(1, (), units(1, 3)).expect("room");
    agenda.propose(2, (), units(2, 1)).expect("room");
    assert_eq!(agenda.propose(3, (), units(3, 1)), Err(AgendaError::Full { run: 3 }));
    step(&mut agenda);
    assert_eq!(agenda.admit(2, 0), Err(AgendaError::Passed { run: 2, after: 0, begun: 1 }));
}

/// On one rank nobody says in time where a run comes in, on the other somebody does: the runs that
/// come later still have one order.
#[test]
fn a_run_that_has_expired_on_one_rank_counts_there_too() {
    let mut ranks = [Agenda::default(), Agenda::default()];
    for agenda in &mut ranks {
        agenda.append(1, (), units(1, 8)).expect("room");
        assert_eq!(agenda.propose(2, (), units(2, 3)), Ok(2));
    }
    assert_eq!(all(&mut ranks[1]), [(1, 0), (1, 1)]);
    assert_eq!(ranks[1].expire(), Some((2, ())));
    assert_eq!(ranks[0].admit(2, 2), Ok(()));
    assert_eq!(ranks[1].admit(2, 2), Err(AgendaError::Unknown { run: 2 }));
    for agenda in &mut ranks {
        agenda.retire(2);
    }
    let proposed = ranks.each_mut().map(|agenda| agenda.propose(3, (), units(3, 2)));
    let after = proposed.into_iter().map(|after| after.expect("room")).max().expect("two");
    let orders = ranks.each_mut().map(|agenda| {
        agenda.admit(3, after).expect("nobody has passed it");
        all(agenda)
    });
    assert_eq!(orders[0].iter().skip(2).collect::<Vec<_>>(), orders[1].iter().collect::<Vec<_>>());
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
        let mut ranks: Vec<Agenda<()>> = progress.iter().map(|_| Agenda::default()).collect();
        let mut done: Vec<Vec<(u64, usize)>> = vec![Vec::new(); ranks.len()];
        for (rank, (agenda, &steps)) in ranks.iter_mut().zip(&progress).enumerate() {
            agenda.append(1, (), units(1, lengths.0)).expect("room");
            done[rank].extend((0..steps).map_while(|_| step(agenda)));
        }
        let propose =
            |agenda: &mut Agenda<()>| agenda.propose(2, (), units(2, lengths.1)).expect("room");
        let points: Vec<u64> = ranks.iter_mut().map(propose).collect();
        let after = points.iter().copied().max().unwrap_or(0);
        for (rank, agenda) in ranks.iter_mut().enumerate() {
            agenda.admit(2, after).expect("nobody has passed it");
            done[rank].extend((0..late[rank]).map_while(|_| step(agenda)));
            if let Some(run) = aborted {
                agenda.retire(run);
                agenda.finish(run);
            }
            done[rank].extend(all(agenda));
        }
        for rank in &mut done {
            rank.retain(|(run, _)| Some(*run) != aborted);
        }
        prop_assert!(done.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", done);
    }
}
