//! One thread of another process that stands still, by the kernel's tracing, while the others go
//! on.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Held until its process ends.
pub(crate) struct HeldThread(JoinHandle<()>);

impl HeldThread {
    /// Holds the thread of this name; `None`, which is said, where tracing is not permitted and
    /// namespaces, which need as much, are not required.
    pub(crate) fn hold(process: u32, name: &str) -> Option<Self> {
        let thread = thread(process, name);
        let (tell, told) = channel();
        let tracer = std::thread::spawn(move || trace(thread, &tell));
        let held = told.recv().unwrap();
        if held == Err(Errno::EPERM) {
            let required = std::env::var_os("DITMESH_TEST_NAMESPACES").is_some();
            assert!(!required, "tracing is required");
            eprintln!("skipped: other processes cannot be traced here");
            return None;
        }
        held.unwrap();
        Some(Self(tracer))
    }

    /// Waits until its process has ended.
    pub(crate) fn ended(self) {
        self.0.join().unwrap();
    }
}

fn thread(process: u32, name: &str) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let is_it = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let found = threads.find(is_it).unwrap();
    Pid::from_raw(found.file_name().unwrap().to_str().unwrap().parse().unwrap())
}

/// Whoever traces a thread has to hear of its end, or its process would not be gone; and a tracer
/// that ends lets it go.
fn trace(thread: Pid, tell: &Sender<Result<(), Errno>>) {
    let seized = ptrace::seize(thread, ptrace::Options::empty());
    let held = seized.and_then(|()| ptrace::interrupt(thread));
    tell.send(held).unwrap();
    if held.is_err() {
        return;
    }
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
