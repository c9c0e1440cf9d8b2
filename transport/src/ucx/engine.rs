//! Everything of UCX in one fabric.
//!
//! Owns every worker and lane: shared memory has a worker per link, because there UCX (1.13) cannot
//! end what is under way towards one peer except with its worker; the network has one for all.
//! Does not own who calls it; see `driver.rs`. Invariants: one thread at a time is in here; links
//! are called without their locks held by this thread; a lane that ends leaves nothing behind.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use ucx_sys::bindings::ucp_ep_h;

use super::UcxConfig;
use super::commands::{Command, Commands, Opened};
use super::context::{Context, Path};
use super::flights::Operation;
use super::front;
use super::inbox::{Inbox, Rendezvous};
use super::lane::LaneId;
use super::worker::{Started, Worker};
use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{FrameHeader, Nonce};
use crate::link::lane::FrameSink;
use crate::link::table::Departure;
use crate::region::DeviceMemory;

/// How often an ending engine looks whether closed endpoints are gone.
const LAST_TURNS: usize = 10_000;

struct Station {
    worker: Worker,
    /// Ends with its only lane.
    exclusive: bool,
}

// SAFETY: an endpoint is UCX's name within a worker, used with exclusive access to it.
unsafe impl Send for Lane {}

struct Lane {
    station: u64,
    endpoint: Option<ucp_ep_h>,
    ours: Nonce,
    theirs: Nonce,
    sink: Arc<dyn FrameSink>,
    sequence: u32,
    probe_left: bool,
    probe_came: bool,
    reached: Option<Completer<()>>,
}

pub(super) struct Engine {
    config: UcxConfig,
    device: Option<Arc<dyn DeviceMemory>>,
    commands: Arc<Commands>,
    epoll: Arc<Epoll>,
    contexts: HashMap<Path, Arc<Context>>,
    stations: BTreeMap<u64, Station>,
    next_station: u64,
    network: Option<u64>,
    lanes: HashMap<LaneId, Lane>,
    /// Emptied at every turn; kept for its memory.
    taken: VecDeque<Command>,
    turn: Inbox,
}

impl Engine {
    /// `epoll` is what the engine's thread sleeps on.
    pub(super) fn new(
        config: UcxConfig,
        device: Option<Arc<dyn DeviceMemory>>,
        commands: Arc<Commands>,
        epoll: Arc<Epoll>,
    ) -> Self {
        Self {
            config,
            device,
            commands,
            epoll,
            contexts: HashMap::new(),
            stations: BTreeMap::new(),
            next_station: 0,
            network: None,
            lanes: HashMap::new(),
            taken: VecDeque::new(),
            turn: Inbox::default(),
        }
    }

    /// Carries out what was commanded and what happened; whether there was anything.
    pub(super) fn turn(&mut self) -> bool {
        self.obey() | self.progress()
    }

    /// Lets the calling thread use the device: whoever has a turn may touch its memory.
    fn enter(&self) {
        if let Some(device) = &self.device {
            device.enter();
        }
    }

    /// Carries out what was commanded; whether there was anything.
    pub(super) fn obey(&mut self) -> bool {
        let mut commands = std::mem::take(&mut self.taken);
        self.commands.take(&mut commands);
        let busy = !commands.is_empty();
        if busy {
            self.enter();
        }
        for command in commands.drain(..) {
            self.handle(command);
        }
        self.taken = commands;
        busy
    }

    /// How many operations are under way.
    pub(super) fn under_way(&self) -> usize {
        self.stations.values().map(|station| station.worker.under_way()).sum()
    }

    /// Whether the event descriptors will tell of what comes next.
    pub(super) fn arm(&self) -> bool {
        self.stations.values().all(|station| station.worker.arm())
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Open { lane, path, nonce, sink, reply } => {
                reply.complete(self.open(lane, path, nonce, sink));
            }
            Command::Connect { lane, address, nonce, reached } => {
                self.connect(lane, &address, nonce, reached);
            }
            Command::Depart { lane, departure } => self.depart(lane, departure),
            Command::Fail { lane, cause } => self.lost(lane, &cause),
            Command::Close { lane } => self.close(lane),
        }
    }

    fn open(
        &mut self,
        id: LaneId,
        path: Path,
        nonce: Nonce,
        sink: Arc<dyn FrameSink>,
    ) -> Result<Opened, TransportError> {
        let number = match (path, self.network) {
            (Path::Network, Some(number)) => number,
            _ => self.found(path)?,
        };
        let station = self.stations.get(&number).ok_or_else(|| TransportError::closed("ucx"))?;
        let opened =
            Opened { address: station.worker.address()?, device: station.worker.device_offer() };
        station.worker.inbox().borrow_mut().add(nonce, id, Arc::clone(&sink));
        let lane = Lane {
            station: number,
            endpoint: None,
            ours: nonce,
            theirs: Nonce::default(),
            sink,
            sequence: 0,
            probe_left: false,
            probe_came: false,
            reached: None,
        };
        self.lanes.insert(id, lane);
        Ok(opened)
    }

    fn found(&mut self, path: Path) -> Result<u64, TransportError> {
        let context = match self.contexts.get(&path) {
            Some(context) => Arc::clone(context),
            None => {
                let library = super::library()?;
                let device = self.device.clone();
                let context = Arc::new(Context::open(library, path, &self.config, device)?);
                self.contexts.insert(path, Arc::clone(&context));
                context
            }
        };
        let worker = Worker::open(context)?;
        // SAFETY: the descriptor is the worker's and open as long as the worker lives; the kernel
        // takes it out of the epoll when it closes.
        let descriptor = unsafe { BorrowedFd::borrow_raw(worker.descriptor()) };
        self.epoll
            .add(descriptor, readable())
            .map_err(|error| TransportError::system("watch a worker of UCX", error.into()))?;
        let number = self.next_station;
        self.next_station += 1;
        let exclusive = path == Path::SharedMemory;
        self.stations.insert(number, Station { worker, exclusive });
        if !exclusive {
            self.network = Some(number);
        }
        Ok(number)
    }

    fn connect(&mut self, id: LaneId, address: &[u8], nonce: Nonce, reached: Completer<()>) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(station) = self.stations.get_mut(&lane.station) else { return };
        let endpoint = match station.worker.connect(address, !station.exclusive) {
            Ok(endpoint) => endpoint,
            Err(error) => return reached.complete(Err(error)),
        };
        lane.endpoint = Some(endpoint);
        lane.theirs = nonce;
        lane.reached = Some(reached);
        let started = station.worker.probe(endpoint, &nonce, Operation::Probe { lane: id });
        self.follow(started);
        self.acquaint(id);
    }

    /// Both ends have heard each other.
    fn acquaint(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if lane.probe_left
            && lane.probe_came
            && let Some(reached) = lane.reached.take()
        {
            reached.complete(Ok(()));
        }
    }

    fn depart(&mut self, id: LaneId, departure: Departure) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(station) = self.stations.get_mut(&lane.station) else { return };
        let place = station.worker.place_of(&departure.payload);
        let (Some(endpoint), Some(place)) = (lane.endpoint, place) else {
            return self.lost(id, "a payload has no address that UCX could send from");
        };
        let Departure { id: number, slot, run, tag, meta, payload } = departure;
        let header = FrameHeader {
            epoch: meta.epoch,
            run,
            tag,
            slot,
            meta_len: 0,
            payload_len: payload.len() as u64,
            sequence: lane.sequence,
        };
        lane.sequence = lane.sequence.wrapping_add(1);
        let theirs = lane.theirs;
        let operation = Operation::Send { lane: id, departure: number, payload };
        let write = |out: &mut Vec<u8>| front::write(out, &theirs, header, &meta);
        match station.worker.send(endpoint, place, operation, write) {
            Ok(started) => self.follow(started),
            Err(error) => lane.sink.broken(&error),
        }
    }

    fn progress(&mut self) -> bool {
        self.enter();
        let mut busy = false;
        // Lanes may close, and stations end, while what happened is handled.
        let mut next = 0;
        while let Some((&number, station)) = self.stations.range(next..).next() {
            next = number + 1;
            busy |= station.worker.progress();
            let mut turn = std::mem::take(&mut self.turn);
            station.worker.inbox().borrow_mut().hand_over(&mut turn);
            busy |= !turn.is_idle();
            self.settle(number, &mut turn);
            self.turn = turn;
        }
        busy
    }

    /// Handles what happened at one station.
    fn settle(&mut self, number: u64, turn: &mut Inbox) {
        for rendezvous in turn.rendezvous.drain(..) {
            self.fetch(number, rendezvous);
        }
        for finished in turn.finished.drain(..) {
            let Some(station) = self.stations.get_mut(&number) else { continue };
            let operation = station.worker.finish(&finished);
            let Some(operation) = operation else { continue };
            if finished.status == ucx_sys::bindings::UCS_OK {
                self.done(operation);
            } else {
                let words = station.worker.words(finished.status);
                self.failed(&operation, &words);
            }
        }
        for id in turn.probed.drain(..) {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.probe_came = true;
            }
            self.acquaint(id);
        }
        for (endpoint, status) in turn.failed.drain(..) {
            let Some(station) = self.stations.get(&number) else { continue };
            let words = station.worker.words(status);
            let mut lanes = self.lanes.iter();
            let lane = lanes.find(|(_, lane)| lane.endpoint == Some(endpoint)).map(|(id, _)| *id);
            if let Some(id) = lane {
                self.lost(id, &words);
            }
        }
    }

    fn fetch(&mut self, number: u64, mut rendezvous: Rendezvous) {
        let Some(station) = self.stations.get_mut(&number) else { return };
        // `deliver` has compared this with what came.
        let len = usize::try_from(rendezvous.header.payload_len).unwrap_or(usize::MAX);
        let place = station.worker.place_in(&mut rendezvous.region, len);
        let (Some(place), true) = (place, self.lanes.contains_key(&rendezvous.lane)) else {
            return station.worker.release(rendezvous);
        };
        let Rendezvous { lane, data, header, meta, region } = rendezvous;
        let started =
            station.worker.fetch(data, place, Operation::Receive { lane, header, meta, region });
        self.follow(started);
    }

    fn follow(&mut self, started: Started) {
        match started {
            Started::UnderWay => {}
            Started::Done(operation) => self.done(operation),
            Started::Failed(operation, status) => {
                let words = match super::library() {
                    Ok(library) => ucx_sys::status_text(&library.ucp, status),
                    Err(error) => error.to_string(),
                };
                self.failed(&operation, &words);
            }
        }
    }

    fn done(&mut self, operation: Operation) {
        match operation {
            Operation::Send { lane, departure, payload } => {
                if let Some(lane) = self.lanes.get(&lane) {
                    lane.sink.departed(departure, payload.len() as u64);
                }
            }
            Operation::Receive { lane, header, meta, region } => {
                if let Some(lane) = self.lanes.get(&lane) {
                    lane.sink.arrived(&header, region, meta);
                }
            }
            Operation::Probe { lane } => {
                if let Some(found) = self.lanes.get_mut(&lane) {
                    found.probe_left = true;
                }
                self.acquaint(lane);
            }
            Operation::Close => {}
        }
    }

    fn failed(&mut self, operation: &Operation, words: &str) {
        match operation {
            Operation::Send { lane, .. }
            | Operation::Receive { lane, .. }
            | Operation::Probe { lane } => self.lost(*lane, words),
            Operation::Close => {}
        }
    }

    /// The link hears of it and closes its lane.
    fn lost(&mut self, id: LaneId, cause: &str) {
        if let Some(lane) = self.lanes.get(&id) {
            lane.sink.lost(&format!("ucx: {cause}"));
        }
    }

    fn close(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.remove(&id) else { return };
        let Some(station) = self.stations.get_mut(&lane.station) else { return };
        station.worker.inbox().borrow_mut().remove(&lane.ours);
        if station.exclusive {
            self.stations.remove(&lane.station);
        } else if let Some(endpoint) = lane.endpoint {
            station.worker.disconnect(endpoint);
        }
    }

    /// Ends every lane and every worker.
    pub(super) fn end(mut self) {
        self.enter();
        for lane in self.lanes.values() {
            lane.sink.lost("ucx was stopped");
        }
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.close(lane);
        }
        // Lets closing endpoints say goodbye; the workers' end ends the rest.
        for _ in 0..LAST_TURNS {
            if self.under_way() == 0 {
                break;
            }
            self.progress();
        }
    }
}

pub(super) fn readable() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, 0)
}
