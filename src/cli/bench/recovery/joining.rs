//! How long a machine takes to join: a real `ditmesh join` beside a running cluster.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{LOOK_PAUSE, ROUND_MAX};
use crate::cli::bench::bed::Running;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupt;

const NAME: &str = "joiner";

/// For how long its token is good.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// The process; it ends with this.
struct Joiner(Child);

impl Drop for Joiner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds from the start of the process until its device can be used; its files go below `folder`.
pub(super) fn measure(
    running: &Running,
    folder: &Path,
    interrupt: &mut Interrupt,
) -> Result<f64, Failure> {
    let folder = folder.join(NAME);
    let token = running.client()?.blocking_token(Some(NAME), TOKEN_TTL)?;
    let token_file = write_token(&folder, &token)?;
    let coordinator = running.client()?.blocking_status()?.coordinator;
    let program = std::env::current_exe().map_err(Failure::failed)?;
    let mut command = Command::new(program);
    command.args(["join", "-q", "--name", NAME, "--address", "127.0.0.1", "--threads", "1"]);
    command.arg("--coordinator").arg(coordinator).arg("--state-dir").arg(&folder);
    command.arg("--token-file").arg(token_file).stdin(Stdio::null()).stdout(Stdio::null());
    let started = Instant::now();
    let _joiner = Joiner(command.spawn().map_err(Failure::failed)?);
    let usable = async {
        loop {
            let status = running.client()?.status().await?;
            let joiner = status.nodes.iter().find(|node| node.name == NAME);
            let mut devices = joiner.into_iter().flat_map(|node| &node.devices);
            if devices.any(|device| device.state == "ready" || device.state == "in mesh") {
                return Ok(started.elapsed().as_secs_f64());
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    let late = |_| Failure::failed(format!("a node did not join within {ROUND_MAX:?}"));
    interrupt.guard(async { tokio::time::timeout(ROUND_MAX, usable).await.map_err(late)? })?
}

fn write_token(folder: &Path, token: &str) -> Result<PathBuf, Failure> {
    let path = folder.join("token");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, token))
        .map_err(|error| Failure::write(&path, &error))?;
    Ok(path)
}
