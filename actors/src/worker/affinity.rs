//! Pinning to cores, where the system has it.

/// Pins this thread, and those it starts, to `cores`; nothing when the list is empty.
pub(crate) fn pin(cores: &[usize]) {
    if cores.is_empty() {
        return;
    }
    let mut set = nix::sched::CpuSet::new();
    for &core in cores {
        if set.set(core).is_err() {
            tracing::warn!(core, "no such core to pin to");
        }
    }
    if let Err(error) = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set) {
        tracing::warn!(%error, ?cores, "cannot pin the compute thread");
    }
}
