//! What mesh the live devices make for the model: the one decision behind every join, leave and
//! loss.
//!
//! Owns how degrees that a manifest fixes give way when devices are missing. Which degrees are best
//! is the model's ([`Model::degrees_on`]). Pure, but may take a while: not called on an actor.

use super::model::Model;
use super::switch::StepTimes;
use crate::dispatcher::OpenMeshes;
use crate::membership::cuts::{Pair, pair};
use crate::plan::Plan;
use crate::planner::reordering_pays;
use crate::protocol::DeviceId;
use crate::request::Degrees;

/// A mesh and who sits in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshPlan {
    /// Of all replicas.
    pub(crate) degrees: Degrees,
    /// Number of patches of requests that leave it open, where the plan has an opinion.
    pub(crate) num_pipeline_patch: Option<u32>,
    /// What a step takes by the cost model at the model's own size.
    pub(crate) step: Option<StepTimes>,
    /// In rank order, replica after replica.
    pub(crate) devices: Vec<DeviceId>,
}

/// Why devices make no mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMesh {
    /// There is nobody.
    #[error("no device is live")]
    NoDevice,
    /// Fewer than degrees that a request names need.
    #[error("{degrees} needs {needed} devices, {live} are live{missing}")]
    TooFew { degrees: Degrees, needed: usize, live: usize, missing: String },
    /// The model does not fit them.
    #[error("the {live} live devices cannot hold {model}: {why}; add devices or memory")]
    TooLarge { live: usize, model: String, why: String },
}

/// The meshes for requests that leave degrees open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshPlans {
    pub(crate) guided: Result<MeshPlan, NoMesh>,
    pub(crate) unguided: Result<MeshPlan, NoMesh>,
}

impl MeshPlans {
    /// For `live` devices, those first that should stay where they are; without links that are
    /// `cut`.
    pub(crate) fn of(model: &Model, live: &[DeviceId], cut: &[Pair]) -> Self {
        let plan = |guided| {
            let plan = |live: &[DeviceId]| plan(model, live, guided);
            uncut(live, cut, &plan, &|degrees| links(model, degrees))
        };
        Self { guided: plan(true), unguided: plan(false) }
    }

    pub(crate) fn get(&self, guided: bool) -> &Result<MeshPlan, NoMesh> {
        if guided { &self.guided } else { &self.unguided }
    }

    /// Their degrees.
    pub(crate) fn open(&self) -> OpenMeshes {
        let degrees = |plan: &Result<MeshPlan, NoMesh>| plan.as_ref().ok().map(|plan| plan.degrees);
        OpenMeshes { guided: degrees(&self.guided), unguided: degrees(&self.unguided) }
    }
}

/// On the devices in their order or, where that clearly gains, with the faster ones first.
fn plan(model: &Model, live: &[DeviceId], guided: bool) -> Result<MeshPlan, NoMesh> {
    let given = plan_in_order(model, live, guided);
    let seconds = |plan: &MeshPlan| plan.step.map(|step| step.steady.as_secs_f64());
    if let Some(sorted) = model.fastest_first(live)
        && let Ok(faster) = plan_in_order(model, &sorted, guided)
    {
        let pays = |given| Some(reordering_pays(seconds(given)?, seconds(&faster)?));
        if given.as_ref().map_or(true, |given| pays(given).unwrap_or(false)) {
            return Ok(faster);
        }
    }
    given
}

fn plan_in_order(model: &Model, live: &[DeviceId], guided: bool) -> Result<MeshPlan, NoMesh> {
    if live.is_empty() {
        return Err(NoMesh::NoDevice);
    }
    let of = |degrees: Degrees, num_pipeline_patch, step| MeshPlan {
        degrees,
        num_pipeline_patch,
        step,
        devices: live.iter().take(degrees.world_size()).cloned().collect(),
    };
    if let Some(fixed) = model.fixed(guided) {
        let reduced = reduced(fixed, live.len());
        let plan = of(reduced, None, None);
        if model.shortage(reduced, &plan.devices, guided).is_none() {
            let step = model.step_on(reduced, &plan.devices, guided);
            return Ok(MeshPlan { step, ..plan });
        }
        // Better another mesh than the manifest's than none.
    }
    let (degrees, patches, step) = model
        .degrees_on(live, guided)
        .map_err(|why| NoMesh::TooLarge { live: live.len(), model: model.name.clone(), why })?;
    Ok(of(degrees, patches, step))
}

/// The pairs of ranks of one replica that some run links.
fn links(model: &Model, degrees: Degrees) -> Vec<(usize, usize)> {
    let Ok(plan) = Plan::widest(degrees.alone(), &model.spec) else { return Vec::new() };
    let world = plan.mesh.world_size();
    let of = |a: usize| plan.peers(a).into_iter().map(move |b| (a, b));
    (0..world).flat_map(of).filter(|&(a, b)| a < b && b < world).collect()
}

/// A mesh that needs no link that is cut: the planned one, the same with two devices in each
/// other's place, or else one without the device of the cut link that has the higher rank.
fn uncut(
    live: &[DeviceId],
    cut: &[Pair],
    plan: &dyn Fn(&[DeviceId]) -> Result<MeshPlan, NoMesh>,
    links: &dyn Fn(Degrees) -> Vec<(usize, usize)>,
) -> Result<MeshPlan, NoMesh> {
    let mut live = live.to_vec();
    loop {
        let planned = plan(&live)?;
        let links = links(planned.degrees);
        let size = planned.degrees.alone().world_size().max(1);
        let broken = |devices: &[DeviceId]| {
            devices.chunks(size).find_map(|replica| {
                links.iter().find_map(|&(a, b)| {
                    let (a, b) = (replica.get(a)?, replica.get(b)?);
                    cut.contains(&pair(a.clone(), b.clone())).then(|| b.clone())
                })
            })
        };
        let Some(higher) = broken(&planned.devices) else { return Ok(planned) };
        let world = planned.devices.len();
        let spare = live.iter().filter(|device| !planned.devices.contains(device));
        let order: Vec<DeviceId> = planned.devices.iter().chain(spare).cloned().collect();
        for (a, b) in (0..world).flat_map(|a| (a + 1..order.len()).map(move |b| (a, b))) {
            let mut swapped = order.clone();
            swapped.swap(a, b);
            swapped.truncate(world);
            if broken(&swapped).is_none() {
                return Ok(MeshPlan { devices: swapped, ..planned });
            }
        }
        live.retain(|device| *device != higher);
    }
}

/// The mesh closest to a fixed one on `live` devices: as many of them as degrees no higher than its
/// own can use, with as many replicas of that as it asks for.
fn reduced(fixed: Degrees, live: usize) -> Degrees {
    let alone = fixed.alone();
    let mut best = Degrees::default();
    for pipefusion_degree in 1..=alone.pipefusion_degree {
        for cfg_degree in 1..=alone.cfg_degree {
            for ulysses_degree in 1..=alone.ulysses_degree {
                for ring_degree in 1..=alone.ring_degree {
                    let tried = Degrees {
                        cfg_degree,
                        pipefusion_degree,
                        ulysses_degree,
                        ring_degree,
                        ..Degrees::default()
                    };
                    // Of several that use as many devices, the one that splits the model most.
                    let fits = tried.world_size() <= live;
                    if fits && tried.world_size() >= best.world_size() {
                        best = tried;
                    }
                }
            }
        }
    }
    let replicas = (live / best.world_size()).clamp(1, fixed.data_degree.max(1) as usize) as u32;
    Degrees { data_degree: if best == alone { replicas } else { 1 }, ..best }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(cfg: u32, pipefusion: u32, ulysses: u32, data: u32) -> Degrees {
        Degrees {
            cfg_degree: cfg,
            pipefusion_degree: pipefusion,
            ulysses_degree: ulysses,
            data_degree: data,
            ..Degrees::default()
        }
    }

    fn devices(indices: &[u32]) -> Vec<DeviceId> {
        indices.iter().map(|&index| DeviceId { node: "a".into(), index }).collect()
    }

    /// Everybody in replicas of `size`.
    fn replicas_of(live: &[DeviceId], size: u32) -> Result<MeshPlan, NoMesh> {
        let data = live.len() as u32 / size;
        if data == 0 {
            return Err(NoMesh::NoDevice);
        }
        let devices = live.iter().take((data * size) as usize).cloned().collect();
        let degrees = mesh(1, size, 1, data);
        Ok(MeshPlan { degrees, num_pipeline_patch: None, step: None, devices })
    }

    #[test]
    fn a_cut_link_is_planned_around_and_else_costs_the_higher_rank() {
        let all = devices(&[0, 1, 2, 3]);
        let link = |a: u32, b: u32| pair(devices(&[a])[0].clone(), devices(&[b])[0].clone());
        let ring = |degrees: Degrees| {
            let stages = degrees.pipefusion_degree as usize;
            (0..stages).map(|a| (a.min((a + 1) % stages), a.max((a + 1) % stages))).collect()
        };
        let plan = |size| move |live: &[DeviceId]| replicas_of(live, size);
        let on = |size, cut: &[Pair]| {
            let planned = uncut(&all, cut, &plan(size), &ring).expect("a mesh");
            planned.devices.iter().map(|device| device.index).collect::<Vec<_>>()
        };
        assert_eq!(on(4, &[]), [0, 1, 2, 3]);
        assert_eq!(on(4, &[link(0, 1)]), [3, 1, 2, 0], "0 and 1 are no neighbours now");
        assert_eq!(on(2, &[link(0, 1)]), [2, 1, 0, 3], "each in a replica of its own");
        let everything = [link(0, 1), link(0, 2), link(0, 3)];
        assert_eq!(on(2, &everything), [3, 2], "nobody can be linked to 0");
        let of_all = |live: &[DeviceId]| replicas_of(live, live.len() as u32);
        let planned = uncut(&devices(&[0, 1]), &[link(0, 1)], &of_all, &ring).expect("a mesh");
        assert_eq!(planned.devices, devices(&[0]), "the higher rank is done without");
    }

    #[test]
    fn a_fixed_mesh_shrinks_to_what_is_there_and_grows_back() {
        let table = [
            (mesh(1, 4, 1, 1), 4, mesh(1, 4, 1, 1)),
            (mesh(1, 4, 1, 1), 3, mesh(1, 3, 1, 1)),
            (mesh(1, 4, 1, 1), 7, mesh(1, 4, 1, 1)),
            (mesh(2, 2, 1, 1), 3, mesh(1, 2, 1, 1)),
            (mesh(2, 4, 1, 1), 7, mesh(2, 3, 1, 1)),
            (mesh(1, 2, 1, 2), 4, mesh(1, 2, 1, 2)),
            (mesh(1, 2, 1, 2), 3, mesh(1, 2, 1, 1)),
            (mesh(1, 2, 1, 2), 1, mesh(1, 1, 1, 1)),
            (mesh(2, 2, 2, 1), 5, mesh(2, 2, 1, 1)),
        ];
        for (fixed, live, expected) in table {
            assert_eq!(reduced(fixed, live), expected, "{fixed} on {live} devices");
        }
    }
}
