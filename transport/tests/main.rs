//! Behaviour of the transport crate, in one binary.
#![allow(clippy::unwrap_used)]

mod collectives;
mod control;
mod forming;
mod links;
mod silence;
mod support;
mod ucx;
