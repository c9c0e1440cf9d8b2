//! Collectives as data: who sends which piece to whom, over point-to-point.
//!
//! Owns the schedules, which are pure functions, and a small runner for tests and users
//! ([`Collective`]). Knows no transport beyond [`Transport`](crate::Transport). Invariants: between
//! a sender and a receiver there is at most one transfer per schedule, so one tag serves the whole
//! collective; all members walk the same steps in the same order, so any window of at least one
//! transfer each way is free of deadlock.
//!
//! The step order is the rotation of Thakur, Rabenseifner, Gropp, "Optimization of collective
//! communication operations in MPICH" (2005), section 3 (pairwise exchange): in step `i` a member
//! sends to the one `i` places on and receives from the one `i` places back.

mod runner;

pub use runner::{Collective, Pieces, Window};

use crate::ids::PeerId;

/// Whether a piece leaves or comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the peer.
    SendTo,
    /// From the peer.
    RecvFrom,
}

/// One transfer of one member's schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// Whether the piece leaves or comes.
    pub direction: Direction,
    /// The other member.
    pub peer: PeerId,
    /// Which piece: see each schedule.
    pub piece: usize,
}

/// Every member gives its own part to every other: piece `j` sent is what `group[j]` is to get,
/// piece `j` received is what `group[j]` had for this member. A non-member's schedule is empty.
pub fn all_to_all(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    rotation(group, me, |_, to| to)
}

/// Every member ends up with every piece: piece `j` is what `group[j]` brought.
pub fn all_gather(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    rotation(group, me, |own, _| own)
}

/// Two members swap their pieces (guidance's two branches): piece `j` is what `group[j]` brought.
/// In a larger group this is [`all_gather`].
pub fn exchange(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    all_gather(group, me)
}

/// One member gives piece 0 to all others.
pub fn broadcast(group: &[PeerId], root: PeerId, me: PeerId) -> Vec<Transfer> {
    let transfer = |direction, peer| Transfer { direction, peer, piece: 0 };
    if me == root {
        let others = others(group, me);
        others.map(|(_, peer)| transfer(Direction::SendTo, peer)).collect()
    } else if is_member(group, root) && is_member(group, me) {
        vec![transfer(Direction::RecvFrom, root)]
    } else {
        Vec::new()
    }
}

/// One member gets all pieces: piece `j` is what `group[j]` brought.
pub fn gather(group: &[PeerId], root: PeerId, me: PeerId) -> Vec<Transfer> {
    let own = group.iter().position(|peer| *peer == me);
    match own {
        Some(_) if me == root => others(group, me)
            .map(|(piece, peer)| Transfer { direction: Direction::RecvFrom, peer, piece })
            .collect(),
        Some(piece) if is_member(group, root) => {
            vec![Transfer { direction: Direction::SendTo, peer: root, piece }]
        }
        _ => Vec::new(),
    }
}

/// In step `i`, send to the member `i` on and receive from the member `i` back; `piece` picks what
/// is sent from (own index, receiver's index).
fn rotation(group: &[PeerId], me: PeerId, piece: impl Fn(usize, usize) -> usize) -> Vec<Transfer> {
    let size = group.len();
    let Some(own) = group.iter().position(|peer| *peer == me) else { return Vec::new() };
    let step = |i: usize| {
        let (to, from) = ((own + i) % size, (own + size - i) % size);
        let send =
            Transfer { direction: Direction::SendTo, peer: group[to], piece: piece(own, to) };
        let receive = Transfer { direction: Direction::RecvFrom, peer: group[from], piece: from };
        [send, receive]
    };
    (1..size).flat_map(step).collect()
}

fn others(group: &[PeerId], me: PeerId) -> impl Iterator<Item = (usize, PeerId)> {
    group.iter().copied().enumerate().filter(move |(_, peer)| *peer != me)
}

fn is_member(group: &[PeerId], peer: PeerId) -> bool {
    group.contains(&peer)
}

#[cfg(test)]
mod tests;
