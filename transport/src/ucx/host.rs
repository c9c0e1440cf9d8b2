//! Whether two processes can share memory.
//!
//! Owns the fingerprint of a host, user and set of namespaces. Invariant: processes with different
//! fingerprints are never given shared memory; where something cannot be read, it counts as itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// This process's fingerprint: boot, user, process and IPC namespaces, and `/dev/shm`.
pub(super) fn fingerprint() -> [u8; 16] {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let link = |name: &str| std::fs::read_link(Path::new("/proc/self/ns").join(name)).ok();
    let shared = std::fs::metadata("/dev/shm").ok().map(|shm| (shm.dev(), shm.ino()));
    let user = std::fs::metadata("/proc/self").ok().map(|own| own.uid());
    let facts = (boot, user, link("pid"), link("ipc"), shared);
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        (salt, &facts).hash(&mut hasher);
        hasher.finish().to_le_bytes()
    };
    let mut fingerprint = [0; 16];
    let (front, back) = fingerprint.split_at_mut(8);
    front.copy_from_slice(&half(0));
    back.copy_from_slice(&half(1));
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_process_agrees_with_itself() {
        assert_eq!(fingerprint(), fingerprint());
        assert_ne!(fingerprint(), [0; 16]);
    }
}
