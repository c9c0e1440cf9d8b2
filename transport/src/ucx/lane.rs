//! One link's way to the engine.
//!
//! Owns the lane's end outside the engine's thread: a granted frame becomes a command. Invariant:
//! nothing here waits; a payload that is not ready yet gets a thread that waits for it.

use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::commands::{Command, Commands};
use crate::link::lane::{Carrier, FrameLane};
use crate::link::table::Departure;

/// How long a payload that is not ready yet is waited for.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A lane within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId(pub(super) u64);

pub(super) struct UcxLane {
    pub(super) id: LaneId,
    pub(super) commands: Arc<Commands>,
    pub(super) carrier: Carrier,
}

impl UcxLane {
    fn depart_when_ready(&self, departure: Departure) {
        let (lane, commands) = (self.id, Arc::clone(&self.commands));
        let wait = move || {
            let deadline = Instant::now() + READY_TIMEOUT;
            let ready = departure.payload.ready().is_none_or(|ready| ready.wait(deadline));
            commands.push(if ready {
                Command::Depart { lane, departure }
            } else {
                Command::Fail { lane, cause: "a payload was not ready in time".to_owned() }
            });
        };
        let spawned = Builder::new().name("ditmesh-ready".to_owned()).spawn(wait);
        if let Err(error) = spawned {
            let cause = format!("cannot wait for a payload: {error}");
            self.commands.push(Command::Fail { lane, cause });
        }
    }
}

impl FrameLane for UcxLane {
    fn depart(&self, departure: Departure) {
        if departure.payload.ready().is_some() {
            return self.depart_when_ready(departure);
        }
        self.commands.push(Command::Depart { lane: self.id, departure });
    }

    fn close(&self) {
        self.commands.push(Command::Close { lane: self.id });
    }

    fn carrier(&self) -> Carrier {
        self.carrier.clone()
    }
}
