//! Where the time of one rank in one run went: by operation, and in it by activity.
//!
//! Owns the accounts and what is charged to which. Pure: the time is an argument of every call,
//! [`Stopwatch`] is the thin layer that reads a clock. Does not know what an operation does.
//!
//! Invariants: every nanosecond between start and summary is charged once, to one activity of one
//! operation or to `elsewhere`, so the sums add up to the wall time; nothing is allocated once
//! every operation of a run has been seen.

mod activity;
mod recorder;
mod stopwatch;

use crate::request::{OpTime, RunTime};

pub use activity::{ACTIVITIES, Activity};
pub use recorder::{Recorder, TIMELINE_SPANS_MAX, Where};
pub use stopwatch::Stopwatch;

/// Accounts of one rank; the vocabulary of operations, messages and phases is smaller.
pub const ACCOUNTS_MAX: usize = 128;

/// Nanoseconds since the start of the run on this rank.
pub type Nanos = u64;

/// What time is charged to: an operation, and a phase or kind of message in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The operation.
    pub op: &'static str,
    /// Its part; empty for the operation itself.
    pub part: &'static str,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            "" => f.write_str(self.op),
            part => write!(f, "{}.{part}", self.op),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Account {
    key: Key,
    /// By [`Activity`].
    spent: [Nanos; ACTIVITIES],
    count: u64,
}

/// Charges time to accounts.
#[derive(Debug)]
pub struct Timeline {
    accounts: Vec<Account>,
    /// The operation or phase that time is charged to now; none between operations.
    current: Option<usize>,
    activity: Activity,
    /// Up to when everything is charged.
    charged: Nanos,
    elsewhere: Nanos,
    /// Since when the step that is under way lasts.
    step_since: Option<Nanos>,
    steps: Vec<Nanos>,
}

impl Timeline {
    /// A timeline that starts at 0, of a run of `steps` steps.
    pub fn new(steps: usize) -> Self {
        Self {
            accounts: Vec::with_capacity(ACCOUNTS_MAX),
            current: None,
            activity: Activity::Overhead,
            charged: 0,
            elsewhere: 0,
            step_since: None,
            steps: Vec::with_capacity(steps),
        }
    }

    /// An operation, or a phase of one, starts; what ran before it has ended.
    pub fn begin(&mut self, now: Nanos, key: Key, activity: Activity) {
        self.charge(now);
        let known = self.accounts.iter().position(|account| account.key == key);
        let index = known.unwrap_or_else(|| {
            // The last account takes what a longer vocabulary would not fit.
            if self.accounts.len() < ACCOUNTS_MAX {
                self.accounts.push(Account { key, spent: [0; ACTIVITIES], count: 0 });
            }
            self.accounts.len() - 1
        });
        if let Some(account) = self.accounts.get_mut(index) {
            account.count += 1;
        }
        self.current = Some(index);
        self.activity = activity;
    }

    /// The operation has ended.
    pub fn end(&mut self, now: Nanos) {
        self.charge(now);
        self.current = None;
    }

    /// What is done from now on; returns what was done until now.
    pub fn turn(&mut self, now: Nanos, activity: Activity) -> Activity {
        self.charge(now);
        std::mem::replace(&mut self.activity, activity)
    }

    /// The first step starts now, unless one is under way.
    pub fn first_step(&mut self, now: Nanos) {
        self.step_since.get_or_insert(now);
    }

    /// A step is complete, the next one starts.
    pub fn step_done(&mut self, now: Nanos) {
        let since = self.step_since.replace(now).unwrap_or(now);
        self.steps.push(now.saturating_sub(since));
    }

    fn charge(&mut self, now: Nanos) {
        let spent = now.saturating_sub(self.charged);
        self.charged = self.charged.max(now);
        match self.current.and_then(|index| self.accounts.get_mut(index)) {
            Some(account) => account.spent[self.activity as usize] += spent,
            None => self.elsewhere += spent,
        }
    }

    /// The accounts up to `now`, in the order of first use.
    pub fn summary(&mut self, now: Nanos) -> RunTime {
        self.charge(now);
        let ops = self.accounts.iter().map(|account| {
            let of = |activity: Activity| seconds(account.spent[activity as usize]);
            OpTime {
                op: account.key.to_string(),
                compute_s: of(Activity::Compute),
                wait_s: of(Activity::Wait),
                send_s: of(Activity::Send),
                serialise_s: of(Activity::Serialise),
                overhead_s: of(Activity::Overhead),
                count: account.count,
            }
        });
        RunTime {
            wall_s: seconds(self.charged),
            elsewhere_s: seconds(self.elsewhere),
            ops: ops.collect(),
            step_seconds: self.steps.iter().copied().map(seconds).collect(),
        }
    }
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests;
