//! Where an agent's workers run: in processes of their own, or on threads of this one.
//!
//! Owns starting, watching and ending one worker. Does not decide when.

use ditmesh_transport::heap::heap_tunables;
use ditmesh_transport::ucx::gpu_environment;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::data_plane::DataPlane;
use crate::launcher::OTLP_ENDPOINT;
use crate::launcher::record::{ProcessRecord, Role, RunFolder};
use crate::manifest::{DeviceKind, DeviceSection};
use crate::membership::Incarnation;
use crate::protocol::DeviceId;
use crate::session::dial::Dialer;
use crate::worker::{WorkerConfig, device as devices};
use crate::worker_process::SUBCOMMAND;
use crate::worker_process::bootstrap::{self, WorkerBootstrap};
use crate::worker_process::host::{HostArgs, HostEnd, HostMsg, WorkerHost};

/// Time for a worker to end by itself before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Bytes that a worker can say about its end.
const LAST_WORDS_BYTES_MAX: u64 = 4096;

/// Time to read them once it has ended.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(200);

/// Called once with how a worker ended.
pub(crate) type OnEnd = Box<dyn FnOnce(String) + Send>;

/// The way workers are started.
pub(crate) enum WorkerHome {
    Process(ProcessHome),
    Thread(Box<ThreadHome>),
}

/// Workers in processes.
pub(crate) struct ProcessHome {
    /// The program that has the worker subcommand.
    pub(crate) program: PathBuf,
    /// By device; the incarnation is filled in.
    pub(crate) orders: Vec<WorkerBootstrap>,
    pub(crate) folder: RunFolder,
    /// Where traces go, unless the environment says it.
    pub(crate) otlp_endpoint: Option<String>,
}

/// Workers in this process.
pub(crate) struct ThreadHome {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) devices: Vec<DeviceSection>,
    pub(crate) plane: DataPlane,
    pub(crate) dialer: Dialer,
}

impl WorkerHome {
    /// Starts the worker of device `index`. It ends when the returned sender is dropped; `on_end`
    /// is called however it ends.
    ///
    /// # Errors
    /// In words, when it could not be started; `on_end` is not called then.
    pub(crate) async fn start(
        &self,
        index: usize,
        incarnation: Incarnation,
        on_end: OnEnd,
    ) -> Result<oneshot::Sender<()>, String> {
        match self {
            Self::Process(home) => home.start(index, incarnation, on_end).await,
            Self::Thread(home) => home.start(index, incarnation, on_end).await,
        }
    }
}

impl ProcessHome {
    async fn start(
        &self,
        index: usize,
        incarnation: Incarnation,
        on_end: OnEnd,
    ) -> Result<oneshot::Sender<()>, String> {
        let orders = self.orders.get(index).ok_or("there is no such device")?;
        let orders = WorkerBootstrap { incarnation: incarnation.0, ..orders.clone() };
        let endpoint = self.otlp_endpoint.as_ref();
        let endpoint = endpoint.filter(|_| std::env::var_os(OTLP_ENDPOINT).is_none());
        let on_gpu = orders.device.kind == DeviceKind::Cuda;
        let mut child = Command::new(&self.program)
            .envs(heap_tunables())
            .envs(gpu_environment().filter(|_| on_gpu))
            .envs(endpoint.map(|endpoint| (OTLP_ENDPOINT, endpoint)))
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        let mut stdin = child.stdin.take().ok_or("the worker has no stdin")?;
        let line = bootstrap::line(&orders)?;
        stdin.write_all(&line).await.map_err(|error| format!("it took no orders: {error}"))?;
        let name = format!("{}-{index}", orders.node);
        let record = child.id().map(|pid| ProcessRecord::of(Role::Worker, &name, pid));
        let record = record.and_then(|record| {
            self.folder.publish(record).map_err(|error| tracing::warn!(%error, "no record")).ok()
        });
        let (life, over) = oneshot::channel();
        tokio::spawn(async move {
            let status = live_and_end(&mut child, stdin, over).await;
            drop(record);
            on_end(status);
        });
        Ok(life)
    }
}

/// Waits for a child that lives as long as its stdin is open; how it ended, in words. A word
/// through `over` ends it by force, its closing in peace.
async fn live_and_end(child: &mut Child, stdin: ChildStdin, over: oneshot::Receiver<()>) -> String {
    let (ended, patience) = tokio::select! {
        status = child.wait() => (Some(status), STOP_DEADLINE),
        told = over => (None, if told.is_ok() { Duration::ZERO } else { STOP_DEADLINE }),
    };
    drop(stdin);
    let stdout = child.stdout.take();
    let status = match ended {
        Some(status) => status,
        None => match timeout(patience, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                // It may have ended this very moment.
                let _ = child.start_kill();
                child.wait().await
            }
        },
    };
    match last_words(stdout).await {
        Some(cause) => format!("{}: {cause}", describe(status)),
        None => describe(status),
    }
}

/// What a worker said on its stdout about its end.
async fn last_words(stdout: Option<ChildStdout>) -> Option<String> {
    let mut words = String::new();
    let reading = stdout?.take(LAST_WORDS_BYTES_MAX);
    let mut reading = std::pin::pin!(reading);
    timeout(LAST_WORDS_DEADLINE, reading.read_to_string(&mut words)).await.ok()?.ok()?;
    let words = words.trim();
    (!words.is_empty()).then(|| words.to_string())
}

/// `exit status: 1`, `signal: 9 (SIGKILL)`.
pub(crate) fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("it cannot be waited for: {error}"),
    }
}

impl ThreadHome {
    async fn start(
        &self,
        index: usize,
        incarnation: Incarnation,
        on_end: OnEnd,
    ) -> Result<oneshot::Sender<()>, String> {
        let device = self.devices.get(index).ok_or("there is no such device")?;
        let memory = devices::frame_memory(device.kind, device.index.unwrap_or(0));
        let fabric = self.plane.fabric(index, incarnation.0, memory);
        let fabric = fabric.map_err(|error| error.to_string())?;
        let config = WorkerConfig {
            cluster: self.cluster.clone(),
            device: DeviceId { node: self.node.clone(), index: index as u32 },
            incarnation: incarnation.0,
            kind: device.kind,
            gpu: device.index.unwrap_or(0),
            threads: device.threads.unwrap_or(1),
            cores: device.cores.clone(),
        };
        let (ended, end) = oneshot::channel();
        let fabric_of_host = Arc::clone(&fabric);
        let args = HostArgs { config, fabric: fabric_of_host, dialer: self.dialer.clone(), ended };
        let (host, joined) = WorkerHost::start(args).await.map_err(|error| error.to_string())?;
        let (life, over) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let mut end = end;
            let end = tokio::select! {
                end = &mut end => end,
                _ = over => {
                    // A host that has ended needs no order.
                    let _ = host.cast(HostMsg::Stop("its agent ends".into()));
                    end.await
                }
            };
            // It ends after its worker, whose compute thread is joined.
            let _ = joined.await;
            fabric.close();
            on_end(match end {
                Ok(HostEnd::Told) => "it was told to end".into(),
                Ok(HostEnd::Lost(cause) | HostEnd::Failed(cause)) => cause,
                Err(_) => "its host actor failed".into(),
            });
        });
        Ok(life)
    }
}
