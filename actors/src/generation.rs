//! A request on its way: what a caller holds while its picture is made.
//!
//! Owns the handle, its bounded channel of updates and the ways a request can end badly. Does not
//! know who makes the picture: engine and client hand out the same handle.
//!
//! Invariants: exactly one result arrives; dropping the handle before that cancels the request.

use tokio::sync::mpsc;

use crate::request::{Event, Generation};

/// Updates a handle holds that nobody has read; later progress events are dropped, results never.
pub const UPDATES_MAX: usize = 4096;

/// How a request ended without a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The request itself is wrong (sizes, steps, degrees); the message says what would do.
    #[error("{0}")]
    Refused(String),
    /// A rank failed while it ran, or the mesh could not be formed.
    #[error("{0}")]
    Failed(String),
    /// A node, a device or the coordinator was lost; the message names it.
    #[error("{0}")]
    Lost(String),
    /// It waited in the queue for as long as it may; the message says for what.
    #[error("{0}")]
    Expired(String),
    /// The coordinator could not write it down, so it was never queued; the message says why.
    #[error("{0}")]
    NotAccepted(String),
    /// Cancelled by its caller.
    #[error("the request was cancelled")]
    Cancelled,
    /// The cluster cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// What a request's maker tells its caller.
#[derive(Debug)]
pub(crate) enum Update {
    /// Progress.
    Event(Event),
    /// The one result.
    Result(Box<Result<Generation, GenerateError>>),
}

/// A running request. Dropping it cancels the request.
pub struct GenerationHandle {
    updates: mpsc::Receiver<Update>,
    result: Option<Result<Generation, GenerateError>>,
    cancel: Option<Box<dyn FnOnce() + Send>>,
}

impl GenerationHandle {
    /// The next event, or `None` once the request has ended. Works on any async executor.
    pub async fn next_event(&mut self) -> Option<Event> {
        if self.result.is_some() {
            return None;
        }
        let update = self.updates.recv().await;
        self.take(update)
    }

    /// The result; events not read so far are skipped.
    ///
    /// # Errors
    /// As [`GenerateError`] says.
    pub async fn finish(mut self) -> Result<Generation, GenerateError> {
        while self.next_event().await.is_some() {}
        self.into_result()
    }

    /// As [`Self::next_event`], blocking this thread. Must not be called inside an async runtime.
    pub fn blocking_next_event(&mut self) -> Option<Event> {
        if self.result.is_some() {
            return None;
        }
        let update = self.updates.blocking_recv();
        self.take(update)
    }

    /// As [`Self::finish`], blocking this thread. Must not be called inside an async runtime.
    ///
    /// # Errors
    /// As [`GenerateError`] says.
    pub fn blocking_finish(mut self) -> Result<Generation, GenerateError> {
        while self.blocking_next_event().is_some() {}
        self.into_result()
    }

    /// What has been told since, without waiting.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }

    fn take(&mut self, update: Option<Update>) -> Option<Event> {
        match update {
            Some(Update::Event(event)) => return Some(event),
            Some(Update::Result(result)) => self.result = Some(*result),
            None => self.result = Some(Err(stopped())),
        }
        self.cancel = None;
        None
    }

    fn into_result(mut self) -> Result<Generation, GenerateError> {
        self.result.take().unwrap_or_else(|| Err(stopped()))
    }
}

fn stopped() -> GenerateError {
    GenerateError::Lost("the engine stopped before the request ended".into())
}

impl Drop for GenerationHandle {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}

impl std::fmt::Debug for GenerationHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationHandle").field("ended", &self.result.is_some()).finish()
    }
}

/// The maker's end of a [`GenerationHandle`].
#[derive(Clone, Debug)]
pub(crate) struct UpdateSink {
    updates: mpsc::Sender<Update>,
}

impl UpdateSink {
    /// Tells progress; dropped when the caller does not read or has gone.
    pub(crate) fn event(&self, event: Event) {
        // One place stays free for the result.
        if self.updates.capacity() > 1 {
            let _ = self.updates.try_send(Update::Event(event));
        }
    }

    /// Tells the result. Later ones are not read.
    pub(crate) fn result(&self, result: Result<Generation, GenerateError>) {
        let _ = self.updates.try_send(Update::Result(Box::new(result)));
    }
}

/// A handle and the sink that feeds it; `cancel` runs when the handle is dropped unfinished.
pub(crate) fn channel(cancel: impl FnOnce() + Send + 'static) -> (UpdateSink, GenerationHandle) {
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let handle = GenerationHandle { updates, result: None, cancel: Some(Box::new(cancel)) };
    (UpdateSink { updates: sender }, handle)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn watched() -> (UpdateSink, GenerationHandle, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let (sink, handle) = channel(move || flag.store(true, Ordering::SeqCst));
        (sink, handle, cancelled)
    }

    #[test]
    fn dropping_an_unfinished_handle_cancels() {
        let (_sink, handle, cancelled) = watched();
        drop(handle);
        assert!(cancelled.load(Ordering::SeqCst));
    }

    #[test]
    fn a_finished_handle_does_not_cancel() {
        let (sink, handle, cancelled) = watched();
        sink.event(Event::Encoded);
        sink.result(Err(GenerateError::Failed("rank 1 failed".into())));
        let error = handle.blocking_finish().expect_err("it failed");
        assert_eq!(error, GenerateError::Failed("rank 1 failed".into()));
        assert!(!cancelled.load(Ordering::SeqCst));
    }

    #[test]
    fn a_result_finds_room_however_many_events_nobody_read() {
        let (sink, handle, _) = watched();
        for step in 0..2 * UPDATES_MAX as u32 {
            sink.event(Event::Step { step, of: 1 });
        }
        sink.result(Err(GenerateError::Cancelled));
        assert_eq!(handle.blocking_finish().expect_err("it ended"), GenerateError::Cancelled);
    }

    #[test]
    fn a_maker_that_vanishes_is_a_loss() {
        let (sink, mut handle, _) = watched();
        drop(sink);
        assert_eq!(handle.blocking_next_event(), None);
        assert!(matches!(handle.blocking_finish(), Err(GenerateError::Lost(_))));
    }
}
