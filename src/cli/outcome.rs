//! Exit codes: how a command can end.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was tried and did not work.
    Failed,
    /// What was asked for cannot be done as asked; nothing was started.
    Usage,
    /// The cluster cannot be reached.
    Unreachable,
    /// A signal ended it.
    Interrupted,
}

impl Outcome {
    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Interrupted => 130,
        }
    }
}

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage or input (nothing was started), \
3 cluster unreachable, 130 interrupted.";
