//! Behaviour of the transport crate, in one binary.
#![allow(clippy::unwrap_used)]

mod alone;
mod blobs;
mod collectives;
mod control;
mod early_data;
mod endurance;
mod forming;
mod hostile;
mod joining;
mod lanes;
mod links;
mod silence;
mod support;
mod tracking;
mod ucx;
