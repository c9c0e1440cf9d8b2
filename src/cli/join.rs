//! `join`: makes this machine a node of a running cluster, and stays as its agent.

use std::fs;
use std::path::Path;

use ditmesh_actors::agent::{JoinOrders, run_joined};
use ditmesh_actors::manifest::{DeviceKind, DeviceSection, NodeSection};

use super::args::JoinArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Longest token file.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// Devices of one machine, at most.
const DEVICES_MAX: u32 = 64;

/// Joins, and lives until a signal makes the node leave or the cluster ends.
pub(crate) fn run(args: &JoinArgs, terminal: &Terminal) -> Result<(), Failure> {
    if !(1..=DEVICES_MAX).contains(&args.devices) {
        let devices = args.devices;
        return Err(Failure::usage(format!("--devices {devices} is outside 1..={DEVICES_MAX}")));
    }
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let device = |index: u32| DeviceSection {
        kind: if args.cuda { DeviceKind::Cuda } else { DeviceKind::Cpu },
        index: args.cuda.then_some(index as usize),
        threads: args.threads,
        ..DeviceSection::default()
    };
    let orders = JoinOrders {
        coordinator: args.coordinator.clone(),
        token,
        node: NodeSection {
            name: args.name.clone().map_or_else(host_name, Ok)?,
            address: args.address.clone().unwrap_or_default(),
            control_port: 0,
            bulk_ports: None,
            devices: (0..args.devices).map(device).collect(),
        },
        state_dir: std::path::absolute(&args.state_dir).map_err(Failure::failed)?,
    };
    fs::create_dir_all(&orders.state_dir)
        .map_err(|error| Failure::write(&orders.state_dir, &error))?;
    run_joined(&orders, &mut |node| {
        terminal.note(&format!("joined as node {node}; Ctrl-C or `ditmesh leave` takes it out"));
    })?;
    terminal.note("this machine has left");
    Ok(())
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| Failure::usage(format!("{}: {cause}", path.display()));
    let bytes = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if bytes > TOKEN_BYTES_MAX {
        return Err(failed(format!("{bytes} bytes are no token")));
    }
    fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

/// This host's name up to its first dot, in the letters of certificates.
fn host_name() -> Result<String, Failure> {
    let name = nix::unistd::gethostname().map_err(Failure::failed)?;
    let name = name.to_string_lossy().to_lowercase();
    Ok(name.split('.').next().unwrap_or_default().replace('_', "-"))
}
