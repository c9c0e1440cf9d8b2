//! A machine that joins a cluster by token, as a process of this one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster_harness::Cluster;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ditmesh");

/// A node that joined, with a folder of its own.
pub(crate) struct Joiner {
    pub(crate) name: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) process: Child,
}

impl Joiner {
    /// Joins `cluster` as `name` with a new token.
    pub(crate) fn join(cluster: &Cluster, name: &str) -> Self {
        let token = cluster.run(&["token", "-q"]);
        Self::with_token(cluster, name, token.done().trim())
    }

    pub(crate) fn with_token(cluster: &Cluster, name: &str, token: &str) -> Self {
        Self::by(Command::new(PROGRAM), cluster, name, token)
    }

    /// Joins by a command that is `ditmesh`, or ends with it.
    pub(crate) fn by(mut command: Command, cluster: &Cluster, name: &str, token: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), token).unwrap();
        join(&mut command, folder.path(), &cluster.status().coordinator, name);
        command.args(["--token-file", "token"]).env("DITMESH_CACHE_DIR", folder.path());
        let process = command.stdout(Stdio::null()).spawn().unwrap();
        Self { name: name.into(), folder, process }
    }

    /// Starts again without a token, as after a restart of the machine.
    pub(crate) fn again(&mut self, cluster: &Cluster) {
        let coordinator = cluster.status().coordinator;
        let mut command = Command::new(PROGRAM);
        join(&mut command, self.folder.path(), &coordinator, &self.name);
        command.env("DITMESH_CACHE_DIR", self.folder.path());
        self.process = command.stdout(Stdio::null()).spawn().unwrap();
    }

    /// The agent ends by itself, in order.
    pub(crate) fn ended(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{}: {status}", self.name);
                return;
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes it `ditmesh join` from `folder`.
pub(crate) fn join(command: &mut Command, folder: &Path, coordinator: &str, name: &str) {
    command.current_dir(folder).args(["join", "-q", "--coordinator", coordinator, "--name", name]);
    command.args(["--address", "127.0.0.1", "--state-dir", "state"]);
}
