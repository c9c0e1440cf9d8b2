//! How bytes move between the processes of a ditmesh cluster.
//!
//! Owns regions and frames, links with posted receives and grants, the fabrics that form meshes of
//! links (in this process, over QUIC, simulated), collectives as schedules over point-to-point, how
//! floats become fewer bytes, the control channel, and the identities of processes. Does not know
//! what is computed: no candle, no model, no plan.
//!
//! Invariants: the receiver posts a place before a frame travels; nothing from the wire is believed
//! before its bounds are checked; every wait has a deadline, and the loss of a peer resolves
//! everything that waits for it.

pub mod blobs;
pub mod codec;
pub mod collectives;
pub mod completion;
pub mod control;
mod endpoint;
pub mod error;
pub mod fabric;
pub mod frame;
pub mod heap;
pub mod identity;
pub mod ids;
pub mod in_process;
pub mod interface;
pub mod join;
pub mod link;
pub mod load;
mod mesh;
pub mod probe;
pub mod quic;
pub(crate) mod ready;
pub mod region;
pub mod sim;
mod stack;
#[allow(unsafe_code)]
pub mod ucx;

pub use completion::{Awaited, Completer, Completion, completion};
pub use control::{ControlChannel, ControlConfig, ControlEndpoint, ControlReceiver, ControlSender};
pub use error::TransportError;
pub use fabric::{Fabric, FabricAddress, Forming, Holdings, LaneAddresses, MeshForm, PeerAddress};
pub use frame::{Dtype, FrameMeta, Priority};
pub use identity::{ClusterCa, Identity, IdentityError, PeerIdentity, Role};
pub use ids::{Epoch, Incarnation, PeerId, RunId, Tag};
pub use in_process::InProcessHub;
pub use link::{Caps, Carrier, Link, LinkStats, PostRecv, Received, SendFrame, Transport};
pub use quic::{Congestion, QuicConfig, QuicFabric};
pub use region::{DeviceMemory, MemKind, Memory, Ready, Region, RegionPool, Slice};
pub use sim::{SimConfig, SimNetwork};
pub use ucx::{LaneChoice, UcxConfig, UcxFabric};
