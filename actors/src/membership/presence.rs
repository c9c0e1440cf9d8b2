//! One member as seen from the coordinator: its newest incarnation and when it was last heard.
//!
//! Owns the rules of silence for one member; what follows for others is the engine's.

use std::time::Duration;

use super::flapping::Flapping;
use super::{Incarnation, Loss, Now};

/// Whether a member is there.
#[derive(Debug, Default)]
pub(super) enum State {
    /// It never came.
    #[default]
    Absent,
    /// It is there.
    Alive { heard: Now, suspect: bool },
    /// It was there.
    Dead(Loss),
}

/// What silence has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Suspect(Duration),
    Dead(Duration),
}

/// One member.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) incarnation: Incarnation,
    pub(super) state: State,
    pub(super) address: String,
    pub(super) flapping: Flapping,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            incarnation: Incarnation(0),
            state: State::Absent,
            address: String::new(),
            flapping: Flapping::default(),
        }
    }
}

impl Presence {
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.state, State::Alive { .. })
    }

    /// Whether it is there and may be counted on.
    pub(super) fn is_sound(&self) -> bool {
        self.is_alive() && !self.flapping.is_quarantined()
    }

    pub(super) fn is_current(&self, incarnation: Incarnation) -> bool {
        self.is_alive() && self.incarnation == incarnation
    }

    pub(super) fn join(&mut self, now: Now, incarnation: Incarnation, address: String) {
        self.incarnation = incarnation;
        self.state = State::Alive { heard: now, suspect: false };
        self.address = address;
    }

    /// Notes a sign of life; true when the member was suspect.
    pub(super) fn hear(&mut self, now: Now, from: Incarnation) -> bool {
        if from != self.incarnation {
            return false;
        }
        let State::Alive { heard, suspect } = &mut self.state else { return false };
        *heard = now;
        std::mem::take(suspect)
    }

    /// Takes a living member as heard just now.
    pub(super) fn excuse(&mut self, now: Now) {
        if let State::Alive { heard, .. } = &mut self.state {
            *heard = now;
        }
    }

    /// What its silence has newly come to.
    pub(super) fn check(
        &mut self,
        now: Now,
        suspect_after: Duration,
        dead_after: Duration,
    ) -> Option<Silence> {
        let State::Alive { heard, suspect } = &mut self.state else { return None };
        let silent = now.saturating_sub(*heard);
        if silent >= dead_after {
            return Some(Silence::Dead(silent));
        }
        if silent >= suspect_after && !*suspect {
            *suspect = true;
            return Some(Silence::Suspect(silent));
        }
        None
    }

    pub(super) fn describe(&self) -> String {
        match &self.state {
            State::Absent => "absent".into(),
            State::Alive { .. } if self.flapping.is_quarantined() => "quarantined".into(),
            State::Alive { suspect: false, .. } => "alive".into(),
            State::Alive { suspect: true, .. } => "suspect".into(),
            State::Dead(loss) => format!("dead: {loss}"),
        }
    }
}
