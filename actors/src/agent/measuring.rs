//! Devices without a profile are measured before an agent's workers start.
//!
//! Owns which kinds of devices that is, in which order, and for how long: [`MEASURING_MAX`] in all,
//! after which a device goes on unmeasured and the log says so. A process of its own computes, so
//! that heartbeats go on and it can be ended by force. Invariants: one process of this user measures
//! on a machine at a time; what was measured once is found from then on; a figure that others on the
//! same cores spoilt is used and not kept.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ditmesh_transport::heap::heap_tunables;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::cost::calibration::{Calibration, cluster_folder, user_folder};
use crate::cost::device::DeviceProfile;
use crate::device_bench::{Measured, SUBCOMMAND, processor};
use crate::manifest::{DeviceSection, Manifest, NodeSection};
use crate::protocol::DeviceSpeed;
use crate::worker_process::bootstrap;

/// Time for all devices of a node, waiting for other agents of the machine included.
const MEASURING_MAX: Duration = Duration::from_secs(4);

/// Between looks at who else measures.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Longest report of a measuring process.
const MEASURED_BYTES_MAX: u64 = 64 << 10;

/// What an agent knows of its devices' speeds, and how it learns the rest.
#[derive(Clone, Debug)]
pub(crate) struct Measuring {
    devices: Vec<DeviceSection>,
    /// The program that measures, with its arguments; none where nothing is to be measured.
    program: Option<Vec<OsString>>,
    /// Folders that calibrations are looked up in; what is measured is kept in the last.
    folders: Vec<PathBuf>,
    /// Held by who measures on this machine.
    lock: PathBuf,
    /// Of this machine.
    processor: String,
    /// Time for all devices.
    longest: Duration,
}

impl Measuring {
    /// That of a node's agent.
    ///
    /// # Errors
    /// When this process cannot name its own program.
    pub(crate) fn of(manifest: &Manifest, node: &NodeSection) -> std::io::Result<Self> {
        let program = match manifest.launcher.measure_devices {
            true => Some(vec![std::env::current_exe()?.into(), SUBCOMMAND.into()]),
            false => None,
        };
        let user = nix::unistd::geteuid();
        let cluster = cluster_folder(&manifest.cluster.state_dir);
        Ok(Self {
            devices: node.devices.clone(),
            program,
            folders: std::iter::once(cluster).chain(user_folder()).collect(),
            lock: std::env::temp_dir().join(format!("ditmesh-measuring-{user}.lock")),
            processor: processor(),
            longest: MEASURING_MAX,
        })
    }

    /// The speeds of the devices that have been measured, by now or before. Ends in time whatever
    /// happens; what goes wrong is said in the log.
    pub(crate) async fn speeds(self) -> Vec<DeviceSpeed> {
        let deadline = Instant::now() + self.longest;
        let (mut known, mut failed) = (self.find(), BTreeSet::new());
        for device in &self.devices {
            let Some(program) = &self.program else { break };
            let kind = device.profile_name();
            if known.devices.contains_key(&kind) || failed.contains(&kind) {
                continue;
            }
            if let Err(cause) = self.learn(program, device, &mut known, deadline).await {
                tracing::warn!(kind, cause, "devices of this kind count as not measured");
                failed.insert(kind);
            }
        }
        let speed = |(index, device): (u32, &DeviceSection)| {
            let kind = device.profile_name();
            let profile = known.devices.get(&kind)?.clone();
            Some(DeviceSpeed { index, kind, profile })
        };
        (0..).zip(&self.devices).filter_map(speed).collect()
    }

    /// Begins to look, and to measure what is not found; `done` is told. Dropping what is returned
    /// ends it.
    pub(crate) fn begin(self, done: impl FnOnce(Vec<DeviceSpeed>) + Send + 'static) -> UnderWay {
        UnderWay(tokio::spawn(async move { done(self.speeds().await) }))
    }

    /// What is kept of this machine's devices.
    fn find(&self) -> Calibration {
        let mut found = Calibration::default();
        for folder in &self.folders {
            match Calibration::load(folder) {
                Ok(kept) => {
                    let mut kept = kept.unwrap_or_default();
                    kept.devices.retain(|_, profile| self.is_of_here(profile));
                    found = found.over(kept);
                }
                Err(error) => tracing::warn!(%error, "devices are looked up elsewhere"),
            }
        }
        found
    }

    /// A folder may be shared by machines that are not alike.
    fn is_of_here(&self, profile: &DeviceProfile) -> bool {
        profile.processor.is_empty() || profile.processor == self.processor
    }

    /// Measures the devices of one kind, unless somebody else does so meanwhile.
    async fn learn(
        &self,
        program: &[OsString],
        device: &DeviceSection,
        known: &mut Calibration,
        deadline: Instant,
    ) -> Result<(), String> {
        let kind = device.profile_name();
        let _alone = self.alone(deadline).await?;
        *known = std::mem::take(known).over(self.find());
        if known.devices.contains_key(&kind) {
            return Ok(());
        }
        let measured = measure(program, device, deadline).await?;
        let (sure, Measured { profile, spread }) = (measured.is_sure(), measured);
        if !profile.is_sound() {
            return Err("a rate was measured that is no positive number".into());
        }
        let gflops = profile.gemm_flops_per_s.f32 / 1e9;
        tracing::info!(kind, gflops, spread, "devices of this kind are measured");
        known.devices.insert(kind.clone(), profile.clone());
        if !sure {
            tracing::warn!(kind, "others used its cores meanwhile: what was measured is not kept");
        } else if let Some(folder) = self.folders.last().cloned() {
            let keep = move || {
                Calibration::update(&folder, |kept| drop(kept.devices.insert(kind, profile)))
            };
            let kept = tokio::task::spawn_blocking(keep).await.map_err(|e| e.to_string())?;
            if let Err(error) = kept {
                tracing::warn!(%error, "what was measured is not kept for the next start");
            }
        }
        Ok(())
    }

    /// Waits until nobody else of this user measures on this machine.
    async fn alone(&self, deadline: Instant) -> Result<File, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.lock.display());
        let file = OpenOptions::new().create(true).append(true).open(&self.lock).map_err(failed)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(format!("others of this machine measured for {:?}", self.longest));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOOK_PAUSE).await,
            }
        }
    }
}

/// Devices are being looked at.
pub(crate) struct UnderWay(JoinHandle<()>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has a device measured by a process of its own until `deadline`; what it has said by then counts.
/// It ends when this is dropped.
async fn measure(
    program: &[OsString],
    device: &DeviceSection,
    deadline: Instant,
) -> Result<Measured, String> {
    let (program, arguments) = program.split_first().ok_or("there is no program that measures")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(heap_tunables())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    // Open as long as somebody waits for the figures.
    let mut stdin = child.stdin.take().ok_or("the process has no stdin")?;
    let line = bootstrap::line(device)?;
    stdin.write_all(&line).await.map_err(|error| format!("it took no orders: {error}"))?;
    let stdout = child.stdout.take().ok_or("the process has no stdout")?;
    let mut lines = BufReader::new(stdout.take(MEASURED_BYTES_MAX)).lines();
    let mut measured = None;
    loop {
        match timeout_at(deadline, lines.next_line()).await {
            Ok(Ok(Some(line))) => {
                let said = serde_json::from_str(&line);
                measured = Some(said.map_err(|error| format!("it said no figures: {error}"))?);
            }
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return measured.ok_or_else(|| "measuring took too long".into()),
        }
    }
    measured.ok_or_else(|| "the process that measures ended without a word".into())
}

#[cfg(test)]
mod tests;
