//! The common order of two runs that share a mesh.
//!
//! A program is cut into units: its prologue, one forward pass (of a step or of a patch) with what
//! surrounds it, its epilogue. All ranks have the same units, so an order of units is an order on
//! every rank. [`interleave`] makes one order of two runs' units, fair by what they cost: a run
//! that waits for its pipeline in a synchronous step, in fill or in drain leaves its devices to the
//! other. Pure, and in integers, so that every rank makes the same order.
//!
//! Invariants: each run's units stay in order; until one run has no more units, what the two were
//! given since the second came differs by no more than the dearest unit.
//!
//! No order of units can deadlock: what a unit receives was sent in a unit of the same run that is
//! not after it, and sends never wait. [`super::check::check_order`] proves it of given plans.

use super::Plan;
use super::program::Patch;

/// A part of a program that is carried out as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Text, noise, caches.
    Prologue,
    /// One forward pass.
    Pass {
        /// Denoising step.
        step: usize,
        /// Rows.
        patch: Patch,
    },
    /// Gathering, decoding, the result.
    Epilogue,
}

/// One unit of one run in the order of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The run.
    pub run: u64,
    /// Which of its units.
    pub unit: usize,
    /// What it costs; see [`Plan::unit_cost`].
    pub cost: u64,
}

impl Plan {
    /// The units of every rank's program.
    pub fn units(&self) -> Vec<Unit> {
        let mut units = vec![Unit::Prologue];
        for step in self.first_step()..self.steps() {
            if self.is_async(step) {
                let strips = (0..self.strips.len()).map(Patch::Strip);
                units.extend(strips.map(|patch| Unit::Pass { step, patch }));
            } else {
                units.push(Unit::Pass { step, patch: Patch::All });
            }
        }
        units.push(Unit::Epilogue);
        units
    }

    /// What a unit costs a mesh, in numbers that can be compared between runs of one model: the
    /// multiplications of its passes through one block, over `2 * hidden`. A synchronous pass costs
    /// as much as all its patches; prologue and epilogue count nothing.
    pub fn unit_cost(&self, unit: Unit) -> u64 {
        let Unit::Pass { patch, .. } = unit else { return 0 };
        let rows: usize = (0..self.mesh.sequence()).map(|sp| self.rows(sp, patch).len()).sum();
        let queries = (self.batch() * rows * self.grid.tokens_per_row()) as u64;
        // Per query token: 12 hidden^2 in the linear layers, 2 hidden for each key in attention.
        queries * (6 * self.model.hidden() + self.grid.tokens()) as u64
    }

    /// All units of this plan as those of `run`.
    pub fn entries(&self, run: u64) -> Vec<Entry> {
        let units = self.units().into_iter().enumerate();
        units.map(|(unit, what)| Entry { run, unit, cost: self.unit_cost(what) }).collect()
    }
}

/// One order of what is left on a mesh and of a run that comes to it: whoever was given less goes
/// next, who was there first when both were given the same.
pub fn interleave(rest: &[Entry], coming: &[Entry]) -> Vec<Entry> {
    let mut order = Vec::with_capacity(rest.len() + coming.len());
    let (mut rest, mut coming) = (rest, coming);
    let (mut given_rest, mut given_coming) = (0u64, 0u64);
    while let (Some((first, rest_after)), Some((second, coming_after))) =
        (rest.split_first(), coming.split_first())
    {
        if given_rest <= given_coming {
            given_rest += first.cost;
            order.push(*first);
            rest = rest_after;
        } else {
            given_coming += second.cost;
            order.push(*second);
            coming = coming_after;
        }
    }
    order.extend_from_slice(rest);
    order.extend_from_slice(coming);
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(run: u64, costs: &[u64]) -> Vec<Entry> {
        let units = costs.iter().enumerate();
        units.map(|(unit, &cost)| Entry { run, unit, cost }).collect()
    }

    #[test]
    fn the_cheaper_waits_less() {
        let order = interleave(&run(1, &[4, 1, 1]), &run(2, &[0, 4, 1]));
        let runs: Vec<u64> = order.iter().map(|entry| entry.run).collect();
        assert_eq!(runs, [1, 2, 2, 1, 2, 1], "4, 0 and 4, then one each");
        assert_eq!(interleave(&[], &run(2, &[1, 2])), run(2, &[1, 2]));
    }

    proptest! {
        #[test]
        fn both_keep_their_order_and_neither_is_given_more_than_one_unit_ahead(
            first in prop::collection::vec(0..50u64, 0..40),
            second in prop::collection::vec(0..50u64, 0..40),
        ) {
            let (a, b) = (run(1, &first), run(2, &second));
            let order = interleave(&a, &b);
            let of = |id| order.iter().filter(|entry| entry.run == id).copied().collect::<Vec<_>>();
            prop_assert_eq!(of(1), a);
            prop_assert_eq!(of(2), b);
            let dearest = first.iter().chain(&second).copied().max().unwrap_or(0);
            let (mut given, mut left) = ([0i64; 2], [first.len(), second.len()]);
            for entry in order {
                let side = entry.run as usize - 1;
                given[side] += entry.cost as i64;
                left[side] -= 1;
                if left.iter().all(|&units| units > 0) {
                    prop_assert!(given[0].abs_diff(given[1]) <= dearest);
                }
            }
        }
    }
}
