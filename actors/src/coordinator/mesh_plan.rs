//! What mesh the live devices make for the model: the one decision behind every join, leave and
//! loss.
//!
//! Owns how degrees that a manifest fixes give way when devices are missing. Which degrees are best
//! is the model's ([`Model::degrees_on`]). Pure, but may take a while: not called on an actor.

use ditmesh_model::spec::ModelSpec;

use super::model::Model;
use super::replicas::linked;
use super::switch::StepTimes;
use crate::dispatcher::OpenMeshes;
use crate::membership::cuts::Pair;
use crate::planner::reordering_pays;
use crate::protocol::DeviceId;
use crate::request::Degrees;

/// Devices that are tried in places before it is given up to seat them around cut links.
const SEATINGS_MAX: u32 = 200_000;

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
    /// Links between these are cut: the mesh is this order of them, and no other.
    pub(crate) around_cuts: bool,
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
    /// Links between them are cut, and no order of them does without these.
    #[error(
        "{degrees} needs {needed} devices with links between them; {live} are live, and what is cut \
         between them leaves none: {cut}; mend the network, or ask for other degrees"
    )]
    Cut { degrees: Degrees, needed: usize, live: usize, cut: String },
    /// The model does not fit them.
    #[error("the {live} live devices cannot hold {model}: {why}; add devices or memory")]
    TooLarge { live: usize, model: String, why: String },
}

impl NoMesh {
    /// The same, with words for who is `missing`.
    pub(super) fn without(self, missing: String) -> Self {
        match self {
            Self::TooFew { degrees, needed, live, .. } => {
                Self::TooFew { degrees, needed, live, missing }
            }
            other => other,
        }
    }
}

/// What somebody wants to know of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Counts questions.
    pub(crate) number: u64,
    /// Those first that should stay where they are.
    pub(crate) devices: Vec<DeviceId>,
    /// Degrees that a request names.
    pub(crate) exact: Option<Degrees>,
}

/// A mesh, or why there is none.
pub(crate) type Planned = Result<MeshPlan, NoMesh>;

/// The meshes for requests that leave degrees open, and for one that names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeshPlans {
    pub(crate) guided: Planned,
    pub(crate) unguided: Planned,
    /// Of the degrees that were asked for.
    pub(crate) exact: Option<(Degrees, Planned)>,
}

impl MeshPlans {
    /// Without links that are `cut`.
    pub(crate) fn of(model: &Model, question: &Question, cut: &[Pair]) -> Self {
        Self::around(cut, question, &model.spec, &|live, guided| plan(model, live, guided))
    }

    /// The same, where `plan` says what devices make that all reach each other, with guidance and
    /// without.
    pub(super) fn around(
        cut: &[Pair],
        question: &Question,
        spec: &ModelSpec,
        plan: &dyn Fn(&[DeviceId], bool) -> Planned,
    ) -> Self {
        let links = |degrees: Degrees| linked(degrees.alone(), spec);
        let live = question.devices.as_slice();
        let plan = |guided| uncut(live, cut, &|live| plan(live, guided), &links);
        let exact = question.exact;
        let exact = exact.map(|degrees| (degrees, exactly(degrees, live, cut, &links(degrees))));
        Self { guided: plan(true), unguided: plan(false), exact }
    }

    pub(crate) fn get(&self, guided: bool) -> &Planned {
        if guided { &self.guided } else { &self.unguided }
    }

    /// Their degrees.
    pub(crate) fn open(&self) -> OpenMeshes {
        let degrees = |plan: &Planned| plan.as_ref().ok().map(|plan| plan.degrees);
        OpenMeshes { guided: degrees(&self.guided), unguided: degrees(&self.unguided) }
    }
}

/// On the devices in their order or, where that clearly gains, with the faster ones first.
fn plan(model: &Model, live: &[DeviceId], guided: bool) -> Planned {
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

fn plan_in_order(model: &Model, live: &[DeviceId], guided: bool) -> Planned {
    if live.is_empty() {
        return Err(NoMesh::NoDevice);
    }
    let of = |degrees: Degrees, num_pipeline_patch, step| MeshPlan {
        degrees,
        num_pipeline_patch,
        step,
        around_cuts: false,
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

/// A mesh that needs no link that is cut: the planned one, the same with its devices in another
/// order or others in their places, or else one without the device of a cut link that has the
/// higher rank.
fn uncut(
    live: &[DeviceId],
    cut: &[Pair],
    plan: &dyn Fn(&[DeviceId]) -> Planned,
    links: &dyn Fn(Degrees) -> Vec<(u32, u32)>,
) -> Planned {
    let mut live = live.to_vec();
    loop {
        let planned = plan(&live)?;
        let spare = live.iter().filter(|device| !planned.devices.contains(device));
        let order: Vec<DeviceId> = planned.devices.iter().chain(spare).cloned().collect();
        let seating = Seating::new(&order, planned.degrees, &links(planned.degrees), cut);
        let Some(higher) = seating.broken() else {
            let around_cuts = are_apart(&planned.devices, cut);
            return Ok(MeshPlan { around_cuts, ..planned });
        };
        if let Some(devices) = seating.find() {
            let around_cuts = are_apart(&devices, cut);
            return Ok(MeshPlan { devices, around_cuts, ..planned });
        }
        live.retain(|device| device != higher);
    }
}

/// The mesh that a request names: the first of the devices, in their order where no link is cut.
pub(super) fn exactly(
    degrees: Degrees,
    live: &[DeviceId],
    cut: &[Pair],
    links: &[(u32, u32)],
) -> Planned {
    let (needed, live_now) = (degrees.world_size(), live.len());
    if live_now < needed {
        let missing = String::new();
        return Err(NoMesh::TooFew { degrees, needed, live: live_now, missing });
    }
    let devices = Seating::new(live, degrees, links, cut).find().ok_or_else(|| {
        let among = |(a, b): &&Pair| live.contains(a) && live.contains(b);
        let named = cut.iter().filter(among).map(|(a, b)| format!("{a} and {b}"));
        let cut = named.collect::<Vec<_>>().join(", ");
        NoMesh::Cut { degrees, needed, live: live_now, cut }
    })?;
    let around_cuts = are_apart(&devices, cut);
    Ok(MeshPlan { degrees, num_pipeline_patch: None, step: None, devices, around_cuts })
}

/// Whether a link between two of these is cut.
fn are_apart(devices: &[DeviceId], cut: &[Pair]) -> bool {
    cut.iter().any(|(a, b)| devices.contains(a) && devices.contains(b))
}

/// Who could sit where in a mesh: ranks count through all replicas, devices as they are in `order`.
struct Seating<'a> {
    order: &'a [DeviceId],
    world: usize,
    /// For each rank of a replica those before it that it is linked with.
    linked: Vec<Vec<usize>>,
    /// Whether the link between two devices is cut.
    apart: Vec<Vec<bool>>,
}

impl<'a> Seating<'a> {
    fn new(order: &'a [DeviceId], degrees: Degrees, links: &[(u32, u32)], cut: &[Pair]) -> Self {
        let mut linked = vec![Vec::new(); degrees.alone().world_size().max(1)];
        for &(a, b) in links.iter().filter(|(a, b)| a != b) {
            if let Some(before) = linked.get_mut(a.max(b) as usize) {
                before.push(a.min(b) as usize);
            }
        }
        let mut apart = vec![vec![false; order.len()]; order.len()];
        let place = |device| order.iter().position(|known| known == device);
        for (a, b) in cut {
            if let (Some(a), Some(b)) = (place(a), place(b)) {
                (apart[a][b], apart[b][a]) = (true, true);
            }
        }
        Self { order, world: degrees.world_size(), linked, apart }
    }

    /// Whether a device reaches those seated so far that the next rank is linked with.
    fn fits(&self, seated: &[usize], device: usize) -> bool {
        let rank = seated.len() % self.linked.len();
        let replica = &seated[seated.len() - rank..];
        self.linked[rank].iter().all(|&mate| !self.apart[replica[mate]][device])
    }

    /// In the given order: the first device that does not reach one of a lower rank.
    fn broken(&self) -> Option<&DeviceId> {
        let ranks: Vec<usize> = (0..self.world.min(self.order.len())).collect();
        let broken = ranks.iter().find(|&&rank| !self.fits(&ranks[..rank], rank));
        broken.map(|&rank| &self.order[rank])
    }

    /// Devices for all ranks, each where it is in the given order if it can be.
    fn find(&self) -> Option<Vec<DeviceId>> {
        let (mut seated, mut tries) = (Vec::with_capacity(self.world), 0);
        let found = self.seat_rest(&mut seated, &mut tries);
        found.then(|| seated.into_iter().map(|device| self.order[device].clone()).collect())
    }

    fn seat_rest(&self, seated: &mut Vec<usize>, tries: &mut u32) -> bool {
        let rank = seated.len();
        if rank == self.world {
            return true;
        }
        let own = (rank < self.order.len()).then_some(rank);
        for device in own.into_iter().chain(0..self.order.len()) {
            *tries += 1;
            if *tries > SEATINGS_MAX {
                return false;
            }
            if seated.contains(&device) || !self.fits(seated, device) {
                continue;
            }
            seated.push(device);
            if self.seat_rest(seated, tries) {
                return true;
            }
            seated.pop();
        }
        false
    }
}

/// The mesh closest to a fixed one on `live` devices: as many of them as degrees no higher than its
/// own can use, with as many replicas of that as it asks for.
pub(super) fn reduced(fixed: Degrees, live: usize) -> Degrees {
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
    use crate::membership::cuts::pair;

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
    fn replicas_of(live: &[DeviceId], size: u32) -> Planned {
        let data = live.len() as u32 / size;
        if data == 0 {
            return Err(NoMesh::NoDevice);
        }
        let devices = live.iter().take((data * size) as usize).cloned().collect();
        let degrees = mesh(1, size, 1, data);
        let (num_pipeline_patch, step, around_cuts) = (None, None, false);
        Ok(MeshPlan { degrees, num_pipeline_patch, step, devices, around_cuts })
    }

    #[test]
    fn a_cut_link_is_planned_around_and_else_costs_the_higher_rank() {
        let all = devices(&[0, 1, 2, 3]);
        let link = |a: u32, b: u32| pair(devices(&[a])[0].clone(), devices(&[b])[0].clone());
        let ring = |degrees: Degrees| {
            let stages = degrees.pipefusion_degree;
            (0..stages).map(|a| (a.min((a + 1) % stages), a.max((a + 1) % stages))).collect()
        };
        let plan = |size| move |live: &[DeviceId]| replicas_of(live, size);
        let on = |size, cut: &[Pair]| {
            let planned = uncut(&all, cut, &plan(size), &ring).expect("a mesh");
            planned.devices.iter().map(|device| device.index).collect::<Vec<_>>()
        };
        assert_eq!(on(4, &[]), [0, 1, 2, 3]);
        assert_eq!(on(4, &[link(0, 1)]), [0, 2, 1, 3], "0 and 1 are no neighbours now");
        assert_eq!(on(2, &[link(0, 1)]), [0, 2, 1, 3], "each in a replica of its own");
        let everything = [link(0, 1), link(0, 2), link(0, 3)];
        assert_eq!(on(2, &everything), [2, 3], "nobody can be linked to 0");
        let of_all = |live: &[DeviceId]| replicas_of(live, live.len() as u32);
        let planned = uncut(&devices(&[0, 1]), &[link(0, 1)], &of_all, &ring).expect("a mesh");
        assert_eq!(planned.devices, devices(&[0]), "the higher rank is done without");
    }

    #[test]
    fn degrees_that_a_request_names_are_seated_around_cut_links() {
        let link = |a: u32, b: u32| pair(devices(&[a])[0].clone(), devices(&[b])[0].clone());
        let on = |degrees: Degrees, live: &[u32], cut: &[Pair], links: &[(u32, u32)]| {
            let planned = exactly(degrees, &devices(live), cut, links)?;
            Ok(planned.devices.iter().map(|device| device.index).collect::<Vec<_>>())
        };
        let (two, four) = (mesh(1, 2, 1, 1), mesh(1, 4, 1, 1));
        let ring = [(0, 1), (1, 2), (2, 3), (0, 3)];
        assert_eq!(on(two, &[0, 1, 2], &[], &[(0, 1)]), Ok(vec![0, 1]));
        assert_eq!(on(two, &[0, 1, 2], &[link(0, 1)], &[(0, 1)]), Ok(vec![0, 2]));
        let only = [link(0, 1), link(0, 2)];
        assert_eq!(on(two, &[0, 1, 2], &only, &[(0, 1)]), Ok(vec![1, 2]), "nobody reaches 0");
        // Exchanging two devices is not enough.
        let far: Vec<Pair> = (0..4).flat_map(|a| (a + 1..4).map(move |b| link(a, b))).collect();
        assert_eq!(on(four, &[0, 1, 2, 3, 4, 5], &far, &ring), Ok(vec![0, 4, 2, 5]));
        let pairs = [link(0, 1), link(2, 3)];
        let apart = mesh(1, 2, 1, 2);
        assert_eq!(on(apart, &[0, 1, 2, 3], &pairs, &[(0, 1)]), Ok(vec![0, 2, 1, 3]));
        let Err(none @ NoMesh::Cut { .. }) = on(two, &[0, 1], &[link(0, 1)], &[(0, 1)]) else {
            panic!("there is no link")
        };
        assert!(none.to_string().contains("leaves none: a/0 and a/1"), "{none}");
        let none = on(four, &[0, 1, 2], &[], &ring);
        assert!(matches!(none, Err(NoMesh::TooFew { needed: 4, live: 3, .. })), "{none:?}");
    }

    /// Nobody reaches anybody of the other half: there are far too many orders to try them all.
    #[test]
    fn looking_for_seats_ends() {
        let all = devices(&(0..64).collect::<Vec<_>>());
        let halves = |(a, b): (usize, usize)| pair(all[a].clone(), all[32 + b].clone());
        let cut: Vec<Pair> = (0..32 * 32).map(|n| halves((n / 32, n % 32))).collect();
        let links: Vec<(u32, u32)> =
            (0..40).flat_map(|a| (a + 1..40).map(move |b| (a, b))).collect();
        let none = exactly(mesh(1, 1, 40, 1), &all, &cut, &links);
        assert!(matches!(none, Err(NoMesh::Cut { .. })), "{none:?}");
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
