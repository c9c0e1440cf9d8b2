//! What is compared: PipeFusion by patches and sync steps, step caches, and mixes.

use ditmesh::{GenerateRequest, StepCache};

/// One way to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setting {
    pub(crate) patches: u32,
    pub(crate) sync_steps: u32,
    pub(crate) sync_every: u32,
    pub(crate) threshold: Option<f32>,
}

const SERIAL: Setting = Setting { patches: 1, sync_steps: 1, sync_every: 0, threshold: None };

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
    std::iter::once(SERIAL).chain(others).collect()
}

impl Setting {
    /// Nothing is traded.
    pub(crate) fn is_serial(&self) -> bool {
        *self == SERIAL
    }

    /// What is not serial about it.
    pub(crate) fn name(&self) -> String {
        let Self { patches, sync_steps, sync_every, threshold } = self;
        let mut parts = Vec::new();
        if *patches > 1 {
            parts.push(format!("M {patches}, w {sync_steps}"));
        }
        if *sync_every > 0 {
            parts.push(format!("sync every {sync_every}"));
        }
        parts.extend(threshold.map(|threshold| format!("step cache {threshold}")));
        if parts.is_empty() { "serial".into() } else { parts.join(", ") }
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
            ..GenerateRequest::new(prompt)
        }
    }
}
