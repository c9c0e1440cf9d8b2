//! What a piece of a plan costs: seconds of computing, of moving bytes, and bytes of memory.
//!
//! Owns the profiles of devices and links (measured by `ditmesh bench device` and at `up`, kept in
//! a [`calibration::Calibration`]) and the pure functions from shapes to seconds. Does not own what
//! waits for what: [`crate::simulate`] runs whole plans over this model in virtual time. Invariant:
//! nothing here reads a clock, and the same values give the same seconds everywhere.

pub mod calibration;
pub mod cluster;
pub mod device;
pub mod link;
pub mod phase;
