//! Everything of UCX in one fabric.
//!
//! Owns every worker and lane: shared memory has a worker per link, because there UCX (1.13) cannot
//! end what is under way towards one peer except with its worker; the network has one for all.
//! Does not own who calls it; see `driver.rs`. Invariants: one thread at a time is in here; links
//! are called without their locks held by this thread; a lane that ends leaves nothing behind.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use ucx_sys::bindings::ucp_ep_h;

use super::UcxConfig;
use super::coming::Coming;
use super::commands::{Command, Commands, Opened};
use super::context::{Context, Path};
use super::flights::Operation;
use super::front;
use super::inbox::{Happened, Notice, Rendezvous};
use super::lane::LaneId;
use super::worker::{Started, Worker};
use crate::completion::Completer;
use crate::error::TransportError;
use crate::frame::{FrameHeader, Grant, Nonce};
use crate::ids::IdMap;
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
    coming: Coming,
    /// Its place among the stations.
    station: usize,
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
    /// None where one has ended and the next one goes.
    stations: Vec<Option<Station>>,
    network: Option<usize>,
    lanes: IdMap<LaneId, Lane>,
    /// Emptied at every turn; kept for its memory.
    taken: VecDeque<Command>,
    happened: Happened,
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
            stations: Vec::new(),
            network: None,
            lanes: IdMap::default(),
            taken: VecDeque::new(),
            happened: Happened::default(),
        }
    }

    /// Carries out what was commanded and what happened; whether there was anything.
    pub(super) fn turn(&mut self) -> bool {
        self.obey() | self.progress()
    }

    /// Lets the calling thread use the device: whoever has a turn may touch its memory.
    pub(super) fn enter(&self) {
        if let Some(device) = &self.device {
            device.enter();
        }
    }

    /// Carries out what was commanded; whether there was anything.
    pub(super) fn obey(&mut self) -> bool {
        if self.commands.is_empty() {
            return false;
        }
        let mut commands = std::mem::take(&mut self.taken);
        self.commands.take(&mut commands);
        self.enter();
        for command in commands.drain(..) {
            self.handle(command);
        }
        self.taken = commands;
        true
    }

    /// How many operations are under way.
    pub(super) fn under_way(&self) -> usize {
        self.stations.iter().flatten().map(|station| station.worker.under_way()).sum()
    }

    /// Whether the event descriptors will tell of what comes next.
    pub(super) fn arm(&self) -> bool {
        self.stations.iter().flatten().all(|station| station.worker.arm())
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
            Command::Grant { lane, grant } => self.grant(lane, grant),
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
        let station = self.stations.get(number).and_then(Option::as_ref);
        let station = station.ok_or_else(|| TransportError::closed("ucx"))?;
        let opened =
            Opened { address: station.worker.address()?, device: station.worker.device_offer() };
        station.worker.inbox().borrow_mut().add(nonce, id, Arc::clone(&sink));
        let lane = Lane {
            coming: Coming::default(),
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

    fn found(&mut self, path: Path) -> Result<usize, TransportError> {
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
        let exclusive = path == Path::SharedMemory;
        let station = Some(Station { worker, exclusive });
        let number = match self.stations.iter().position(Option::is_none) {
            Some(number) => number,
            None => {
                self.stations.push(None);
                self.stations.len() - 1
            }
        };
        self.stations[number] = station;
        if !exclusive {
            self.network = Some(number);
        }
        Ok(number)
    }

    fn connect(&mut self, id: LaneId, address: &[u8], nonce: Nonce, reached: Completer<()>) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(Some(station)) = self.stations.get_mut(lane.station) else { return };
        let endpoint = match station.worker.connect(address, !station.exclusive) {
            Ok(endpoint) => endpoint,
            Err(error) => return reached.complete(Err(error)),
        };
        lane.endpoint = Some(endpoint);
        lane.theirs = nonce;
        lane.reached = Some(reached);
        let write = |out: &mut Vec<u8>| front::write_name(out, &nonce);
        match station.worker.tell(endpoint, Notice::Probe, write) {
            Started::Done => lane.probe_left = true,
            Started::UnderWay(flight) => {
                station.worker.keep(flight, Operation::Probe { lane: id });
            }
            Started::Failed(status) => {
                let words = station.worker.words(status);
                self.lost(id, &words);
            }
        }
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

    /// Sends a granted frame.
    pub(super) fn depart(&mut self, id: LaneId, departure: Departure) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(Some(station)) = self.stations.get_mut(lane.station) else { return };
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
        let write = |out: &mut Vec<u8>| front::write(out, &lane.theirs, header, &meta);
        match station.worker.send(endpoint, place, write) {
            Ok(Started::Done) => lane.sink.departed(number, payload.len() as u64),
            Ok(Started::UnderWay(flight)) => {
                let operation = Operation::Send { lane: id, departure: number, payload };
                station.worker.keep(flight, operation);
            }
            Ok(Started::Failed(status)) => {
                let words = station.worker.words(status);
                self.lost(id, &words);
            }
            Err(error) => lane.sink.broken(&error),
        }
    }

    /// Tells the peer of a place.
    pub(super) fn grant(&mut self, id: LaneId, grant: Grant) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(Some(station)) = self.stations.get_mut(lane.station) else { return };
        let Some(endpoint) = lane.endpoint else { return };
        let write = |out: &mut Vec<u8>| front::write_grant(out, &lane.theirs, grant);
        match station.worker.tell(endpoint, Notice::Grant, write) {
            Started::Done => {}
            Started::UnderWay(flight) => station.worker.keep(flight, Operation::Grant { lane: id }),
            Started::Failed(status) => {
                let words = station.worker.words(status);
                self.lost(id, &words);
            }
        }
    }

    fn progress(&mut self) -> bool {
        self.enter();
        let mut busy = false;
        // Lanes may close, and stations end, while what happened is handled.
        for number in 0..self.stations.len() {
            let Some(Some(station)) = self.stations.get(number) else { continue };
            busy |= station.worker.progress();
            if station.worker.inbox().borrow_mut().hand_over(&mut self.happened) {
                busy = true;
                let mut happened = std::mem::take(&mut self.happened);
                self.settle(number, &mut happened);
                self.happened = happened;
            }
        }
        busy
    }

    /// Handles what happened at one station.
    fn settle(&mut self, number: usize, turn: &mut Happened) {
        for rendezvous in turn.rendezvous.drain(..) {
            self.fetch(number, rendezvous);
        }
        for finished in turn.finished.drain(..) {
            let Some(station) = self.station(number) else { continue };
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
            let Some(station) = self.station(number) else { continue };
            let words = station.worker.words(status);
            let mut lanes = self.lanes.iter();
            let lane = lanes.find(|(_, lane)| lane.endpoint == Some(endpoint)).map(|(id, _)| *id);
            if let Some(id) = lane {
                self.lost(id, &words);
            }
        }
    }

    fn station(&mut self, number: usize) -> Option<&mut Station> {
        self.stations.get_mut(number)?.as_mut()
    }

    fn fetch(&mut self, number: usize, mut rendezvous: Rendezvous) {
        let Some(Some(station)) = self.stations.get_mut(number) else { return };
        // `deliver` has compared this with what came.
        let len = usize::try_from(rendezvous.header.payload_len).unwrap_or(usize::MAX);
        let place = station.worker.place_in(&mut rendezvous.region, len);
        let (Some(place), true) = (place, self.lanes.contains_key(&rendezvous.lane)) else {
            return station.worker.release(rendezvous);
        };
        let Rendezvous { lane, data, header, meta, region } = rendezvous;
        // What comes through memory of this host tells nothing of a network.
        if !station.exclusive
            && let Some(lane) = self.lanes.get_mut(&lane)
        {
            lane.coming.begins(Instant::now());
        }
        let started = station.worker.fetch(data, place);
        let operation = Operation::Receive { lane, header, meta, region };
        match started {
            Started::Done => self.done(operation),
            Started::UnderWay(flight) => station.worker.keep(flight, operation),
            Started::Failed(status) => {
                let words = station.worker.words(status);
                self.lost(lane, &words);
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
                if let Some(lane) = self.lanes.get_mut(&lane) {
                    if let Some((bytes, took)) = lane.coming.ends(header.payload_len, Instant::now)
                    {
                        lane.sink.observed(bytes, took);
                    }
                    lane.sink.arrived(&header, region, meta);
                }
            }
            Operation::Probe { lane } => {
                if let Some(found) = self.lanes.get_mut(&lane) {
                    found.probe_left = true;
                }
                self.acquaint(lane);
            }
            Operation::Grant { .. } | Operation::Close => {}
        }
    }

    fn failed(&mut self, operation: &Operation, words: &str) {
        match operation {
            Operation::Send { lane, .. }
            | Operation::Receive { lane, .. }
            | Operation::Grant { lane }
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
        let Some(place) = self.stations.get_mut(lane.station) else { return };
        let Some(station) = place else { return };
        station.worker.inbox().borrow_mut().remove(&lane.ours);
        if station.exclusive {
            *place = None;
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
