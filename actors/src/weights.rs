//! Weights without a shared disk: a node that lacks a model's folder gets what it reads from peers.
//!
//! Owns what is offered (`store`), what is asked for and how it is proved (`fetcher`), and what is
//! kept on disk (`cache`). Bytes travel as blobs of the fabric, behind every frame. Knows nothing
//! of blocks or stages: a tensor is fetched when the model reads it, and only then.
//!
//! Invariants: the coordinator's node is the reference: the list of files and the digest of every
//! tensor come from it, the bytes from any member that has them; no byte is used before the SHA-256
//! of the whole tensor is the reference's; every wait has a deadline.

mod cache;
mod catalogue;
mod error;
mod fetcher;
mod names;
mod porter;
pub(crate) mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ditmesh_model::checkpoint::{Checkpoint, TensorSource};
use ditmesh_transport::PeerId;
use ditmesh_transport::fabric::{Fabric, PeerAddress};

pub use error::WeightsError;
use fetcher::{Fetcher, Peers};
use store::ModelStore;

use crate::protocol::{DeviceId, Form};

/// Where a worker finds a model.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In a folder of its host.
    Here(PathBuf),
    /// Configurations in a folder, weights from peers.
    Peers(PathBuf, Arc<Fetcher>),
}

impl Place {
    /// Looks for the model of `form` on this host, and among the members of its mesh where it is
    /// not here. Blocks on disk and network.
    ///
    /// # Errors
    /// [`WeightsError`], when no peer can say what the model is.
    pub(crate) fn find(
        form: &Form,
        device: &DeviceId,
        fabric: &Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
        known: &Fetchers,
    ) -> Result<Self, WeightsError> {
        let named = PathBuf::from(&form.model);
        if is_pipeline(&named) {
            return Ok(Self::Here(named));
        }
        if let Some(folder) = unpacked(&named) {
            return Ok(Self::Here(folder));
        }
        let fetcher = known.of(form.model_id, members(form, device)?, fabric, runtime)?;
        Ok(Self::Peers(fetcher.prepare()?, fetcher))
    }

    /// Opens the pipeline.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn open(&self) -> Result<Checkpoint, String> {
        let opened = match self {
            Self::Here(folder) => Checkpoint::open(folder),
            Self::Peers(folder, fetcher) => {
                Checkpoint::open_from(folder, fetcher.clone() as Arc<dyn TensorSource>)
            }
        };
        opened.map_err(|error| error.to_string())
    }

    /// Offers what is here to peers that lack it.
    pub(crate) fn offer(&self, model_id: u64, fabric: &dyn Fabric) {
        if let Self::Here(folder) = self {
            fabric.offer_blobs(Arc::new(ModelStore::new(folder.clone(), model_id)));
        }
    }
}

/// The fetcher of a worker: weights that are loaded keep it, because more of them may be read
/// later, and later meshes tell it whom to ask then.
#[derive(Clone, Default)]
pub(crate) struct Fetchers(Arc<Mutex<Option<Arc<Fetcher>>>>);

impl Fetchers {
    fn of(
        &self,
        model_id: u64,
        peers: Peers,
        fabric: &Arc<dyn Fabric>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Arc<Fetcher>, WeightsError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetcher) = known.as_ref().filter(|fetcher| fetcher.model() == model_id) {
            fetcher.renew(peers, fabric.clone(), runtime);
            return Ok(fetcher.clone());
        }
        let fetcher = Arc::new(Fetcher::new(model_id, peers, fabric.clone(), runtime)?);
        *known = Some(fetcher.clone());
        Ok(fetcher)
    }
}

fn is_pipeline(folder: &Path) -> bool {
    folder.join("model_index.json").is_file()
}

/// The model that ships with the program, where `named` is that on another host: it need not
/// travel.
fn unpacked(named: &Path) -> Option<PathBuf> {
    #[cfg(feature = "builtin")]
    {
        use ditmesh_model::builtin;
        let name = named.file_name()?.to_str()?;
        if name.starts_with(builtin::NAME) {
            let folder = builtin::folder().ok()?;
            return (folder.file_name() == named.file_name()).then_some(folder);
        }
    }
    #[cfg(not(feature = "builtin"))]
    let _ = named;
    None
}

/// Whom to ask: the reference, which is the mesh's controller on the coordinator's node, and
/// everybody on other hosts who may have the bytes. Each rank begins with another one.
fn members(form: &Form, device: &DeviceId) -> Result<Peers, WeightsError> {
    let peer = |member: &crate::protocol::Member| {
        let address = member.fabric_address.parse().ok()?;
        Some(PeerAddress { id: PeerId(member.rank), name: member.node.clone(), address })
    };
    let Some((reference, ranks)) = form.members.split_last() else {
        return Err(WeightsError::Unreachable {
            what: "the model".into(),
            tried: "the mesh has no members".into(),
        });
    };
    let reference = peer(reference).ok_or_else(|| WeightsError::Unreachable {
        what: "the model".into(),
        tried: format!("address {:?} of the coordinator", reference.fabric_address),
    })?;
    let mut donors: Vec<PeerAddress> =
        ranks.iter().filter(|member| member.node != device.node).filter_map(peer).collect();
    if !donors.is_empty() {
        let first = form.rank as usize % donors.len();
        donors.rotate_left(first);
    }
    donors.push(reference.clone());
    Ok(Peers { reference, donors })
}

#[cfg(test)]
mod tests;
