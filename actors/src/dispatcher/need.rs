//! What a request needs and what a replica takes.
//!
//! Owns the difference between a request that names its degrees and one that leaves them open: for
//! the latter the mesh follows whoever is there. Pure values.

use crate::request::Degrees;

/// The mesh a request runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshNeed {
    /// These degrees and no others.
    Exactly(Degrees),
    /// Whatever mesh the live devices make for requests that leave degrees open.
    Open {
        /// Whether both branches of guidance run.
        guided: bool,
    },
}

impl std::fmt::Display for MeshNeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(degrees) => degrees.fmt(f),
            Self::Open { guided: true } => f.write_str("open degrees with guidance"),
            Self::Open { guided: false } => f.write_str("open degrees without guidance"),
        }
    }
}

/// The meshes that serve requests with open degrees; `None` where the live devices make none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMeshes {
    /// With guidance.
    pub guided: Option<Degrees>,
    /// Without.
    pub unguided: Option<Degrees>,
}

impl OpenMeshes {
    /// The one for a request with or without guidance.
    pub fn of(&self, guided: bool) -> Option<Degrees> {
        if guided { self.guided } else { self.unguided }
    }
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The mesh.
    pub mesh: MeshNeed,
    /// What a run of it holds on the device where that is most; 0 when nobody counts.
    pub bytes: u64,
    /// Requests of one shape can be one run; `None` runs alone.
    pub shape: Option<u64>,
}

/// What a replica takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Runs at a time.
    pub runs_max: usize,
    /// Pictures of one run.
    pub images_max: usize,
    /// Memory that runs find on the fullest device; `None` when nobody knows.
    pub bytes: Option<u64>,
}
