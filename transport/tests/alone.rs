//! Tests that look at the whole process run in one of their own.

use std::process::{Child, Command, Stdio};

const ROLE: &str = "DITMESH_TEST_ROLE";

/// Runs `body` in a process that runs nothing else; `test` is the path of the calling test.
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    if std::env::var(ROLE).is_ok_and(|role| role == test) {
        return body();
    }
    let output = again(test, test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether this process is the one that [`start`] started in this role.
pub(crate) fn is_role(role: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|found| found == role)
}

/// Starts the same test in another process, which finds itself in `role`.
pub(crate) fn start(test: &str, role: &str) -> Child {
    again(test, role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn again(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

/// Whether the larger sizes were asked for.
pub(crate) fn full_scale() -> bool {
    std::env::var("DITMESH_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

/// What a process holds, by the kernel's account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) resident_bytes: u64,
}

impl Footprint {
    pub(crate) fn now() -> Self {
        let count = |dir| std::fs::read_dir(dir).unwrap().count();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            resident_bytes: pages * 4096,
        }
    }
}
