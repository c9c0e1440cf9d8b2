//! Waiting for a program's output, but not for ever.

use std::process::{Child, Output};
use std::sync::mpsc::channel;
use std::time::Instant;

/// The output of `process`, which is killed at the deadline.
pub(super) fn output_within(process: Child, deadline: Instant) -> Result<Output, String> {
    let id = nix::unistd::Pid::from_raw(process.id().cast_signed());
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // Whoever waited has given up when this cannot be sent.
        let _ = tell.send(process.wait_with_output());
    });
    match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(output) => output.map_err(|error| error.to_string()),
        Err(_) => {
            // The thread above has not reaped it, so the number is still this process's.
            let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
            Err("it did not end in time".to_owned())
        }
    }
}
