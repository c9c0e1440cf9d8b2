//! One link's way to the engine.
//!
//! Owns the lane's end outside the engine's thread: a granted frame becomes a command. Invariant:
//! nothing here waits; payloads that are not ready yet are waited for by the engine's
//! [`Readiness`].
//!
//! [`Readiness`]: crate::ready::Readiness

use std::sync::Arc;

use super::commands::Command;
use super::driver::Driver;
use crate::completion::Drive;
use crate::error::TransportError;
use crate::frame::Grant;
use crate::link::lane::{Carrier, FrameLane};
use crate::link::table::Departure;
use crate::region::Ready;

/// A lane within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneId(pub(super) u64);

pub(super) struct UcxLane {
    pub(super) id: LaneId,
    pub(super) driver: Arc<Driver>,
    pub(super) carrier: Carrier,
    /// Whether both ends take memory of devices.
    pub(super) device_memory: bool,
}

impl UcxLane {
    /// Departs later.
    fn depart_when_ready(&self, ready: Arc<dyn Ready>, departure: Departure) {
        let (lane, driver) = (self.id, Arc::clone(&self.driver));
        let then = move |outcome: Result<(), TransportError>| {
            match outcome {
                // On the thread that waited, with no lock held.
                Ok(()) => driver.depart(lane, departure),
                Err(error) => {
                    driver.commands().push(Command::Fail { lane, cause: error.to_string() });
                }
            }
        };
        self.driver.readiness.when(ready, Box::new(then));
    }
}

impl FrameLane for UcxLane {
    fn depart(&self, departure: Departure) {
        if let Some(ready) = departure.payload.ready().cloned()
            && !departure.payload.is_ready()
        {
            return self.depart_when_ready(ready, departure);
        }
        self.driver.commands().add(Command::Depart { lane: self.id, departure });
    }

    fn depart_now(&self, departure: Departure) {
        if let Some(ready) = departure.payload.ready().cloned()
            && !departure.payload.is_ready()
        {
            return self.depart_when_ready(ready, departure);
        }
        self.driver.depart(self.id, departure);
    }

    fn grant(&self, grant: Grant) {
        self.driver.grant(self.id, grant);
    }

    fn flush(&self) {
        self.driver.help();
    }

    fn driver(&self) -> Arc<dyn Drive> {
        Arc::clone(&self.driver) as Arc<dyn Drive>
    }

    fn takes_device_memory(&self) -> bool {
        self.device_memory
    }

    fn close(&self) {
        self.driver.commands().push(Command::Close { lane: self.id });
    }

    fn carrier(&self) -> Carrier {
        self.carrier.clone()
    }
}
