//! The order of phases, and what each exchange carries.

use std::collections::HashMap;

use super::*;
use crate::rows::{RowSet, strips};
use crate::spec::{Family, ModelId, TextStream};
use crate::vae::VaeSpec;

fn model(heads: usize) -> ModelSpec {
    ModelSpec {
        id: ModelId(1),
        family: Family::PixArt,
        text_stream: TextStream::Cross,
        long_skips: false,
        blocks: 3,
        heads,
        head_dim: 8,
        patch_size: 2,
        latent_channels: 4,
        sample_size: 16,
        vae_scale_factor: 8,
        vae: VaeSpec::default(),
        solver_history: 2,
        caption_channels: 24,
        text_tokens: 7,
        block_bytes: 1,
        other_bytes: 1,
    }
}

/// All `rows`, or strip `strip` of two when keys and values are kept.
fn shape(rows: usize, (ulysses, ring): (usize, usize), strip: Option<usize>) -> ForwardShape {
    let cut = strips(rows, if strip.is_some() { 2 } else { 1 });
    let cut = strip.map_or(cut.as_slice(), |index| &cut[index..=index]);
    let members = ulysses * ring;
    ForwardShape {
        batch: 2,
        blocks: 0..3,
        rows: (0..members).map(|i| RowSet::of_rank(cut, i, members)).collect(),
        ulysses,
        member: 0,
        tokens_per_row: 4,
        cached_tokens: strip.map(|_| rows * 4),
    }
}

fn of_member(shape: &ForwardShape, member: usize, model: &ModelSpec) -> Vec<Phase> {
    phases(&ForwardShape { member, ..shape.clone() }, model).collect()
}

const MESHES: [(usize, usize); 9] =
    [(1, 2), (1, 3), (1, 8), (2, 1), (4, 1), (2, 2), (2, 4), (4, 2), (3, 3)];

#[test]
fn one_member_exchanges_nothing() {
    let phases = of_member(&shape(5, (1, 1), None), 0, &model(6));
    assert_eq!(phases.len(), 2 + 3 * 3);
    assert_eq!((&phases[0], &phases[10]), (&Phase::Embed, &Phase::ProjectNoise));
}

#[test]
fn what_starts_on_one_member_is_waited_for_on_another() {
    for (mesh, rows, heads) in MESHES.into_iter().flat_map(|m| [(m, 5, 6), (m, 16, 3), (m, 9, 8)]) {
        for strip in [None, Some(0), Some(1)] {
            let (shape, model) = (shape(rows, mesh, strip), model(heads));
            let mut open = HashMap::new();
            for member in 0..shape.members() {
                for phase in of_member(&shape, member, &model) {
                    let Phase::Start(transfer) = phase else { continue };
                    for (to, piece) in transfer.pieces {
                        let before = open.insert((transfer.id, member, to), piece);
                        assert_eq!(before, None, "{:?} goes twice to {to}", transfer.id);
                    }
                }
            }
            for member in 0..shape.members() {
                for phase in of_member(&shape, member, &model) {
                    let Phase::Wait(transfer) = phase else { continue };
                    for (from, piece) in transfer.pieces {
                        let sent = open.remove(&(transfer.id, from, member));
                        assert_eq!(sent, Some(piece), "{mesh:?} {rows} {heads} {strip:?}");
                    }
                }
            }
            assert!(open.is_empty(), "{mesh:?} {rows} {heads} {strip:?}: {open:?}");
        }
    }
}

/// Every query meets every key with every head exactly once, whatever divides.
#[test]
fn every_pair_of_tokens_is_attended_once_per_head() {
    for (mesh, rows, heads) in MESHES.into_iter().flat_map(|m| [(m, 5, 6), (m, 16, 2), (m, 9, 8)]) {
        for strip in [None, Some(0), Some(1)] {
            let (shape, model) = (shape(rows, mesh, strip), model(heads));
            let mut pairs = vec![0; shape.members()];
            for member in 0..shape.members() {
                for phase in of_member(&shape, member, &model) {
                    if let Phase::Attend(work) = phase {
                        pairs[work.member] += work.query_tokens * work.key_tokens * work.heads;
                    }
                }
            }
            let keys = shape.cached_tokens.unwrap_or(shape.tokens());
            for (member, pairs) in pairs.into_iter().enumerate() {
                assert_eq!(pairs, 3 * heads * keys * shape.tokens_of(member), "{mesh:?} {rows}");
            }
        }
    }
}

#[test]
fn transfers_start_before_work_that_does_not_need_them() {
    let ring = of_member(&shape(8, (1, 4), None), 1, &model(4));
    let position = |wanted: &dyn Fn(&Phase) -> bool| ring.iter().position(wanted);
    let start = position(&|p| matches!(p, Phase::Start(t) if t.id.round == 1));
    let attend = position(&|p| matches!(p, Phase::Attend(a) if a.keys == Keys::Group(0)));
    let wait = position(&|p| matches!(p, Phase::Wait(t) if t.id.round == 1));
    assert!(start < attend && attend < wait, "{start:?} {attend:?} {wait:?}");
    let ulysses = of_member(&shape(8, (2, 1), None), 1, &model(4));
    let kinds: Vec<&str> = ulysses[1..9]
        .iter()
        .map(|phase| match phase {
            Phase::ProjectQkv(work) if work.member == 0 => "project theirs",
            Phase::ProjectQkv(_) => "project ours",
            Phase::Attend(work) if work.member == 0 => "attend theirs",
            Phase::Attend(_) => "attend ours",
            Phase::Start(_) => "start",
            Phase::Wait(_) => "wait",
            _ => "rest",
        })
        .collect();
    let expected = [
        "project theirs",
        "start",
        "project ours",
        "wait",
        "attend theirs",
        "start",
        "attend ours",
        "wait",
    ];
    assert_eq!(kinds, expected);
}
