//! Collectives as data: who sends which piece to whom in which round, over point-to-point.
//!
//! Owns the schedules, which are pure functions, and a runner for whoever has bytes to move
//! ([`Collective`]); a program of operations takes the schedules alone. Knows no transport beyond
//! [`Transport`](crate::Transport).
//!
//! Invariants of every schedule, which together exclude deadlock at any window: in a round a member
//! sends at most one piece and receives at most one; a send and its receive are in the same round;
//! a piece that is passed on was received in an earlier round. So transfers have one order that all
//! members keep, and none of them waits for a later one.
//!
//! The rotation is the pairwise exchange of Thakur, Rabenseifner, Gropp, "Optimization of
//! collective communication operations in MPICH" (2005), section 3; the ring and the binomial tree
//! are from there too.

mod runner;

pub use runner::{CHUNK_BYTES, CHUNKS_PER_PIECE_MAX, Collective, Pieces, Window};

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
    /// Its place in the order that all members keep.
    pub round: usize,
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

/// Every member ends up with every piece: piece `j` is what `group[j]` brought. Each goes straight
/// to everybody: for links that do not share a wire.
pub fn all_gather(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    rotation(group, me, |own, _| own)
}

/// The same along a ring: every piece is passed on from neighbour to neighbour, so that a member
/// talks to two others only and each wire carries each piece once.
pub fn ring(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    let size = group.len();
    let Some(own) = index_of(group, me) else { return Vec::new() };
    let (next, before) = ((own + 1) % size, (own + size - 1) % size);
    let round = |round: usize| {
        let piece = |place: usize| (place + size - round) % size;
        [
            transfer(round, Direction::SendTo, group[next], piece(own)),
            transfer(round, Direction::RecvFrom, group[before], piece(before)),
        ]
    };
    (0..size - 1).flat_map(round).collect()
}

/// Two members swap their pieces (guidance's two branches): piece `j` is what `group[j]` brought.
/// In a larger group this is [`all_gather`].
pub fn exchange(group: &[PeerId], me: PeerId) -> Vec<Transfer> {
    all_gather(group, me)
}

/// One member gives piece 0 to all others, who pass it on along a binomial tree: `log2` rounds, and
/// the root sends that often at most. Neighbours in the group are below one branch.
pub fn broadcast(group: &[PeerId], root: PeerId, me: PeerId) -> Vec<Transfer> {
    let (Some(own), Some(root)) = (index_of(group, me), index_of(group, root)) else {
        return Vec::new();
    };
    let size = group.len();
    let place = (own + size - root) % size;
    let peer = |place: usize| group[(place + root) % size];
    let top = size.next_power_of_two() / 2;
    let distances = std::iter::successors(Some(top), |distance| Some(distance / 2));
    let mut transfers = Vec::new();
    for (round, distance) in distances.take_while(|&distance| distance > 0).enumerate() {
        if place.is_multiple_of(2 * distance) {
            let to = place + distance;
            transfers.extend((to < size).then(|| transfer(round, Direction::SendTo, peer(to), 0)));
        } else if place.is_multiple_of(distance) {
            transfers.push(transfer(round, Direction::RecvFrom, peer(place - distance), 0));
        }
    }
    transfers
}

/// One member gets all pieces: piece `j` is what `group[j]` brought.
pub fn gather(group: &[PeerId], root: PeerId, me: PeerId) -> Vec<Transfer> {
    let (Some(own), Some(root)) = (index_of(group, me), index_of(group, root)) else {
        return Vec::new();
    };
    let size = group.len();
    let round = |piece: usize| (piece + size - root) % size;
    if own != root {
        return vec![transfer(round(own), Direction::SendTo, group[root], own)];
    }
    let others = (1..size).map(|distance| (root + distance) % size);
    others.map(|piece| transfer(round(piece), Direction::RecvFrom, group[piece], piece)).collect()
}

/// In round `i`, send to the member `i` on and receive from the member `i` back; `piece` picks what
/// is sent from (own index, receiver's index).
fn rotation(group: &[PeerId], me: PeerId, piece: impl Fn(usize, usize) -> usize) -> Vec<Transfer> {
    let size = group.len();
    let Some(own) = index_of(group, me) else { return Vec::new() };
    let round = |i: usize| {
        let (to, from) = ((own + i) % size, (own + size - i) % size);
        [
            transfer(i, Direction::SendTo, group[to], piece(own, to)),
            transfer(i, Direction::RecvFrom, group[from], from),
        ]
    };
    (1..size).flat_map(round).collect()
}

fn transfer(round: usize, direction: Direction, peer: PeerId, piece: usize) -> Transfer {
    Transfer { round, direction, peer, piece }
}

fn index_of(group: &[PeerId], peer: PeerId) -> Option<usize> {
    group.iter().position(|member| *member == peer)
}

#[cfg(test)]
mod tests;
