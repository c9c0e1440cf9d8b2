//! Which connections of a port have something to do, and whom that wakes.
//!
//! Owns the list and the waker of the port's task. Invariants: it is the last lock taken; a
//! connection is in the list at most once (its own flag says so); after the end nothing is kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::connection::Shared;

#[derive(Default)]
pub(super) struct Work(Mutex<Book>);

#[derive(Default)]
struct Book {
    waiting: VecDeque<Arc<Shared>>,
    task: Option<Waker>,
    over: bool,
}

impl Work {
    /// This connection has something to do.
    pub(super) fn push(&self, connection: Arc<Shared>) {
        let mut book = self.book();
        if book.over {
            return;
        }
        book.waiting.push_back(connection);
        if let Some(task) = &book.task {
            task.wake_by_ref();
        }
    }

    /// The task has a reason to look.
    pub(super) fn wake(&self) {
        if let Some(task) = &self.book().task {
            task.wake_by_ref();
        }
    }

    /// Moves the list to the end of `to`; `task` is woken by what comes from now on.
    pub(super) fn take(&self, to: &mut VecDeque<Arc<Shared>>, task: &Waker) {
        let mut book = self.book();
        to.append(&mut book.waiting);
        if !book.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            book.task = Some(task.clone());
        }
    }

    /// Nobody looks any more.
    pub(super) fn end(&self) {
        let mut book = self.book();
        let left = std::mem::take(&mut book.waiting);
        *book = Book { over: true, ..Book::default() };
        drop(book);
        // After the lock: they may be the last of their connections.
        drop(left);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
