//! What an agent tells a worker process on its stdin.
//!
//! Owns the form of a bootstrap: one line of JSON, then stdin stays open for as long as the parent
//! lives. The node's key goes the same way; nothing of this is in the arguments.

use std::io::{BufRead, Read};
use std::sync::mpsc::{TrySendError, sync_channel};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent::credentials::Credentials;
use crate::agent::data_plane::DataPlaneConfig;
use crate::manifest::DeviceSection;

/// Longest bootstrap line, in bytes.
const BOOTSTRAP_BYTES_MAX: u64 = 4 << 20;

/// One device's worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerBootstrap {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) index: u32,
    pub(crate) incarnation: u64,
    pub(crate) device: DeviceSection,
    pub(crate) credentials: Credentials,
    /// `HOST:PORT`.
    pub(crate) coordinator: String,
    pub(crate) coordinator_node: String,
    pub(crate) data_plane: DataPlaneConfig,
    /// Milliseconds of silence after which the coordinator is taken for dead.
    pub(crate) dead_ms: u32,
    pub(crate) heartbeat_ms: u32,
}

/// Reads the first line of stdin.
///
/// # Errors
/// In words, when it is not such a line.
pub(crate) fn read<T: DeserializeOwned>() -> Result<T, String> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .take(BOOTSTRAP_BYTES_MAX)
        .read_line(&mut line)
        .map_err(|error| format!("cannot read stdin: {error}"))?;
    if line.trim().is_empty() {
        return Err("stdin is empty".into());
    }
    serde_json::from_str(&line).map_err(|error| format!("stdin is not a bootstrap: {error}"))
}

/// The line that [`read`] reads.
///
/// # Errors
/// In words, when the value cannot be written as JSON.
pub(crate) fn line<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = serde_json::to_vec(value).map_err(|error| error.to_string())?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Watches stdin on threads of its own: when it closes, or nothing comes for `lease`, the parent
/// has gone. `grace` later this process ends in any case, so that nothing outlives its parent.
pub(crate) fn watch_stdin(
    grace: Duration,
    lease: Option<Duration>,
    on_close: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let silence = watch(std::io::stdin(), lease)?;
    std::thread::Builder::new().name("lease".into()).spawn(move || {
        silence();
        on_close();
        std::thread::sleep(grace);
        std::process::exit(1);
    })?;
    Ok(())
}

/// What returns when `stream` has ended, or was silent for `lease`.
fn watch(
    mut stream: impl Read + Send + 'static,
    lease: Option<Duration>,
) -> std::io::Result<impl FnOnce() + Send> {
    // A sign of life that finds one waiting says nothing new.
    let (sign, signs) = sync_channel(1);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut rest = [0; 64];
        while stream.read(&mut rest).is_ok_and(|bytes| bytes > 0) {
            if let Err(TrySendError::Disconnected(())) = sign.try_send(()) {
                return;
            }
        }
    })?;
    Ok(move || match lease {
        Some(lease) => while signs.recv_timeout(lease).is_ok() {},
        None => while signs.recv().is_ok() {},
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_parent_has_gone_when_its_end_closes_or_it_is_silent_for_a_lease() {
        let (mut parent, child) = UnixStream::pair().expect("a pair");
        let ended = watch(child, None).expect("watched");
        parent.write_all(b"\n").expect("it reads");
        drop(parent);
        ended();
        // This one lives on and says nothing more.
        let (mut parent, child) = UnixStream::pair().expect("a pair");
        let lease = Duration::from_millis(100);
        let ended = watch(child, Some(lease)).expect("watched");
        parent.write_all(b"\n").expect("it reads");
        let since = Instant::now();
        ended();
        assert!(since.elapsed() >= lease);
        drop(parent);
    }
}
