//! `bench`: measures this machine.
//!
//! Owns one file for each command, and what they share: the place where ranks run, the random
//! model, statistics. Invariant: what is measured is the product itself, from a request to its
//! report; no number is printed that was not measured in the same call.

mod bed;
mod cores;
mod device;
pub(crate) mod method;
mod overhead;
mod random_model;
mod recovery;
mod scaling;
mod shaped;
mod shaped_link;
mod statistics;
mod torch;
pub(crate) mod transport;

use super::args::BenchCommand;
use super::failure::Failure;
use super::terminal::Terminal;

/// Measures what is asked for and prints it.
pub(crate) fn run(command: &BenchCommand, terminal: &Terminal) -> Result<(), Failure> {
    match command {
        BenchCommand::Device(args) => device::run(args, terminal),
        BenchCommand::Overhead(args) => overhead::run(args, terminal),
        BenchCommand::Recovery(args) => recovery::run(args, terminal),
        BenchCommand::Scaling(args) => scaling::run(args, terminal),
        BenchCommand::Shaped(args) => shaped::run(args, terminal),
        BenchCommand::Transport(args) => transport::run(args, terminal),
    }
}
