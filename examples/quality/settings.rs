//! What is compared: PipeFusion by patches and sync steps, step caches, activations in fewer bytes,
//! and mixes.

use ditmesh::{Axis, Degrees, GenerateRequest, StepCache, Wire, WireDtype};

/// One way to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setting {
    pub(crate) patches: u32,
    pub(crate) sync_steps: u32,
    pub(crate) sync_every: u32,
    pub(crate) threshold: Option<f32>,
    /// What travels in fewer bytes between two ranks of an axis.
    pub(crate) wire: Option<(Axis, WireDtype, bool)>,
}

const SERIAL: Setting =
    Setting { patches: 1, sync_steps: 1, sync_every: 0, threshold: None, wire: None };

/// All, the serial one first.
pub(crate) fn all() -> Vec<Setting> {
    let pipefusion = [2, 4, 8]
        .into_iter()
        .flat_map(|patches| [1, 2, 4].map(|sync_steps| Setting { patches, sync_steps, ..SERIAL }));
    let one = |patches, sync_every| Setting { patches, sync_every, ..SERIAL };
    let sometimes = [one(4, 8), one(4, 4), one(4, 2), one(8, 4)];
    let cached = [0.05, 0.1, 0.2].map(|x| Setting { threshold: Some(x), ..SERIAL });
    let mixed = [
        Setting { threshold: Some(0.1), ..one(4, 0) },
        Setting { threshold: Some(0.1), ..one(4, 4) },
        Setting { threshold: Some(0.1), sync_steps: 2, ..one(8, 0) },
        Setting { threshold: Some(0.2), sync_steps: 4, ..one(4, 0) },
    ];
    let others = pipefusion.chain(sometimes).chain(cached).chain(mixed);
    std::iter::once(SERIAL).chain(others).chain(fewer_bytes()).collect()
}

/// PipeFusion over 4 patches and the exact methods, two ranks each.
fn fewer_bytes() -> impl Iterator<Item = Setting> {
    use WireDtype::{Bf16, F16, Int8};
    let of = |axis, dtype, residual| {
        let patches = if axis == Axis::Pipefusion { 4 } else { 1 };
        Setting { patches, wire: Some((axis, dtype, residual)), ..SERIAL }
    };
    let types = |axis| [F16, Bf16, Int8].map(|dtype| of(axis, dtype, false));
    let residual = [of(Axis::Pipefusion, Int8, true)];
    let others = [of(Axis::Ring, Int8, false), of(Axis::Cfg, Int8, false)];
    types(Axis::Pipefusion).into_iter().chain(residual).chain(types(Axis::Ulysses)).chain(others)
}

impl Setting {
    /// Nothing is traded.
    pub(crate) fn is_serial(&self) -> bool {
        *self == SERIAL
    }

    /// What is not serial about it.
    pub(crate) fn name(&self) -> String {
        let Self { patches, sync_steps, sync_every, threshold, wire } = self;
        let mut parts = Vec::new();
        if *patches > 1 {
            parts.push(format!("M {patches}, w {sync_steps}"));
        }
        if *sync_every > 0 {
            parts.push(format!("sync every {sync_every}"));
        }
        parts.extend(threshold.map(|threshold| format!("step cache {threshold}")));
        parts.extend(wire.map(|(axis, dtype, residual)| {
            let as_changes = if residual { " residual" } else { "" };
            format!("{} {} on the wire{as_changes}", axis.name(), dtype.name())
        }));
        if parts.is_empty() { "serial".into() } else { parts.join(", ") }
    }

    /// The mesh that draws it: two ranks of the axis whose bytes are fewer, else `given`.
    pub(crate) fn degrees(&self, given: Degrees) -> Degrees {
        let Some((axis, ..)) = self.wire else { return given };
        let two = |of: Axis| if axis == of { 2 } else { 1 };
        Degrees {
            cfg_degree: two(Axis::Cfg),
            pipefusion_degree: two(Axis::Pipefusion),
            ulysses_degree: two(Axis::Ulysses),
            ring_degree: two(Axis::Ring),
            data_degree: 1,
        }
    }

    /// Whether a contact sheet is drawn of it.
    pub(crate) fn on_sheet(&self) -> bool {
        self.is_serial() || *self == Setting { patches: 4, ..SERIAL }
    }

    /// Name of the contact sheet.
    pub(crate) fn file(&self) -> String {
        if self.is_serial() { "serial".into() } else { format!("pipefusion-2x{}", self.patches) }
    }

    /// The request for one prompt.
    pub(crate) fn request(&self, prompt: &str, seed: u64) -> GenerateRequest {
        GenerateRequest {
            seed,
            num_pipeline_patch: Some(self.patches),
            sync_steps: self.sync_steps,
            sync_every: self.sync_every,
            step_cache: self
                .threshold
                .map(|threshold| StepCache { threshold, ..StepCache::default() }),
            wire: self.wire.map(|(axis, dtype, residual)| {
                let mut wire = Wire { residual, ..Wire::default() };
                wire.set(axis, dtype);
                wire
            }),
            ..GenerateRequest::new(prompt)
        }
    }
}
