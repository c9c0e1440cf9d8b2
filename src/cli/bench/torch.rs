//! PyTorch beside us: its time for a PixArt block on one thread.
//!
//! Owns the process that runs the committed script and the lines that go to and fro. Invariants:
//! every wait has a deadline; a Python without torch is no failure, it is said once.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;

/// The script.
const SCRIPT: &str = include_str!("../../../model/benches/torch_block.py");
/// Longest wait for torch to be imported, or for a block to be built and run.
const ANSWER_SECONDS_MAX: Duration = Duration::from_secs(300);
/// Runs of a block per round.
const REPEAT: usize = 5;

/// A running torch.
pub(crate) struct Torch {
    process: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    case: String,
    /// Of torch.
    pub(crate) version: String,
}

#[derive(Deserialize)]
struct About {
    torch: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    seconds: Vec<f64>,
    error: Option<String>,
}

impl Torch {
    /// Starts `python` on `core` for the block `case` (named as in the script).
    pub(crate) fn start(python: &Path, core: usize, case: String) -> Result<Self, String> {
        let mut process = Command::new(python)
            .args(["-c", SCRIPT, "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", python.display()))?;
        pin(&process, core)?;
        let (Some(requests), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("it has no stdin or stdout".into());
        };
        let (tell, answers) = sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut torch = Self { process, requests, answers, case, version: String::new() };
        let about = torch.answer().map_err(|_| format!("{} has no torch", python.display()))?;
        let about: About = serde_json::from_str(&about).map_err(|error| error.to_string())?;
        torch.version = about.torch;
        Ok(torch)
    }

    /// Seconds of the block, several times.
    pub(crate) fn measure(&mut self) -> Result<Vec<f64>, String> {
        let request = json!({ "case": self.case, "mode": "eager", "repeat": REPEAT });
        writeln!(self.requests, "{request}").map_err(|error| error.to_string())?;
        let answer = self.answer()?;
        let answer: Answer = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        match answer.error {
            Some(error) => Err(error),
            None => Ok(answer.seconds),
        }
    }

    fn answer(&self) -> Result<String, String> {
        self.answers.recv_timeout(ANSWER_SECONDS_MAX).map_err(|error| error.to_string())
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Threads that it starts from now on stay on `core` too.
fn pin(process: &Child, core: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core).map_err(|error| error.to_string())?;
    sched_setaffinity(Pid::from_raw(process.id() as i32), &set).map_err(|error| error.to_string())
}
