//! Which sequence degrees fit a picture: every rank must have something to do.
//!
//! A rank of a sequence group works on the rows it owns, and attends with its heads for the rows
//! of its Ulysses group. Rows and heads that do not divide are dealt unequally; refused is only a
//! rank that would have neither. Pure.

use ditmesh_model::rows::{PatchRange, RowSet};

use super::resolve::PlanError;
use crate::request::Degrees;

/// Largest ring: a frame's name has eight bits for the round.
pub const RING_DEGREE_MAX: u32 = 256;

/// Checks that no rank of the sequence group is idle when `strips` are dealt to it.
///
/// # Errors
/// [`PlanError::Degree`] with the largest degree that would fit.
pub fn check(strips: &[PatchRange], heads: usize, degrees: Degrees) -> Result<(), PlanError> {
    let Some(sp) = idle_rank(strips, heads, degrees) else { return Ok(()) };
    let rows: usize = strips.iter().map(|strip| strip.len).sum();
    let dealt = match strips {
        [_] => format!("{rows} token rows"),
        _ => format!("{rows} token rows in {} patches", strips.len()),
    };
    // A group without rows is the ring's doing, a rank without rows and heads that of Ulysses.
    let with_ring = |ring_degree| Degrees { ring_degree, ..degrees };
    let with_ulysses = |ulysses_degree| Degrees { ulysses_degree, ..degrees };
    let fits = |degrees| idle_rank(strips, heads, degrees).is_none();
    let ring = (1..degrees.ring_degree).rev().find(|&degree| fits(with_ring(degree)));
    let ulysses = (1..degrees.ulysses_degree).rev().find(|&degree| fits(with_ulysses(degree)));
    let (degree, value, best) = match (ring, ulysses) {
        (Some(best), _) => ("ring_degree", degrees.ring_degree, Some(best)),
        (None, Some(best)) => ("ulysses_degree", degrees.ulysses_degree, Some(best)),
        (None, None) => ("ulysses_degree x ring_degree", degrees.sequence_degree() as u32, None),
    };
    let hint = match best {
        Some(best) => format!("at most {best} would fit"),
        None => "lower both, or give fewer patches".to_owned(),
    };
    let why = format!(
        "dealing {dealt} and {heads} attention heads leaves sequence rank {sp} of {} with nothing \
         to do; {hint}",
        degrees.sequence_degree()
    );
    Err(PlanError::Degree { degree, value, why })
}

/// The first rank without rows that attends for nobody either.
fn idle_rank(strips: &[PatchRange], heads: usize, degrees: Degrees) -> Option<usize> {
    let (ulysses, members) = (degrees.ulysses_degree as usize, degrees.sequence_degree());
    let owns = |sp: usize| !RowSet::of_rank(strips, sp, members).is_empty();
    (0..members).find(|&sp| {
        let group = sp / ulysses * ulysses;
        let attends = !ditmesh_model::rows::share(heads, sp % ulysses, ulysses).is_empty();
        let busy = owns(sp) || attends && (group..group + ulysses).any(owns);
        !busy
    })
}
