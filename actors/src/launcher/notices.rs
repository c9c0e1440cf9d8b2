//! What agents say on their stdout: one line of JSON for each notice.
//!
//! Invariant: bounded, whatever the other side prints; lines that are no notice (what a shell on
//! the other host prints at login) are passed over.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Lines, Take};

use crate::agent::bootstrap::AgentNotice;

/// Bytes of an agent's notices that are read.
const NOTICE_BYTES_MAX: u64 = 1 << 16;

/// The notices of one agent.
pub(super) struct Notices<R>(Lines<BufReader<Take<R>>>);

impl<R: AsyncRead + Unpin> Notices<R> {
    /// Reads them from `stdout`.
    pub(super) fn of(stdout: R) -> Self {
        Self(BufReader::new(stdout.take(NOTICE_BYTES_MAX)).lines())
    }

    /// The next one; `None` when there will be none.
    pub(super) async fn next(&mut self) -> Option<AgentNotice> {
        loop {
            let line = self.0.next_line().await.ok()??;
            if let Ok(notice) = serde_json::from_str(&line) {
                return Some(notice);
            }
            tracing::debug!(line, "no notice of an agent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shell_that_greets_is_passed_over_and_nobody_is_read_without_end() {
        let said = b"Welcome!\n\n{\"Failed\":\"no\"}\n".as_slice();
        let mut notices = Notices::of(said);
        assert_eq!(notices.next().await, Some(AgentNotice::Failed("no".into())));
        assert_eq!(notices.next().await, None);
        let endless = tokio::io::repeat(b'x');
        assert_eq!(Notices::of(endless).next().await, None);
    }
}
