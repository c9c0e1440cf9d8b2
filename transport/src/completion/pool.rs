//! Completions that are used again.
//!
//! Owns the idle ones of one kind on one link. Invariants: a pair comes back when both of its
//! halves are gone, with nothing of its last use in it; at most [`IDLE_MAX`] are kept; a pair
//! outlives its pool safely.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Awaited, Completer, Completion, Drive, Shared, halves};

/// The most that are kept: more than receives are posted ahead.
const IDLE_MAX: usize = 256;

/// Makes connected pairs without asking the allocator, once there were as many.
pub(crate) struct CompletionPool<T> {
    idle: Mutex<Vec<Arc<Shared<T>>>>,
}

impl<T> CompletionPool<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { idle: Mutex::new(Vec::new()) })
    }

    /// A connected pair whose waiting thread drives what it waits for.
    pub(crate) fn pair(
        self: &Arc<Self>,
        awaited: Awaited,
        driver: Option<Arc<dyn Drive>>,
    ) -> (Completer<T>, Completion<T>) {
        let idle = self.idle().pop();
        let shared = idle.unwrap_or_else(|| Arc::new(Shared::new(Arc::downgrade(self))));
        halves(shared, awaited, driver)
    }

    /// Keeps one that is as good as new.
    pub(super) fn take_back(&self, shared: Arc<Shared<T>>) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(shared);
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Arc<Shared<T>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use super::*;

    fn pair(pool: &Arc<CompletionPool<Arc<()>>>) -> (Completer<Arc<()>>, Completion<Arc<()>>) {
        pool.pair(Awaited::Other("a thing"), None)
    }

    #[test]
    fn a_pair_comes_back_empty_whichever_half_goes_last() {
        let (pool, thing) = (CompletionPool::new(), Arc::new(()));
        for completer_first in [true, false] {
            let (completer, mut waiting) = pair(&pool);
            assert!(!waiting.is_ready() && waiting.try_take().is_none());
            assert_eq!(pool.idle().len(), 0);
            if completer_first {
                completer.complete(Ok(Arc::clone(&thing)));
                assert!(waiting.is_ready());
                // Delivered, and never looked at.
                drop(waiting);
            } else {
                drop(waiting);
                completer.complete(Ok(Arc::clone(&thing)));
            }
            assert_eq!((pool.idle().len(), Arc::strong_count(&thing)), (1, 1));
        }
        let (unused, mut waiting) = pair(&pool);
        drop(unused);
        assert!(waiting.try_take().unwrap().is_err());
    }

    #[test]
    fn pairs_that_are_used_again_and_again_keep_their_values_apart() {
        let pool = CompletionPool::<usize>::new();
        let soon = || Instant::now() + Duration::from_secs(20);
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let pool = &pool;
                scope.spawn(move || {
                    for turn in 0..2000 {
                        let value = worker * 10_000 + turn;
                        let (completer, mut waiting) = pool.pair(Awaited::Other("a number"), None);
                        let teller = scope.spawn(move || completer.complete(Ok(value)));
                        if turn % 3 == 0 {
                            drop(waiting);
                        } else {
                            assert_eq!(waiting.wait_until(soon()).unwrap(), value);
                        }
                        teller.join().unwrap();
                    }
                });
            }
        });
        assert!(pool.idle().len() <= 6, "{}", pool.idle().len());
    }

    #[test]
    fn a_pair_outlives_its_pool() {
        let pool = CompletionPool::<u8>::new();
        let (completer, mut waiting) = pool.pair(Awaited::Other("a number"), None);
        drop(pool);
        completer.complete(Ok(1));
        assert_eq!(waiting.try_take().unwrap().unwrap(), 1);
    }
}
