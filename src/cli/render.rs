//! `render`: job scripts and objects that start a cluster with somebody else's launcher.
//!
//! Owns what both forms read of a manifest. Starts nothing, asks nobody; the text goes to stdout.
//! Invariants: the text holds no secret; every command line in it is one that this program parses.

mod kubernetes;
mod pod;
mod slurm;
mod template;

use std::collections::BTreeSet;

use ditmesh::Manifest;
use ditmesh_actors::manifest::{DeviceKind, NodeSection};

use super::args::RenderCommand;
use super::failure::Failure;
use super::terminal::Terminal;

/// Prints what is asked for.
pub(crate) fn run(command: &RenderCommand, terminal: &Terminal) -> Result<(), Failure> {
    let text = match command {
        RenderCommand::Slurm(args) => slurm::render(args)?,
        RenderCommand::K8s(args) => kubernetes::render(args)?,
    };
    terminal.result(&text)
}

/// What a host must have for the devices of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Need {
    /// One for each compute thread, and one for each GPU's worker.
    cpus: usize,
    gpus: usize,
    /// Where every device says what it may use.
    memory_bytes: Option<u64>,
}

impl Need {
    fn of(node: &NodeSection) -> Self {
        let devices = &node.devices;
        let gpus: BTreeSet<usize> = devices
            .iter()
            .filter(|device| device.kind == DeviceKind::Cuda)
            .map(|device| device.index.unwrap_or(0))
            .collect();
        let memory = devices.iter().map(|device| match device.kind {
            DeviceKind::Cpu => device.memory_bytes,
            // What a GPU holds is not in the host's memory.
            DeviceKind::Cuda => None,
        });
        Self {
            cpus: devices.iter().map(|device| device.threads.unwrap_or(1)).sum(),
            gpus: gpus.len(),
            memory_bytes: memory.sum(),
        }
    }

    /// The most of each that any of `nodes` needs: they are started alike.
    fn most<'n>(nodes: impl IntoIterator<Item = &'n NodeSection>) -> Self {
        let more = |a: Self, b: Self| Self {
            cpus: a.cpus.max(b.cpus),
            gpus: a.gpus.max(b.gpus),
            memory_bytes: a.memory_bytes.zip(b.memory_bytes).map(|(a, b)| a.max(b)),
        };
        nodes.into_iter().map(Self::of).reduce(more).unwrap_or_default()
    }
}

/// The coordinator's control port: the manifest's, else `given`.
fn control_port(manifest: &Manifest, given: u16) -> u16 {
    let name = manifest.coordinator_node();
    let host = manifest.nodes.iter().find(|node| node.name == name);
    match host.map_or(0, |node| node.control_port) {
        0 => given,
        port => port,
    }
}

#[cfg(test)]
mod tests;
