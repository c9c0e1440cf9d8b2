//! How a run is stopped from outside: a flag that its compute thread looks at between phases.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once, by whoever aborts the run.
#[derive(Debug, Default)]
pub struct AbortFlag {
    set: AtomicBool,
    cause: OnceLock<String>,
}

impl AbortFlag {
    /// Aborts; the first cause stays.
    pub fn abort(&self, cause: &str) {
        self.cause.get_or_init(|| cause.to_owned());
        self.set.store(true, Ordering::Release);
    }

    /// The cause, once aborted.
    pub fn cause(&self) -> Option<&str> {
        if self.set.load(Ordering::Acquire) { self.cause.get().map(String::as_str) } else { None }
    }
}
