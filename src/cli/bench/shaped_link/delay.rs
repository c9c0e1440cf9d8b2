//! Packets that come to one end of a link are held for a fixed time.
//!
//! Owns the thread that gives the kernel's queue of packets (NFQUEUE) its verdicts, since kernels
//! are built without `netem`. Invariants: packets keep their order; when the thread cannot keep up
//! packets pass without delay rather than being lost; the thread ends with this value.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};

/// The queue's number within its namespace.
pub(super) const QUEUE: u16 = 0;

/// The most packets that are held.
const PACKETS_MAX: u32 = 65_536;

/// Longest sleep between two looks at the queue; a packet is held at most so much too long.
const LOOK: Duration = Duration::from_micros(100);

/// Longest wait for the thread to begin.
const BEGIN_MAX: Duration = Duration::from_secs(5);

/// Holds packets until it is dropped.
pub(super) struct Delay {
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Delay {
    /// Starts holding what the kernel puts into [`QUEUE`]; `enter` takes the thread into the
    /// namespace of that queue.
    pub(super) fn start(
        delay: Duration,
        enter: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, String> {
        let stopped = Arc::new(AtomicBool::new(false));
        let (tell, told) = sync_channel(1);
        let stop = Arc::clone(&stopped);
        let thread = std::thread::spawn(move || match enter().and_then(|()| open()) {
            Ok(queue) => {
                // Whoever started this may have given up; the flag says so.
                let _ = tell.send(Ok(()));
                hold(queue, delay, &stop);
            }
            Err(cause) => drop(tell.send(Err(cause))),
        });
        let delay = Self { stopped, thread: Some(thread) };
        told.recv_timeout(BEGIN_MAX).map_err(|error| format!("holding packets: {error}"))??;
        Ok(delay)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It looks at the flag after every look at the queue.
            let _ = thread.join();
        }
    }
}

fn open() -> Result<Queue, String> {
    let failed = |error: std::io::Error| format!("cannot hold packets (NFQUEUE): {error}");
    let mut queue = Queue::open().map_err(failed)?;
    queue.bind(QUEUE).map_err(failed)?;
    queue.set_copy_range(QUEUE, 0).map_err(failed)?;
    queue.set_queue_max_len(QUEUE, PACKETS_MAX).map_err(failed)?;
    queue.set_fail_open(QUEUE, true).map_err(failed)?;
    queue.set_recv_gso(QUEUE, true).map_err(failed)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

fn hold(mut queue: Queue, delay: Duration, stopped: &AtomicBool) {
    let mut held: VecDeque<(Instant, Message)> = VecDeque::new();
    while !stopped.load(Ordering::Relaxed) {
        loop {
            match queue.recv() {
                Ok(packet) => held.push_back((Instant::now() + delay, packet)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Packets that did not fit into the socket have passed already.
                Err(error) => {
                    tracing::debug!(%error, "packets passed without delay");
                    break;
                }
            }
        }
        let now = Instant::now();
        while let Some((due, mut packet)) = held.pop_front() {
            if due > now {
                held.push_front((due, packet));
                break;
            }
            packet.set_verdict(Verdict::Accept);
            if let Err(error) = queue.verdict(packet) {
                tracing::debug!(%error, "a packet stays held");
            }
        }
        let next = held.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(now));
        std::thread::sleep(next.min(LOOK));
    }
}
