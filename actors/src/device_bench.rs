//! What a device sustains, measured on it: what `ditmesh bench device` shows, and what an agent has
//! measured of its devices before their workers start.
//!
//! Owns the threads that compute meanwhile, how much is measured in brief, and the profile made of
//! the figures. Does not own the figures (`ditmesh_model::probe`), where profiles are kept
//! ([`crate::cost::calibration`]), nor when devices are measured.

use std::fs;
use std::io::Write;
use std::time::Duration;

use candle_core::Device;
use ditmesh_model::error::ModelError;
use ditmesh_model::probe::{AtTokens, BlockSize, Effort, Probe};
use serde::{Deserialize, Serialize};

use crate::cost::cluster::ALIKE;
use crate::cost::device::{DeviceProfile, Rates};
use crate::manifest::{DeviceKind, DeviceSection};
use crate::worker::{affinity, device as devices};
use crate::worker_process::bootstrap;

/// Hidden subcommand under which [`run_process`] is called.
pub const SUBCOMMAND: &str = "measure";

/// Enough to tell devices apart: every figure of [`DeviceProfile`], on so small a block that a
/// processor has them within a second, and on one that is large enough for a GPU.
pub const fn brief(kind: DeviceKind) -> Effort {
    let (hidden, heads, tokens): (_, _, &[usize]) = match kind {
        DeviceKind::Cpu => (384, 6, &[256]),
        DeviceKind::Cuda => (1152, 16, &[4096]),
    };
    Effort { size: BlockSize { hidden, heads }, tokens, each: Duration::from_millis(10) }
}

/// Rounds until two agree, at most.
const ROUNDS_MAX: usize = 6;

/// Why a device was not measured.
#[derive(Debug, thiserror::Error)]
pub enum DeviceBenchError {
    /// Its orders on stdin could not be read.
    #[error("started by an agent, not by hand (`ditmesh bench device` measures by hand): {0}")]
    Bootstrap(String),
    /// It cannot be used, or threads or pipes failed it.
    #[error("{0}")]
    Device(String),
    /// What was asked for cannot be measured, or the tensor backend fails.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What a measuring process says on its stdout after each round of measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) profile: DeviceProfile,
    /// By how much the two fastest figures of a kind differ, at most; at least 1. None after one
    /// round.
    pub(crate) spread: Option<f64>,
}

impl Measured {
    /// The fastest figures of some measurements: what others take of a processor makes a device
    /// slower, never faster.
    fn of(rounds: &[DeviceProfile]) -> Option<Self> {
        let mut spread = Some(1.0);
        let mut fastest = |rate: fn(&DeviceProfile) -> f64| {
            let mut rates: Vec<f64> = rounds.iter().map(rate).collect();
            rates.sort_by(|a, b| b.total_cmp(a));
            let (first, next) = (*rates.first()?, rates.get(1));
            spread = spread.zip(next).map(|(spread, next)| f64::max(spread, first / next));
            Some(first)
        };
        let gemm_flops_per_s = Rates {
            f32: fastest(|round| round.gemm_flops_per_s.f32)?,
            f16: fastest(|round| round.gemm_flops_per_s.f16)?,
            bf16: fastest(|round| round.gemm_flops_per_s.bf16)?,
        };
        let attention_flops_per_s = Rates::all(fastest(|round| round.attention_flops_per_s.f32)?);
        let memory_bytes_per_s = fastest(|round| round.memory_bytes_per_s)?;
        let phase_s = rounds.iter().map(|round| round.phase_s).min_by(f64::total_cmp)?;
        let profile = DeviceProfile {
            gemm_flops_per_s,
            attention_flops_per_s,
            memory_bytes_per_s,
            phase_s,
            ..rounds.first()?.clone()
        };
        Some(Self { profile, spread })
    }

    /// Whether two measurements agree.
    pub(crate) fn is_sure(&self) -> bool {
        self.spread.is_some_and(|spread| spread <= ALIKE)
    }
}

/// A device that is open for measuring, and its threads. The thread that opened it is one of them,
/// and pinned to the device's cores.
pub struct DeviceBench {
    kind: DeviceKind,
    device: Device,
    pool: rayon::ThreadPool,
}

impl DeviceBench {
    /// Opens a device, once for each thread.
    ///
    /// # Errors
    /// When the device or threads cannot be had.
    pub fn open(section: &DeviceSection) -> Result<Self, DeviceBenchError> {
        affinity::pin(&section.cores);
        let device = devices::open(section.kind, section.index.unwrap_or(0));
        let device = device.map_err(DeviceBenchError::Device)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(section.threads.unwrap_or(1));
        let pool = pool.use_current_thread().build();
        let pool =
            pool.map_err(|error| DeviceBenchError::Device(format!("no threads: {error}")))?;
        Ok(Self { kind: section.kind, device, pool })
    }

    /// Measures it.
    ///
    /// # Errors
    /// When `effort` cannot be measured.
    pub fn measure(&self, effort: &Effort) -> Result<Probe, DeviceBenchError> {
        Ok(self.pool.install(|| effort.measure(&self.device))?)
    }

    /// The rates of whole pictures, or of what comes nearest; nothing of memory, which others may
    /// have taken just now.
    pub fn profile(&self, probe: &Probe) -> DeviceProfile {
        let whole = |rates: &[AtTokens]| rates.first().map_or(0.0, |rate| rate.flops_per_s);
        DeviceProfile {
            gemm_flops_per_s: Rates {
                f32: whole(&probe.gemm_f32),
                f16: whole(&probe.gemm_f16),
                bf16: whole(&probe.gemm_bf16),
            },
            // Activations are f32 whatever the weights are.
            attention_flops_per_s: Rates::all(whole(&probe.attention)),
            memory_bytes_per_s: probe.memory_bytes_per_s,
            phase_s: probe.phase_s,
            memory_bytes: 0,
            processor: match self.kind {
                DeviceKind::Cpu => processor(),
                DeviceKind::Cuda => String::new(),
            },
        }
    }
}

/// The model of this host's processor; empty where the system does not tell.
pub(crate) fn processor() -> String {
    fs::read_to_string("/proc/cpuinfo").map_or_else(|_| String::new(), |text| model_name(&text))
}

fn model_name(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(':')).map_or("", |(_, name)| name.trim()).to_owned()
}

/// The life of a measuring process: what the hidden subcommand [`SUBCOMMAND`] calls. Reads the
/// device from stdin, measures it in brief until two rounds agree, and says after each what the
/// fastest figures are, a line on stdout. Ends when stdin closes.
///
/// # Errors
/// When it has no orders, or the device cannot be measured.
pub fn run_process() -> Result<(), DeviceBenchError> {
    let device: DeviceSection = bootstrap::read().map_err(DeviceBenchError::Bootstrap)?;
    let failed = |error: std::io::Error| DeviceBenchError::Device(error.to_string());
    bootstrap::watch_stdin(Duration::ZERO, None, || {}).map_err(failed)?;
    let bench = DeviceBench::open(&device)?;
    let mut rounds = Vec::new();
    while rounds.len() < ROUNDS_MAX {
        rounds.push(bench.profile(&bench.measure(&brief(device.kind))?));
        let Some(measured) = Measured::of(&rounds) else { break };
        let line = bootstrap::line(&measured).map_err(DeviceBenchError::Device)?;
        std::io::stdout().write_all(&line).map_err(failed)?;
        if measured.is_sure() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_processor_is_found_among_other_lines() {
        let text = "processor\t: 0\nmodel name\t: Fast 9000: the second\nflags\t: a b\n";
        assert_eq!(
            (model_name(text).as_str(), model_name("")),
            ("Fast 9000: the second", "".into())
        );
    }

    #[test]
    fn the_fastest_figures_of_some_measurements_count_and_how_far_the_next_are_from_them() {
        let round = |f32: f64, bf16: f64, phase_s: f64| DeviceProfile {
            gemm_flops_per_s: Rates { f32, f16: 1e9, bf16 },
            phase_s,
            ..DeviceProfile::unmeasured_cpu(1)
        };
        let mut rounds = vec![round(3e9, 1e9, 2e-6)];
        let alone = Measured::of(&rounds).expect("one");
        assert_eq!((&alone.profile, alone.spread, alone.is_sure()), (&rounds[0], None, false));
        for (next, fastest, spread) in [
            (round(2e9, 4e9, 1e-6), round(3e9, 4e9, 1e-6), 4.0),
            (round(2.5e9, 3.2e9, 3e-6), round(3e9, 4e9, 1e-6), 1.25),
        ] {
            rounds.push(next);
            let measured = Measured::of(&rounds).expect("some");
            assert_eq!(measured.is_sure(), spread == 1.25);
            assert_eq!(measured, Measured { profile: fastest, spread: Some(spread) });
        }
        assert_eq!(Measured::of(&[]), None);
    }
}
