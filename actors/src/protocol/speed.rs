//! How fast a device is, by the word of its own agent.

use crate::cost::device::DeviceProfile;

/// One device of a node.
#[derive(Clone, Debug, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct DeviceSpeed {
    /// Position among the node's devices.
    pub index: u32,
    /// Name under which its machine keeps the profile.
    pub kind: String,
    /// What it sustains.
    pub profile: DeviceProfile,
}
