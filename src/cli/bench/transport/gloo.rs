//! gloo beside us: torch.distributed's send and recv between two processes.
//!
//! Owns the process that runs the committed script. Invariants: every wait has a deadline; a Python
//! without torch is no failure, it is said once.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

/// The script.
const SCRIPT: &str = include_str!("../../../../transport/benches/gloo_pair.py");
/// Longest wait for torch to be imported, or for one measurement.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A running pair of ranks.
pub(super) struct Gloo {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    /// Of torch.
    pub(super) version: String,
    _script: tempfile::TempDir,
}

#[derive(Deserialize)]
struct About {
    torch: String,
}

impl Gloo {
    /// Starts both ranks, each on its core.
    pub(super) fn start(python: &Path, cores: [usize; 2]) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let script = folder.path().join("gloo_pair.py");
        std::fs::write(&script, SCRIPT).map_err(|error| error.to_string())?;
        let mut process = Command::new(python)
            .arg(&script)
            .args(["--serve", "--cores", &format!("{},{}", cores[0], cores[1])])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", python.display()))?;
        let (Some(orders), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("it has no stdin or stdout".into());
        };
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let version = String::new();
        let mut gloo = Self { process, orders, answers, version, _script: folder };
        let about = gloo.hear().map_err(|_| format!("{} has no torch", python.display()))?;
        gloo.version = serde_json::from_value::<About>(about).map_err(|e| e.to_string())?.torch;
        Ok(gloo)
    }

    /// GB/s of `count` messages of `bytes`.
    pub(super) fn stream(&mut self, bytes: usize, count: u64) -> Result<f64, String> {
        let seconds = self.ask(&json!({ "bytes": bytes, "count": count }), "seconds")?;
        Ok(bytes as f64 * count as f64 / seconds / 1e9)
    }

    /// Microseconds of a round trip of 64 bytes.
    pub(super) fn round_trip(&mut self, count: u64) -> Result<f64, String> {
        self.ask(&json!({ "pings": count }), "microseconds")
    }

    fn ask(&mut self, order: &Value, figure: &str) -> Result<f64, String> {
        writeln!(self.orders, "{order}").map_err(|error| error.to_string())?;
        let answer = self.hear()?;
        answer[figure].as_f64().ok_or_else(|| format!("{answer} has no {figure}"))
    }

    fn hear(&mut self) -> Result<Value, String> {
        let line = self.answers.recv_timeout(ANSWER_MAX).map_err(|error| error.to_string())?;
        serde_json::from_str(&line).map_err(|error| error.to_string())
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // It may have ended already; its other rank ends with its input.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
