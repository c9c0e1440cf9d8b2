//! `bench device`: what a device sustains, kept where the planner looks for it.
//!
//! Owns what is said of the figures, and the memory that goes with them. Does not own the figures
//! (`ditmesh_model::probe`), the profile made of them (`ditmesh_actors::device_bench`) or the file's
//! format.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use ditmesh::manifest::{self, DeviceSection};
use ditmesh_actors::cost::calibration::{self, Calibration};
use ditmesh_actors::cost::device::DeviceProfile;
use ditmesh_actors::device_bench::DeviceBench;
use ditmesh_model::kernels::Isa;
use ditmesh_model::probe::{AtTokens, BlockSize, Effort, Probe, TOKENS};
use serde_json::{Value, json};

use crate::cli::args::DeviceArgs;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;

/// Measures, keeps and prints the profile.
pub(super) fn run(args: &DeviceArgs, terminal: &Terminal) -> Result<(), Failure> {
    let threads = args.threads as usize;
    let folder = folder(args)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if threads > cores {
        terminal.note(&format!("{threads} threads on {cores} cores: they will take turns"));
    }
    terminal.note("measuring; what else runs on these cores falsifies it");
    let device = DeviceSection { threads: Some(threads), ..DeviceSection::default() };
    let effort = Effort {
        size: BlockSize { hidden: args.hidden as usize, heads: args.heads as usize },
        tokens: TOKENS,
        each: Duration::from_millis(args.each_ms.into()),
    };
    let bench = DeviceBench::open(&device).map_err(Failure::failed)?;
    let probe = bench.measure(&effort).map_err(Failure::usage)?;
    let memory_bytes = memory::bytes() * threads.min(cores) as u64 / cores as u64;
    let profile = DeviceProfile { memory_bytes, ..bench.profile(&probe) };
    let name = args.name.clone().unwrap_or_else(|| calibration::device_name(threads));
    let (entry, kept) = (name.clone(), profile.clone());
    Calibration::update(&folder, |calibration| drop(calibration.devices.insert(entry, kept)))
        .map_err(Failure::failed)?;
    let file = folder.join(calibration::FILE_NAME);
    terminal.note(&format!("kept as \"{name}\" in {}", file.display()));
    if args.json {
        let report = json!({
            "name": name,
            "threads": threads,
            "instruction_set": format!("{:?}", Isa::detect()).to_lowercase(),
            "profile": profile,
            "by_tokens": by_tokens(&probe),
        });
        return terminal.result(&serde_json::to_string_pretty(&report).map_err(Failure::failed)?);
    }
    terminal.result(&describe(&name, threads, &profile, &probe))
}

/// Where the profile is kept.
fn folder(args: &DeviceArgs) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.cluster {
        let manifest = manifest::parse::load(path)?;
        return Ok(calibration::cluster_folder(&manifest.cluster.state_dir));
    }
    calibration::user_folder().ok_or_else(|| {
        Failure::failed("no cache folder: HOME is not set; name a manifest with --cluster")
    })
}

fn rows(probe: &Probe) -> [(&'static str, &[AtTokens]); 4] {
    [
        ("linear_f32", &probe.gemm_f32),
        ("linear_f16", &probe.gemm_f16),
        ("linear_bf16", &probe.gemm_bf16),
        ("attention", &probe.attention),
    ]
}

fn by_tokens(probe: &Probe) -> Value {
    let of = |rates: &[AtTokens]| -> Vec<Value> {
        let each = rates.iter();
        each.map(|r| json!({ "tokens": r.tokens, "flops_per_s": r.flops_per_s })).collect()
    };
    rows(probe).into_iter().map(|(name, rates)| (name.to_owned(), json!(of(rates)))).collect()
}

fn describe(name: &str, threads: usize, profile: &DeviceProfile, probe: &Probe) -> String {
    let mut text = format!("{name}: {threads} threads, {:?}\n", Isa::detect());
    text.push_str("GFLOP/s at tokens:\n");
    for (name, rates) in rows(probe) {
        let rates =
            rates.iter().map(|rate| format!("{:5} {:7.1}", rate.tokens, rate.flops_per_s / 1e9));
        let _ = writeln!(text, "  {name:12} {}", rates.collect::<Vec<_>>().join("   "));
    }
    let _ = writeln!(text, "memory       {:.2} GB/s", profile.memory_bytes_per_s / 1e9);
    let _ = writeln!(text, "phase        {:.1} us", profile.phase_s * 1e6);
    let _ = writeln!(text, "available    {:.2} GB", profile.memory_bytes as f64 / 1e9);
    text
}

/// Memory that can be had.
mod memory {
    use std::fs::read_to_string;

    /// Bytes available now, or those this control group may have if they are fewer; 0 when the
    /// system does not tell.
    pub(super) fn bytes() -> u64 {
        let available = read_to_string("/proc/meminfo").map_or(0, |text| available(&text));
        let limit = read_to_string("/sys/fs/cgroup/memory.max").ok();
        let limit = limit.and_then(|text| text.trim().parse().ok());
        limit.map_or(available, |limit| available.min(limit))
    }

    fn available(meminfo: &str) -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map_or(0, |kib| kib << 10)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_line_is_found_among_others() {
            let text = "MemTotal:       24 kB\nMemAvailable:    7 kB\n";
            assert_eq!((available(text), available("")), (7 << 10, 0));
        }
    }
}
