//! How findings are made: what is not as it should be comes with the command that fixes it.

use crate::protocol::examine::{Finding, Level};

impl Finding {
    /// As it should be.
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        let (check, found) = (check.to_owned(), found.into());
        Self { check, level: Level::Ok, node: None, found, fix: None }
    }

    /// Not as it should be, or not known to be, and the command that changes that.
    pub fn amiss(
        check: &str,
        level: Level,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { level, fix: Some(fix.into()), ..Self::ok(check, found) }
    }

    /// Seen on the host of this node.
    #[must_use]
    pub fn on(mut self, node: Option<&str>) -> Self {
        self.node = node.map(ToOwned::to_owned);
        self
    }
}
