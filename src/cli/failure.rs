//! Why a command did not do its work: one message, one outcome.
//!
//! Owns which error of the layers below ends in which exit code.

use std::fmt::Display;
use std::path::Path;

use ditmesh::picture::PictureError;
use ditmesh::tensor_file::TensorFileError;
use ditmesh::{ClientError, EngineError, GenerateError, ManifestError};
use ditmesh_actors::agent::{AgentError, JoinError};
use ditmesh_actors::launcher::LaunchError;
use ditmesh_actors::worker_process::WorkerProcessError;
use ditmesh_transport::identity::IdentityError;

use super::outcome::Outcome;

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    /// How it ends.
    pub(crate) outcome: Outcome,
    /// What is said about it; nothing when empty.
    pub(crate) message: String,
}

impl Failure {
    /// It was tried and did not work.
    pub(crate) fn failed(message: impl Display) -> Self {
        Self { outcome: Outcome::Failed, message: message.to_string() }
    }

    /// It cannot be done as asked.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self { outcome: Outcome::Usage, message: message.to_string() }
    }

    /// The cluster cannot be reached.
    pub(crate) fn unreachable(message: impl Display) -> Self {
        Self { outcome: Outcome::Unreachable, message: message.to_string() }
    }

    /// A signal ended it.
    pub(crate) fn interrupted() -> Self {
        Self { outcome: Outcome::Interrupted, message: "interrupted".to_owned() }
    }

    /// A file could not be written.
    pub(crate) fn write(path: &Path, error: &std::io::Error) -> Self {
        Self::failed(format!("cannot write {}: {error}", path.display()))
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self::usage(error)
    }
}

impl From<TensorFileError> for Failure {
    fn from(error: TensorFileError) -> Self {
        Self::usage(error)
    }
}

impl From<PictureError> for Failure {
    fn from(error: PictureError) -> Self {
        Self::failed(error)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::failed(error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::failed(error)
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Token(_) => Self::usage(error),
            JoinError::Unreachable { .. } => Self::unreachable(error),
            _ => Self::failed(error),
        }
    }
}

impl From<WorkerProcessError> for Failure {
    fn from(error: WorkerProcessError) -> Self {
        Self::failed(error)
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Manifest(_) => Self::usage(error),
            LaunchError::Interrupted => {
                Self { outcome: Outcome::Interrupted, ..Self::failed(error) }
            }
            _ => Self::failed(error),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Manifest(_) => Self::usage(error),
            _ => Self::failed(error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotRunning { .. } | ClientError::Unreachable { .. } => {
                Self::unreachable(error)
            }
            _ => Self::failed(error),
        }
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::Refused(_) => Self::usage(error),
            GenerateError::Unreachable(_) => Self::unreachable(error),
            GenerateError::Cancelled => Self::interrupted(),
            GenerateError::Failed(_)
            | GenerateError::Lost(_)
            | GenerateError::Expired(_)
            | GenerateError::NotAccepted(_) => Self::failed(error),
        }
    }
}
