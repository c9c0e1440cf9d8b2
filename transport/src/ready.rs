//! Waiting for payloads that are not ready when they are sent.
//!
//! Owns a thread, started when the first such payload comes, that waits for one after the other:
//! what one device is told to do becomes ready in that order. Does not own what happens then.
//! Invariants: whoever asks never waits, and is not called back before its question was taken;
//! every question is answered, after [`READY_TIMEOUT`] at the latest; the thread ends with its
//! owner, when everything was answered.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::error::TransportError;
use crate::region::Ready;

/// How long a payload that is not ready yet is waited for.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What to do when a payload is ready, or why it will not be.
type Then = Box<dyn FnOnce(Result<(), TransportError>) + Send>;

type Question = (Arc<dyn Ready>, Then);

/// One waiting thread.
#[derive(Default)]
pub(crate) struct Readiness {
    /// To the thread; at most as many wait there as frames may wait on the links.
    questions: Mutex<Option<Sender<Question>>>,
}

impl Readiness {
    /// Calls `then` on the thread once `ready` is; here only to say that there is no thread.
    pub(crate) fn when(&self, ready: Arc<dyn Ready>, then: Then) {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match questions.take().map_or_else(start, Ok) {
            Ok(running) => running,
            Err(error) => {
                drop(questions);
                return then(Err(TransportError::system("start a thread that waits", error)));
            }
        };
        match running.send((ready, then)) {
            Ok(()) => *questions = Some(running),
            // What another question led to has panicked there.
            Err(unasked) => {
                drop(questions);
                unasked.0.1(Err(TransportError::closed("the thread that waits for payloads")));
            }
        }
    }
}

fn start() -> std::io::Result<Sender<Question>> {
    let (questions, asked) = channel::<Question>();
    Builder::new().name("ditmesh-ready".to_owned()).spawn(move || {
        for (ready, then) in asked {
            let in_time = ready.wait(Instant::now() + READY_TIMEOUT);
            let late = || TransportError::deadline("a payload to be ready");
            then(if in_time { Ok(()) } else { Err(late()) });
        }
    })?;
    Ok(questions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Flag(AtomicBool);

    impl Ready for Flag {
        fn wait(&self, deadline: Instant) -> bool {
            while !self.0.load(Ordering::SeqCst) {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::yield_now();
            }
            true
        }
    }

    #[test]
    fn what_is_not_ready_is_waited_for_in_order_on_one_other_thread() {
        let readiness = Readiness::default();
        let (told, heard) = channel();
        let ask = |ready: &Arc<Flag>, number: u32| {
            let told = told.clone();
            let then = move |outcome: Result<(), TransportError>| {
                outcome.unwrap();
                told.send((number, std::thread::current().id())).unwrap();
            };
            readiness.when(Arc::clone(ready) as Arc<dyn Ready>, Box::new(then));
        };
        let late = Arc::new(Flag(AtomicBool::new(false)));
        let early = Arc::new(Flag(AtomicBool::new(true)));
        ask(&late, 1);
        ask(&early, 2);
        assert!(heard.recv_timeout(Duration::from_millis(20)).is_err());
        let here = std::thread::current().id();
        late.0.store(true, Ordering::SeqCst);
        let limit = Duration::from_secs(20);
        let answers = [heard.recv_timeout(limit).unwrap(), heard.recv_timeout(limit).unwrap()];
        assert_eq!(answers.map(|(number, _)| number), [1, 2]);
        assert!(answers.iter().all(|(_, thread)| *thread != here && *thread == answers[0].1));
    }
}
