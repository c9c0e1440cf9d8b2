//! Running the command line and looking at how it ended.

use std::path::Path;
use std::process::{Command, Output};

/// What one call did.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `ditmesh` with `args` in `folder`.
pub(crate) fn ditmesh(folder: &Path, args: &[&str]) -> Ended {
    ditmesh_with(folder, args, &[])
}

/// The same in an environment with these variables.
pub(crate) fn ditmesh_with(folder: &Path, args: &[&str], variables: &[(&str, &Path)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ditmesh"));
    command.args(args).current_dir(folder).env_remove("DITMESH_LOG").env("RUST_BACKTRACE", "1");
    command.stdin(std::process::Stdio::null()).envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

impl Ended {
    /// Ended well.
    pub(crate) fn done(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// Ended with `code`, one clear cause that contains `parts`, and no panic.
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{self:?}");
        for word in ["panicked", "backtrace", "RUST_BACKTRACE"] {
            assert!(!self.stderr.contains(word), "{self:?}");
        }
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {}", self.stderr);
        }
    }
}
