//! One link's way to the engine.
//!
//! Owns the lane's end outside the engine's thread: a granted frame becomes a command. Invariant:
//! nothing here waits; a payload that is not ready yet gets a thread that waits for it.

use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::commands::Command;
use super::driver::Driver;
use crate::completion::Drive;
use crate::link::lane::{Carrier, FrameLane};
use crate::link::table::Departure;

/// How long a payload that is not ready yet is waited for.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A lane within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId(pub(super) u64);

pub(super) struct UcxLane {
    pub(super) id: LaneId,
    pub(super) driver: Arc<Driver>,
    pub(super) carrier: Carrier,
}

impl UcxLane {
    fn depart_when_ready(&self, departure: Departure) {
        let (lane, driver) = (self.id, Arc::clone(&self.driver));
        let wait = move || {
            let deadline = Instant::now() + READY_TIMEOUT;
            let ready = departure.payload.ready().is_none_or(|ready| ready.wait(deadline));
            driver.commands().push(if ready {
                Command::Depart { lane, departure }
            } else {
                Command::Fail { lane, cause: "a payload was not ready in time".to_owned() }
            });
        };
        let spawned = Builder::new().name("ditmesh-ready".to_owned()).spawn(wait);
        if let Err(error) = spawned {
            let cause = format!("cannot wait for a payload: {error}");
            self.driver.commands().push(Command::Fail { lane, cause });
        }
    }
}

impl FrameLane for UcxLane {
    fn depart(&self, departure: Departure) {
        if departure.payload.ready().is_some() {
            return self.depart_when_ready(departure);
        }
        self.driver.commands().add(Command::Depart { lane: self.id, departure });
    }

    fn flush(&self) {
        self.driver.help();
    }

    fn driver(&self) -> Arc<dyn Drive> {
        Arc::clone(&self.driver) as Arc<dyn Drive>
    }

    fn close(&self) {
        self.driver.commands().push(Command::Close { lane: self.id });
    }

    fn carrier(&self) -> Carrier {
        self.carrier.clone()
    }
}
