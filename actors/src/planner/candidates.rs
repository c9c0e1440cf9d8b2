//! Every mesh there could be, with a lower bound of its time.
//!
//! Owns which degrees and numbers of patches are looked at. Invariant: sorted by bound, then by
//! fewer devices, so that of two meshes alike the smaller one is chosen.

use ditmesh_model::spec::description::Description;

use super::Wish;
use super::bound::Bound;
use crate::cost::cluster::Cluster;
use crate::plan::resolve::check_degrees;
use crate::request::Degrees;

/// A mesh and the patches of its pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Candidate {
    /// Degrees; `data_degree` is 1.
    pub degrees: Degrees,
    /// Patches of PipeFusion; 1 without it.
    pub num_pipeline_patch: u32,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Degrees { cfg_degree, pipefusion_degree, ulysses_degree, ring_degree, .. } =
            self.degrees;
        let parts = [
            ("cfg", cfg_degree),
            ("pipefusion", pipefusion_degree),
            ("ulysses", ulysses_degree),
            ("ring", ring_degree),
        ];
        let written: Vec<String> = parts
            .iter()
            .filter(|(_, degree)| *degree > 1)
            .map(|(name, degree)| format!("{name} {degree}"))
            .collect();
        if written.is_empty() {
            return f.write_str("one device");
        }
        f.write_str(&written.join(" x "))?;
        if pipefusion_degree > 1 {
            write!(f, ", {} patches", self.num_pipeline_patch)?;
        }
        Ok(())
    }
}

/// All candidates with their bounds, best first.
pub(super) fn all(model: &Description, cluster: &Cluster, wish: &Wish) -> Vec<(f64, Candidate)> {
    let there = cluster.devices.len();
    let devices = wish.devices.map_or(there, |devices| devices.min(there));
    let rows = wish.height as usize / (model.spec.vae_scale_factor * model.spec.patch_size);
    let bound = Bound::new(model, cluster, wish);
    let branches = if wish.guided { 2 } else { 1 };
    let mut found = Vec::new();
    for cfg in 1..=branches.min(devices) {
        for stages in 1..=model.spec.blocks.min(devices / cfg) {
            let left = devices / cfg / stages;
            for ulysses in 1..=model.spec.heads.min(left) {
                for ring in 1..=(left / ulysses).min(rows / ulysses) {
                    let degrees = Degrees {
                        cfg_degree: cfg as u32,
                        pipefusion_degree: stages as u32,
                        ulysses_degree: ulysses as u32,
                        ring_degree: ring as u32,
                        data_degree: 1,
                    };
                    if check_degrees(&model.spec, degrees, devices).is_err() {
                        continue;
                    }
                    found.extend(patches(stages, rows, ulysses * ring, wish.exact).map(
                        |patches| {
                            let num_pipeline_patch = patches as u32;
                            let candidate = Candidate { degrees, num_pipeline_patch };
                            (bound.seconds(&candidate), candidate)
                        },
                    ));
                }
            }
        }
    }
    found.sort_by(|(a, x), (b, y)| {
        let size = |candidate: &Candidate| candidate.degrees.world_size();
        a.total_cmp(b).then(size(x).cmp(&size(y)))
    });
    found
}

/// Numbers of patches worth looking at: as many as stages, up to four times as many.
fn patches(
    stages: usize,
    rows: usize,
    sequence: usize,
    exact: bool,
) -> impl Iterator<Item = usize> {
    // A patch of fewer rows than sequence ranks leaves some of them without work.
    let most = (rows / sequence).max(1);
    let choices = match (stages, exact) {
        (1, _) | (_, true) => [1, 0, 0, 0],
        _ => [stages, stages + 1, 2 * stages, 4 * stages],
    };
    let fits = move |&patches: &usize| patches == 1 || (2..=most).contains(&patches);
    choices.into_iter().filter(fits)
}
