//! A link of any fabric, as the executor uses it: places posted ahead, frames handed over.
//!
//! Owns the order of tags. Knows no transport beyond the traits, so every fabric is measured by the
//! same lines.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    Completion, Epoch, Fabric, FabricAddress, FrameMeta, Link, MemKind, MeshForm, PeerAddress,
    PeerId, PostRecv, Priority, Received, Region, RunId, SendFrame, Slice, Tag, Transport,
    TransportError,
};

use super::POSTED_BYTES_MAX;
use super::wire::Wire;

const EPOCH: Epoch = Epoch(1);
const RUN: RunId = RunId(1);
/// Of round trips.
const PINGS: RunId = RunId(2);
/// Places posted, and frames handed over, ahead.
const AHEAD_MAX: u64 = 64;
/// Places of round trips posted ahead; half of them at a time, so that their grants travel
/// together.
const PINGS_AHEAD: usize = 64;
/// Longest wait for one message.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// One end.
pub(super) struct LinkWire {
    transport: Arc<dyn Transport>,
    link: Arc<dyn Link>,
    next: u64,
    next_ping: u64,
    /// The places of the next questions or answers, and of how many bytes they are.
    ahead: VecDeque<Completion<Received>>,
    ahead_bytes: usize,
    payload: Slice,
    /// Whether places and payloads are in the memory of a device.
    on_device: bool,
    _fabric: Arc<dyn Fabric>,
}

/// Forms the mesh of two.
pub(super) fn join(
    fabric: Arc<dyn Fabric>,
    cluster: String,
    (rank, peer): (u8, FabricAddress),
    on_device: bool,
) -> Result<Box<dyn Wire>, String> {
    let other = 1 - u32::from(rank.min(1));
    let form = MeshForm {
        cluster,
        epoch: EPOCH,
        local: PeerId(rank.into()),
        peers: vec![PeerAddress { id: PeerId(other), name: format!("n{other}"), address: peer }],
        deadline: Instant::now() + Duration::from_secs(20),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let transport = runtime.block_on(fabric.form(form)).map_err(|error| error.to_string())?;
    let link = transport.link(PeerId(other)).map_err(|error| error.to_string())?;
    if on_device && !link.takes(MemKind::Cuda { device: 0 }) {
        return Err(format!("{}: {}", link.carrier().name, link.carrier().why));
    }
    let payload = Slice::empty();
    Ok(Box::new(LinkWire {
        transport,
        link,
        next: 0,
        next_ping: 0,
        ahead: VecDeque::new(),
        ahead_bytes: 0,
        payload,
        on_device,
        _fabric: fabric,
    }))
}

impl LinkWire {
    fn memory(&self, bytes: usize) -> Result<Region, TransportError> {
        match self.on_device {
            true => self.transport.allocate_on_device(bytes),
            false => Ok(self.transport.allocate(bytes)),
        }
    }

    fn post(&self, run: RunId, tag: u64, bytes: usize) -> Completion<Received> {
        match self.memory(bytes) {
            Ok(region) => self.post_in(region, (run, tag), bytes),
            Err(error) => Completion::ready(Err(error)),
        }
    }

    fn post_in(
        &self,
        region: Region,
        (run, tag): (RunId, u64),
        bytes: usize,
    ) -> Completion<Received> {
        self.link.post_recv(PostRecv { run, tag: Tag(tag), region, len: bytes })
    }

    fn hand_over(&self, (run, tag): (RunId, u64), payload: Slice) -> Completion<()> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let priority = if run == PINGS { Priority::Next } else { Priority::Exchange };
        let meta = FrameMeta { priority, ..FrameMeta::raw(EPOCH, len) };
        self.link.send(SendFrame { run, tag: Tag(tag), meta, payload })
    }

    fn payload(&mut self, bytes: usize) -> Result<Slice, String> {
        if self.payload.len() < bytes {
            let mut memory = self.memory(bytes).map_err(|error| error.to_string())?;
            memory.bytes_mut().fill(7);
            self.payload = memory.freeze(bytes);
        }
        Ok(self.payload.part(0..bytes).unwrap_or_else(Slice::empty))
    }

    /// Sends and receives as many as asked, each side as far ahead as it may.
    fn both(&mut self, bytes: usize, sends: u64, receives: u64) -> Result<(), String> {
        let first = self.next;
        self.next += sends.max(receives);
        let payload = self.payload(if sends > 0 { bytes } else { 0 })?;
        let ahead = ahead(bytes);
        let (mut sent, mut posted) = (0, 0);
        let mut sending = VecDeque::new();
        let mut receiving = VecDeque::new();
        while sent < sends || posted < receives || !sending.is_empty() || !receiving.is_empty() {
            while posted < receives && (receiving.len() as u64) < ahead {
                receiving.push_back(self.post(RUN, first + posted, bytes));
                posted += 1;
            }
            while sent < sends && (sending.len() as u64) < ahead {
                let payload = payload.clone();
                sending.push_back(self.hand_over((RUN, first + sent), payload));
                sent += 1;
            }
            if let Some(received) = receiving.pop_front() {
                drop(wait(received)?);
            }
            if let Some(taken) = sending.pop_front() {
                wait(taken)?;
            }
        }
        Ok(())
    }

    /// The place of this round trip.
    fn ping_place(&mut self, bytes: usize) -> Result<(u64, Completion<Received>), String> {
        if self.ahead.is_empty() {
            self.ahead_bytes = bytes;
            self.post_ahead();
        }
        if self.ahead_bytes != bytes {
            return Err(format!("pings of {bytes} bytes after those of {}", self.ahead_bytes));
        }
        let place = self.ahead.pop_front().ok_or("no place was posted")?;
        self.next_ping += 1;
        Ok((self.next_ping - 1, place))
    }

    /// When half of the places are used, as many again.
    fn post_ahead(&mut self) {
        if self.ahead.len() <= PINGS_AHEAD / 2 {
            let first = self.next_ping + self.ahead.len() as u64;
            let places = (PINGS_AHEAD - self.ahead.len()) as u64;
            let posted = (first..first + places).map(|tag| self.post(PINGS, tag, self.ahead_bytes));
            let posted: Vec<_> = posted.collect();
            self.ahead.extend(posted);
        }
    }

    fn note(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}

impl Wire for LinkWire {
    fn send(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        self.both(bytes, count, 0)?;
        let (tag, note) = (self.note(), Region::host(1));
        wait(self.post_in(note, (RUN, tag), 1)).map(drop)
    }

    fn receive(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        self.both(bytes, 0, count)?;
        let tag = self.note();
        wait(self.hand_over((RUN, tag), Slice::copy_of(&[1])))
    }

    fn exchange(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        self.both(bytes, count, count)
    }

    fn ask(&mut self, bytes: usize) -> Result<(), String> {
        let (tag, answer) = self.ping_place(bytes)?;
        let payload = self.payload(bytes)?;
        drop(self.hand_over((PINGS, tag), payload));
        self.post_ahead();
        wait(answer).map(drop)
    }

    fn answer(&mut self, bytes: usize) -> Result<(), String> {
        let (tag, question) = self.ping_place(bytes)?;
        let payload = self.payload(bytes)?;
        drop(wait(question)?);
        drop(self.hand_over((PINGS, tag), payload));
        self.post_ahead();
        Ok(())
    }
}

fn ahead(bytes: usize) -> u64 {
    (POSTED_BYTES_MAX / bytes.max(1)).clamp(2, AHEAD_MAX as usize) as u64
}

fn wait<T>(mut completion: Completion<T>) -> Result<T, String> {
    completion.wait_until(Instant::now() + WAIT_MAX).map_err(|error| error.to_string())
}
