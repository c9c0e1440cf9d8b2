//! What the C library's heap is told about a process that moves frames.
//!
//! Owns one environment variable. quinn takes memory for every packet and gives it back, and by
//! default glibc then returns the top of the heap to the kernel and takes it again, a page fault
//! for each 4 KiB: a third of the CPU time of a bulk connection (docs/transport.md has the
//! figures). Other C libraries ignore it.

/// Name and value, for the environment of processes that are started; what the user has set there
/// goes first.
pub const HEAP_TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.trim_threshold=1073741824:glibc.malloc.mmap_threshold=33554432",
);

/// The variable, unless this process has it already, and with it whatever it starts.
pub fn heap_tunables() -> Option<(&'static str, &'static str)> {
    let (name, _) = HEAP_TUNABLES;
    std::env::var_os(name).is_none().then_some(HEAP_TUNABLES)
}
