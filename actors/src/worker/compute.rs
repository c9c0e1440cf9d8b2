//! The dedicated OS thread of one device: loads partitions and works off agendas, one at a time.
//!
//! Owns the device's rayon pool (the thread itself is its first member) and the weights that are
//! loaded. While a mesh is in use, the partition of the next one is loaded on a thread of its own,
//! so that neither waits for the other. Async code talks to it through a bounded channel and is
//! answered on one-shots; the thread never enters a runtime.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use ditmesh_model::pipeline::{LoadedParts, Parts, describe_open};
use ditmesh_model::spec::ModelId;
use ditmesh_model::text;
use ditmesh_transport::Transport;
use ditmesh_transport::ids::{Epoch, RunId};
use tokio::sync::{mpsc, oneshot};

use super::runs::work_off;
use super::shared_agenda::SharedAgenda;
use super::{WorkerConfig, affinity, device};
use crate::executor::abort::AbortFlag;
use crate::plan::Plan;
use crate::plan::layout::Layout;
use crate::plan::mesh::DeviceMesh;
use crate::protocol::{Form, ToCoordinator};
use crate::request::{Degrees, Dtype, TextEncoderPolicy};
use crate::weights::Place;

/// Orders that may wait for the compute thread.
const COMPUTE_ORDERS_MAX: usize = 8;

/// What a rank has to load.
pub(super) struct Load {
    place: Place,
    model_id: ModelId,
    dtype: Dtype,
    text_encoder: TextEncoderPolicy,
    degrees: Degrees,
    stage_ends: Vec<u32>,
    rank: usize,
}

impl Load {
    pub(super) fn of(form: &Form, place: Place) -> Self {
        Self {
            place,
            model_id: ModelId(form.model_id),
            dtype: form.dtype,
            text_encoder: form.text_encoder,
            degrees: form.degrees,
            stage_ends: form.stage_ends.clone(),
            rank: form.rank as usize,
        }
    }

    /// What this rank holds of a model of `blocks` blocks.
    fn parts(&self, blocks: usize) -> Result<Parts, String> {
        let at = DeviceMesh::new(self.degrees).coordinates(self.rank);
        let stages = self.degrees.pipefusion_degree as usize;
        let layout = Layout::from_ends(&self.stage_ends, blocks, stages)
            .map_err(|error| error.to_string())?;
        Ok(Parts {
            blocks: layout.blocks(at.stage),
            text_encoder: (self.rank == 0).then_some(match self.text_encoder {
                TextEncoderPolicy::Release => text::TextEncoderPolicy::Release,
                TextEncoderPolicy::Resident => text::TextEncoderPolicy::Resident,
            }),
            vae: at.sp == 0 && at.cfg == 0 && at.stage + 1 == stages,
        })
    }
}

/// A loaded partition.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) model: Arc<LoadedParts>,
    pub(super) parts: Parts,
    /// Where the weights are, and where runs compute.
    pub(super) device: Device,
    dtype: Dtype,
}

impl Loaded {
    /// Whether it is what `load` asks for.
    fn is(&self, load: &Load) -> bool {
        load.parts(self.model.spec.blocks).is_ok_and(|parts| parts == self.parts)
            && self.model.spec.id == load.model_id
            && self.dtype == load.dtype
    }
}

/// A program to run.
pub(super) struct Run {
    pub(super) plan: Arc<Plan>,
    pub(super) rank: usize,
    pub(super) device: String,
    pub(super) run: RunId,
    pub(super) epoch: Epoch,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) model: Arc<LoadedParts>,
    pub(super) compute_on: Device,
    pub(super) abort: Arc<AbortFlag>,
    pub(super) wait_limit: Duration,
    pub(super) traceparent: Option<String>,
    pub(super) reports: mpsc::Sender<ToCoordinator>,
}

enum Order {
    Load(Load, oneshot::Sender<Result<Loaded, String>>),
    /// Hold this partition, loaded elsewhere, in place of the present one.
    Hold(Box<Loaded>),
    WorkOff(Arc<SharedAgenda<Run>>),
}

/// Handle of the thread.
pub(super) struct ComputeThread {
    orders: Option<Arc<SyncSender<Order>>>,
    thread: Option<JoinHandle<()>>,
}

impl ComputeThread {
    pub(super) fn start(config: &WorkerConfig) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(COMPUTE_ORDERS_MAX);
        let (threads, cores) = (config.threads.max(1), config.cores.clone());
        let (kind, gpu) = (config.kind, config.gpu);
        let thread = std::thread::Builder::new()
            .name(format!("compute-{}", config.device))
            .spawn(move || serve(&inbox, &device::open(kind, gpu), threads, &cores))?;
        Ok(Self { orders: Some(Arc::new(orders)), thread: Some(thread) })
    }

    fn order(&self, order: Order) -> Result<(), String> {
        let sender = self.orders.as_ref().ok_or("the compute thread has stopped")?;
        sender.try_send(order).map_err(|error| format!("the compute thread is busy: {error}"))
    }

    /// What loads partitions, to take along; it does not keep the thread.
    pub(super) fn loader(&self) -> Loader {
        Loader(self.orders.as_ref().map(Arc::downgrade).unwrap_or_default())
    }

    /// Has a partition that was loaded elsewhere kept for the next mesh, in place of the present
    /// one.
    pub(super) fn hold(&self, loaded: Loaded) {
        if let Err(cause) = self.order(Order::Hold(Box::new(loaded))) {
            tracing::warn!(cause, "the next mesh loads its weights again");
        }
    }

    /// Has an agenda worked off; the end of each run is reported by the thread itself.
    pub(super) fn work_off(&self, agenda: Arc<SharedAgenda<Run>>) -> Result<(), String> {
        self.order(Order::WorkOff(agenda))
    }

    /// Lets the thread end after what it is doing, and waits for it.
    pub(super) fn stop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the compute thread panicked");
        }
    }
}

/// Loads partitions on a compute thread, or beside it.
pub(super) struct Loader(Weak<SyncSender<Order>>);

impl Loader {
    fn order(&self, order: Order) -> Result<(), String> {
        let sender = self.0.upgrade().ok_or("the compute thread has stopped")?;
        sender.try_send(order).map_err(|error| format!("the compute thread is busy: {error}"))
    }

    /// Loads a partition, or finds it loaded. Beside a mesh that holds the `present` ones it is
    /// loaded on another thread, and the device must have room for both.
    pub(super) fn load(
        &self,
        load: Load,
        present: Vec<Loaded>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Loaded, String>> + Send + use<> {
        let (answer, loaded) = oneshot::channel();
        let ordered = match present.is_empty() {
            true => self.order(Order::Load(load, answer)),
            false => load_beside(load, present, answer),
        };
        async move {
            ordered?;
            match tokio::time::timeout_at(deadline.into(), loaded).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err("the compute thread stopped while loading".into()),
                Err(_) => Err("weights were not loaded before the deadline".into()),
            }
        }
    }
}

fn serve(
    inbox: &Receiver<Order>,
    device: &Result<Device, String>,
    threads: usize,
    cores: &[usize],
) {
    affinity::pin(cores);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
    if let Err(error) = &pool {
        tracing::error!(%error, "no thread pool for this device; computing on one thread");
    }
    let mut loaded = None;
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Load(load, answer) => {
                let result = device
                    .clone()
                    .and_then(|device| guarded(|| find_or_load(&load, &device, &mut loaded)))
                    .and_then(|loaded| loaded);
                let _ = answer.send(result);
            }
            Order::Hold(partition) => loaded = Some(*partition),
            Order::WorkOff(agenda) => work_off(&agenda),
        }
    }
}

/// Loads a partition on a thread of its own, on the device of those that are `present`.
fn load_beside(
    load: Load,
    present: Vec<Loaded>,
    answer: oneshot::Sender<Result<Loaded, String>>,
) -> Result<(), String> {
    let thread = std::thread::Builder::new().name("load".into());
    let work = move || {
        let device = present.first().map(|loaded| loaded.device.clone());
        let found = device.ok_or_else(|| "there is no device".to_owned()).and_then(|device| {
            // What little is computed here stays on this thread.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
            pool.map_err(|error| error.to_string())?;
            let mut held = present.iter().find(|loaded| loaded.is(&load)).cloned();
            guarded(|| find_or_load(&load, &device, &mut held)).and_then(|loaded| loaded)
        });
        // Whoever asked may have given up.
        let _ = answer.send(found);
    };
    thread.spawn(work).map(drop).map_err(|error| format!("no thread to load on: {error}"))
}

fn find_or_load(load: &Load, device: &Device, held: &mut Option<Loaded>) -> Result<Loaded, String> {
    let dtype = match load.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    };
    let checkpoint = load.place.open()?;
    let spec = describe_open(&checkpoint, dtype).map_err(|error| error.to_string())?;
    if spec.id != load.model_id {
        return Err(format!(
            "{} holds another model than the coordinator's: digest {:x} here, {:x} there",
            checkpoint.dir().display(),
            spec.id.0,
            load.model_id.0
        ));
    }
    let parts = load.parts(spec.blocks)?;
    if let Some(loaded) = held.as_ref()
        && loaded.is(load)
    {
        return Ok(loaded.clone());
    }
    // What is replaced goes first: a device need not have room for both.
    *held = None;
    let model = LoadedParts::load_from(checkpoint, dtype, &parts, device)
        .map_err(|error| error.to_string())?;
    let model = Arc::new(model);
    let loaded = Loaded { model, parts, dtype: load.dtype, device: device.clone() };
    *held = Some(loaded.clone());
    Ok(loaded)
}

/// Runs `work`; a panic in it, which is always a bug, ends the run and not the device's thread.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("a bug in ditmesh: {}; please report it", text.unwrap_or_else(|| "a panic".into()))
    })
}
