//! `up --detach`: a supervisor in the background, in a session of its own.
//!
//! Owns the one line that it sends back to its parent, and the log file of the run.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::RunFolder;
use super::stop;
use super::supervisor::{self, Outcome};
use super::{LaunchError, SUPERVISOR_SUBCOMMAND, UpOutcome};
use crate::manifest::Manifest;
use crate::status::ClusterStatus;
use crate::worker_process::bootstrap;

/// Time that a supervisor has beyond the cluster's own deadline.
const MARGIN: Duration = Duration::from_secs(60);

/// Bytes of the line that comes back.
const NOTICE_BYTES_MAX: u64 = 16 << 20;

/// From the supervisor to the `up` that started it.
#[derive(Debug, Serialize, Deserialize)]
enum Notice {
    Ready(ClusterStatus),
    AlreadyRunning(ClusterStatus),
    Failed(LaunchError),
}

/// Starts the supervisor and waits for its word.
pub(super) fn up(manifest: &Manifest) -> Result<UpOutcome, LaunchError> {
    let mut child = spawn(manifest)?;
    let system = |cause: String| LaunchError::System(format!("the supervisor {cause}"));
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(system("has no stdin or stdout".into()));
    };
    let line = bootstrap::line(manifest).map_err(system)?;
    stdin.write_all(&line).map_err(|error| system(format!("took no orders: {error}")))?;
    drop(stdin);
    let (tell, told) = sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(NOTICE_BYTES_MAX)).read_line(&mut line);
        // A parent that has given up does not listen.
        let _ = tell.send(read.map(|_| line));
    });
    let patience = Duration::from_millis(manifest.launcher.ready_deadline_ms.into()) + MARGIN;
    let line = match told.recv_timeout(patience) {
        Ok(line) => line.map_err(|error| system(format!("cannot be read: {error}")))?,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            // Its agents end with it.
            let _ = child.kill();
            let _ = child.wait();
            clean_up(manifest);
            return Err(system(format!("said nothing within {} s", patience.as_secs())));
        }
    };
    match serde_json::from_str(&line) {
        Ok(Notice::Ready(status)) => Ok(UpOutcome::Detached(status)),
        Ok(Notice::AlreadyRunning(status)) => Ok(UpOutcome::AlreadyRunning(status)),
        Ok(Notice::Failed(error)) => {
            // It has cleaned up before it said so.
            let _ = child.wait();
            Err(error)
        }
        Err(_) => {
            let status = child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
            clean_up(manifest);
            Err(system(format!("ended without a word ({status})")))
        }
    }
}

/// Removes what a supervisor that died left, its log included.
fn clean_up(manifest: &Manifest) {
    if let Err(error) = stop::remove(&RunFolder::of(manifest)) {
        tracing::warn!(%error, "the run folder stays");
    }
}

fn spawn(manifest: &Manifest) -> Result<Child, LaunchError> {
    let folder = RunFolder::of(manifest);
    let path = folder.path().join("log");
    let log = fs::create_dir_all(folder.path())
        .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
        .map_err(|error| LaunchError::File {
            path: path.display().to_string(),
            cause: error.to_string(),
        })?;
    let program = std::env::current_exe()
        .map_err(|error| LaunchError::System(format!("this program has no path: {error}")))?;
    Command::new(&program)
        .arg(SUPERVISOR_SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| {
            LaunchError::System(format!("cannot start {}: {error}", program.display()))
        })
}

/// The life of the supervisor process.
pub(super) fn run() -> Result<(), LaunchError> {
    // First of all, so that an interrupt meant for the parent does not end it half started.
    if let Err(error) = nix::unistd::setsid() {
        tracing::warn!(%error, "no session of its own");
    }
    let manifest: Manifest = bootstrap::read().map_err(LaunchError::System)?;
    let outcome = supervisor::run(&manifest, &mut |status| say(&Notice::Ready(status.clone())));
    match outcome {
        Ok(Outcome::Stopped) => Ok(()),
        Ok(Outcome::AlreadyRunning(status)) => {
            say(&Notice::AlreadyRunning(*status));
            Ok(())
        }
        Err(error) => {
            say(&Notice::Failed(error.clone()));
            Err(error)
        }
    }
}

fn say(notice: &Notice) {
    if let Ok(mut line) = serde_json::to_vec(notice) {
        line.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        // A parent that has gone does not listen.
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
}
