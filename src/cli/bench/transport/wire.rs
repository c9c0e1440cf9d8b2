//! What every way must be able to do to be measured.
//!
//! Owns the trait and the orders that the two ends get. Invariant: both ends of a wire get the same
//! orders in the same order, one as `first`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::subject::Subject;

/// What the two ends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Act {
    /// The first sends, the second tells when it has everything.
    Stream,
    /// Both send and receive at once.
    Exchange,
    /// The first asks, the second answers, `count` times.
    Ping,
}

/// One order for one end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) subject: Subject,
    pub(super) act: Act,
    pub(super) first: bool,
    /// Of each message.
    pub(super) bytes: usize,
    /// Messages, or round trips.
    pub(super) count: u64,
    /// Between the starts of two round trips; 0 for at once.
    pub(super) every_ms: u64,
}

/// What one end saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    /// From the first byte until the other end has the last.
    pub(super) seconds: f64,
    /// Of each round trip.
    pub(super) trips: Vec<f64>,
}

/// One end of a way that is joined.
pub(super) trait Wire: Send {
    /// Sends `count` messages and waits until the other end has them all.
    fn send(&mut self, bytes: usize, count: u64) -> Result<(), String>;

    /// Receives what the other end sends, and says so.
    fn receive(&mut self, bytes: usize, count: u64) -> Result<(), String>;

    /// Both at once.
    fn exchange(&mut self, bytes: usize, count: u64) -> Result<(), String>;

    /// Asks and waits for the answer.
    fn ask(&mut self, bytes: usize) -> Result<(), String>;

    /// Waits for a question and answers.
    fn answer(&mut self, bytes: usize) -> Result<(), String>;

    /// Carries out one order.
    fn run(&mut self, run: &Run) -> Result<Seen, String> {
        let begun = Instant::now();
        let mut trips = Vec::new();
        match (run.act, run.first) {
            (Act::Stream, true) => self.send(run.bytes, run.count)?,
            (Act::Stream, false) => self.receive(run.bytes, run.count)?,
            (Act::Exchange, _) => self.exchange(run.bytes, run.count)?,
            (Act::Ping, true) => {
                for at in 0..run.count {
                    let due = begun + Duration::from_millis(at * run.every_ms);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let asked = Instant::now();
                    self.ask(run.bytes)?;
                    trips.push(asked.elapsed().as_secs_f64());
                }
            }
            (Act::Ping, false) => {
                for _ in 0..run.count {
                    self.answer(run.bytes)?;
                }
            }
        }
        Ok(Seen { seconds: begun.elapsed().as_secs_f64(), trips })
    }
}
