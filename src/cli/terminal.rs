//! What the user sees: results on stdout, everything else on stderr.
//!
//! Invariant: a reader of stdout that has gone (`| head`) is no error and no panic.

use std::io::{self, IsTerminal, Write};

use super::failure::Failure;

/// The two streams of this process.
#[derive(Debug)]
pub(crate) struct Terminal {
    quiet: bool,
}

impl Terminal {
    /// With `quiet`, only errors and what was asked for are shown.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether a progress bar makes sense.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// What was asked for: a line or more on stdout.
    pub(crate) fn result(&self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())?;
        if text.ends_with('\n') { Ok(()) } else { self.bytes(b"\n") }
    }

    /// What was asked for, as bytes on stdout.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::failed(format!("cannot write to stdout: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Something worth knowing, unless quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// What went wrong.
    pub(crate) fn error(&self, text: &str) {
        let _ = writeln!(io::stderr(), "error: {text}");
    }
}
