//! Schedules: every send has its receive, in the same step.

use super::*;

fn group(size: u32) -> Vec<PeerId> {
    (0..size).map(|rank| PeerId(rank * 3 + 1)).collect()
}

#[test]
fn every_send_of_a_rotation_is_received_in_the_same_step() {
    for size in 1..9 {
        let group = group(size);
        let schedules: Vec<_> = group.iter().map(|me| all_to_all(&group, *me)).collect();
        for (own, schedule) in schedules.iter().enumerate() {
            assert_eq!(schedule.len(), 2 * (group.len() - 1));
            for (at, transfer) in schedule.iter().enumerate() {
                if transfer.direction == Direction::SendTo {
                    let other = &schedules[transfer.piece];
                    let met = other[at + 1];
                    assert_eq!(met.direction, Direction::RecvFrom);
                    assert_eq!((met.peer, met.piece), (group[own], own));
                }
            }
        }
    }
}

#[test]
fn all_gather_sends_the_own_piece_everywhere() {
    let group = group(5);
    for (own, me) in group.iter().enumerate() {
        let schedule = all_gather(&group, *me);
        let sends = schedule.iter().filter(|t| t.direction == Direction::SendTo);
        assert!(sends.clone().all(|t| t.piece == own));
        assert_eq!(sends.count(), 4);
        let mut received: Vec<_> = schedule
            .iter()
            .filter(|t| t.direction == Direction::RecvFrom)
            .map(|t| t.piece)
            .collect();
        received.sort_unstable();
        assert_eq!(received, (0..5).filter(|piece| *piece != own).collect::<Vec<_>>());
    }
}

#[test]
fn broadcast_and_gather_are_stars() {
    let group = group(4);
    let root = group[2];
    assert_eq!(broadcast(&group, root, root).len(), 3);
    assert_eq!(gather(&group, root, root).len(), 3);
    for me in group.iter().filter(|peer| **peer != root) {
        let get = Transfer { direction: Direction::RecvFrom, peer: root, piece: 0 };
        assert_eq!(broadcast(&group, root, *me), vec![get]);
        assert_eq!(gather(&group, root, *me).len(), 1);
    }
}

#[test]
fn a_stranger_has_nothing_to_do() {
    let group = group(3);
    let stranger = PeerId(1000);
    assert!(all_to_all(&group, stranger).is_empty());
    assert!(exchange(&group, stranger).is_empty());
    assert!(broadcast(&group, group[0], stranger).is_empty());
    assert!(gather(&group, group[0], stranger).is_empty());
}
