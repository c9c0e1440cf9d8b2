//! Why weights could not be had from peers.

/// Why a model, or a tensor of it, could not be had from peers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// Nobody who was asked has it.
    #[error("{what} is not on this host, and no peer gave it: {tried}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Whom, and what each said.
        tried: String,
    },
    /// What came is not what the reference has.
    #[error("{what} came damaged from {peers}: its digest is not that of the coordinator's node")]
    Damaged {
        /// What was asked for.
        what: String,
        /// Who gave it.
        peers: String,
    },
    /// The reference's list of files makes no sense, or is of another model.
    #[error("the coordinator's list of the model's files cannot be used: {0}")]
    Catalogue(String),
    /// The cache on disk could not be used.
    #[error("cannot keep weights in {path}: {cause}; DITMESH_CACHE_DIR names another folder")]
    Cache {
        /// The file or folder.
        path: String,
        /// What the system said.
        cause: String,
    },
    /// It took longer than anybody may wait.
    #[error("{what} did not come within {seconds} s")]
    Deadline {
        /// What was asked for.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
}
