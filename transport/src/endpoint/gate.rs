//! How many strangers may be half-way in.
//!
//! Owns the places for handshakes under way, and what is said in the log about callers that were
//! turned away. Does not know certificates: a place is held until the caller has proved who it is.
//! Invariants: at most [`HANDSHAKES_MAX`] callers, and [`HANDSHAKES_PER_HOST_MAX`] of one host,
//! have state here before they are authenticated; a caller beyond that is dropped without an answer
//! (an honest one sends its first packet again); when many are under way, newcomers must first show
//! that they receive what is sent to their address, which costs no memory here; the log gets at
//! most one line per [`LOG_INTERVAL`].

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::TransportError;
use crate::stack::{Endpoint, Incoming};

/// The most handshakes that one endpoint has under way.
pub const HANDSHAKES_MAX: usize = 512;

/// The most of them that come from one host.
pub const HANDSHAKES_PER_HOST_MAX: usize = 128;

/// From this many on, callers must prove their address first (a QUIC Retry).
pub const HANDSHAKES_UNPROVEN_MAX: usize = 32;

/// The least time between two lines in the log about callers turned away.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The places of one endpoint; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    under_way: usize,
    by_host: HashMap<IpAddr, usize>,
    refused: u64,
    unlogged: u64,
    logged: Option<Instant>,
}

/// What to do with a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Admit,
    /// Ask it to come again with a token.
    Prove,
    /// Forget that it was here.
    Ignore,
}

/// The right to do one handshake; dropping it frees the place.
pub(crate) struct GatePass {
    gate: Gate,
    host: IpAddr,
}

impl Gate {
    /// The next caller that may do its handshake; `None` when the endpoint is closed.
    pub(crate) async fn next(&self, endpoint: &Endpoint) -> Option<(Incoming, GatePass)> {
        loop {
            let incoming = endpoint.accept().await?;
            let host = incoming.remote_address().ip();
            let proven = incoming.remote_address_validated() || !incoming.may_retry();
            let decision = self.book().decide(host, proven);
            match decision {
                Decision::Admit => {
                    return Some((incoming, GatePass { gate: self.clone(), host }));
                }
                Decision::Prove => incoming.retry(),
                Decision::Ignore => incoming.ignore(),
            }
        }
    }

    /// A caller was refused: counts it, and tells the log, unless it was told of another just now.
    pub(crate) fn refused(&self, from: SocketAddr, error: &TransportError) {
        let more = {
            let mut book = self.book();
            book.refused += 1;
            book.log(Instant::now())
        };
        if let Some(more) = more {
            tracing::warn!(%from, %error, more, "refused a caller");
        }
    }

    /// Callers that were refused or left unanswered so far.
    pub(crate) fn refused_total(&self) -> u64 {
        self.book().refused
    }

    /// Callers that are half-way in just now.
    pub(crate) fn under_way(&self) -> usize {
        self.book().under_way
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for GatePass {
    fn drop(&mut self) {
        self.gate.book().leave(self.host);
    }
}

impl Book {
    fn decide(&mut self, host: IpAddr, proven: bool) -> Decision {
        let of_host = self.by_host.get(&host).copied().unwrap_or(0);
        if self.under_way >= HANDSHAKES_MAX || of_host >= HANDSHAKES_PER_HOST_MAX {
            self.refused += 1;
            return Decision::Ignore;
        }
        if self.under_way >= HANDSHAKES_UNPROVEN_MAX && !proven {
            return Decision::Prove;
        }
        self.under_way += 1;
        *self.by_host.entry(host).or_default() += 1;
        Decision::Admit
    }

    fn leave(&mut self, host: IpAddr) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(of_host) = self.by_host.get_mut(&host) {
            *of_host -= 1;
            if *of_host == 0 {
                self.by_host.remove(&host);
            }
        }
    }

    /// How many were refused since the last line, when it is time for another.
    fn log(&mut self, now: Instant) -> Option<u64> {
        if self.logged.is_some_and(|at| now.duration_since(at) < LOG_INTERVAL) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn newcomers_prove_their_address_once_many_are_under_way() {
        let mut book = Book::default();
        for _ in 0..HANDSHAKES_UNPROVEN_MAX {
            assert_eq!(book.decide(host(1), false), Decision::Admit);
        }
        assert_eq!(book.decide(host(1), false), Decision::Prove);
        assert_eq!(book.decide(host(1), true), Decision::Admit);
        for _ in 0..=HANDSHAKES_UNPROVEN_MAX {
            book.leave(host(1));
        }
        assert_eq!(book.decide(host(2), false), Decision::Admit);
    }

    #[test]
    fn one_host_cannot_take_all_places_and_all_hosts_no_more_than_there_are() {
        let mut book = Book::default();
        for _ in 0..HANDSHAKES_PER_HOST_MAX {
            assert_eq!(book.decide(host(0), true), Decision::Admit);
        }
        assert_eq!(book.decide(host(0), true), Decision::Ignore);
        assert_eq!(book.refused, 1);
        let admitted = (0..HANDSHAKES_MAX * 2).filter(|at| {
            let caller = host(u8::try_from(1 + at % 200).unwrap_or(1));
            book.decide(caller, true) == Decision::Admit
        });
        assert_eq!(admitted.count(), HANDSHAKES_MAX - HANDSHAKES_PER_HOST_MAX);
        for _ in 0..HANDSHAKES_PER_HOST_MAX {
            book.leave(host(0));
        }
        assert!(!book.by_host.contains_key(&host(0)));
        assert_eq!(book.decide(host(0), true), Decision::Admit);
    }

    #[test]
    fn the_log_gets_one_line_a_second() {
        let mut book = Book::default();
        let begun = Instant::now();
        assert_eq!(book.log(begun), Some(0));
        for _ in 0..9 {
            assert_eq!(book.log(begun), None);
        }
        assert_eq!(book.log(begun + LOG_INTERVAL), Some(9));
    }
}
