//! One thing that was looked at.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Links work, and could be faster or safer.
    Slow,
    /// Could not be looked at.
    Unknown,
    /// Links do not work, or will not for long.
    Problem,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, in one or two words.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What was found.
    pub(super) found: String,
    /// The command that fixes it.
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn new(check: &'static str, level: Level, found: impl Into<String>) -> Self {
        Self { check, level, found: found.into(), fix: None }
    }

    /// The command that fixes it.
    pub(super) fn fix(mut self, command: impl Into<String>) -> Self {
        self.fix = Some(command.into());
        self
    }

    /// For people: one line, and one with the command.
    pub(super) fn text(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Slow => "slow",
            Level::Unknown => "?",
            Level::Problem => "PROBLEM",
        };
        let line = format!("{level:8}{:14}{}", self.check, self.found);
        match &self.fix {
            Some(fix) => format!("{line}\n{:22}{fix}", ""),
            None => line,
        }
    }
}
