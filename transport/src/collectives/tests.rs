//! Schedules: what the absence of deadlock rests on, and that everybody gets what they should.

use std::collections::{BTreeSet, HashSet};

use super::*;

type Schedule = fn(&[PeerId], PeerId) -> Vec<Transfer>;

/// Every schedule, with the second member as the root where there is one.
const ALL: [(&str, Schedule); 6] = [
    ("all_to_all", all_to_all),
    ("all_gather", all_gather),
    ("ring", ring),
    ("exchange", exchange),
    ("broadcast", |group, me| broadcast(group, group[1 % group.len()], me)),
    ("gather", |group, me| gather(group, group[1 % group.len()], me)),
];

fn group(size: u32) -> Vec<PeerId> {
    (0..size).map(|rank| PeerId((rank * 7 + 3) % 64)).collect()
}

/// The three invariants: one transfer each way and round, both ends in one round, passed on later.
#[test]
fn every_schedule_keeps_one_order_that_nobody_waits_against() {
    for size in 1..=17 {
        let group = group(size);
        for (name, schedule) in ALL {
            let (mut sent, mut expected) = (HashSet::new(), HashSet::new());
            for (own, me) in group.iter().enumerate() {
                let mut rounds = HashSet::new();
                let mut came = Vec::new();
                for t in schedule(&group, *me) {
                    assert!(rounds.insert((t.round, t.direction)), "{name} {size}: {t:?} twice");
                    assert_ne!(t.peer, *me);
                    if t.direction == Direction::RecvFrom {
                        came.push((t.round, t.piece));
                        expected.insert((t.round, t.peer, *me));
                        continue;
                    }
                    sent.insert((t.round, *me, t.peer));
                    let brought = match name {
                        "broadcast" => own == 1 % group.len(),
                        "all_to_all" => true,
                        _ => t.piece == own,
                    };
                    let passed = came.iter().any(|&(at, piece)| at < t.round && piece == t.piece);
                    assert!(brought || passed, "{name} {size}: {t:?} from nowhere");
                }
            }
            assert_eq!(sent, expected, "{name} {size}");
        }
    }
}

#[test]
fn everybody_gets_every_piece_that_is_theirs() {
    for size in 1..=9 {
        let group = group(size);
        for (name, schedule) in ALL {
            for (own, me) in group.iter().enumerate() {
                let comes = schedule(&group, *me);
                let comes = comes.iter().filter(|t| t.direction == Direction::RecvFrom);
                let came: BTreeSet<usize> = comes.map(|t| t.piece).collect();
                let (root, all) = (1 % group.len(), 0..group.len());
                let theirs: BTreeSet<usize> = match name {
                    "broadcast" => all.take(1).filter(|_| own != root).collect(),
                    "gather" => all.filter(|piece| own == root && *piece != own).collect(),
                    _ => all.filter(|piece| *piece != own).collect(),
                };
                assert_eq!(came, theirs, "{name} {size}");
            }
        }
    }
}

#[test]
fn a_ring_talks_to_neighbours_and_a_tree_is_low() {
    let group = group(8);
    for me in &group {
        let peers: HashSet<PeerId> = ring(&group, *me).iter().map(|t| t.peer).collect();
        assert_eq!(peers.len(), 2);
        assert!(broadcast(&group, group[3], *me).iter().all(|t| t.round < 3));
    }
    assert_eq!(broadcast(&group, group[3], group[3]).len(), 3);
    assert_eq!(ring(&group[..2], group[0]).len(), 2);
}

#[test]
fn a_stranger_has_nothing_to_do() {
    let group = group(3);
    for (_, schedule) in ALL {
        assert!(schedule(&group, PeerId(1000)).is_empty());
    }
    assert!(broadcast(&group, PeerId(1000), group[0]).is_empty());
    assert!(gather(&group, PeerId(1000), group[0]).is_empty());
}
