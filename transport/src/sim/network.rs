//! The events of a simulated network.
//!
//! Owns virtual time, the queue of events, the lanes' clocks and every link's two tables. Pure: no
//! thread, no real clock. Invariants: events happen in the order of (time, number); a lane never
//! reorders.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::SimConfig;
use super::random::Random;
use crate::frame::{FRAME_BYTES_MAX, FrameHeader, LinkMessage};
use crate::ids::PeerId;
use crate::link::table::{Arrival, Departure, LinkTable, Step};

/// How often one message can be lost in a row.
const LOSSES_MAX: u32 = 8;

/// What a small message weighs on its lane, in bytes.
const MESSAGE_BYTES: u64 = 64;

/// One end of a link: whose, and towards whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) of: PeerId,
    pub(super) towards: PeerId,
}

impl End {
    fn other(self) -> Self {
        Self { of: self.towards, towards: self.of }
    }

    fn pair(self) -> (PeerId, PeerId) {
        (self.of.min(self.towards), self.of.max(self.towards))
    }
}

/// Small messages and frames travel separately, as over two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LaneKind {
    Control,
    Bulk,
}

enum Event {
    /// A small message arrives at an end.
    Message(End, LinkMessage),
    /// A frame arrives at an end.
    Frame(End, Departure),
    /// The last byte of a frame has left an end.
    Departed(End, u64, u64),
    /// The other side's close arrives at an end.
    Close(End, String),
    /// A partition has lasted for the idle timeout.
    Silence { pair: (PeerId, PeerId), partition: u64 },
}

#[derive(Default)]
struct Lane {
    free_at: Duration,
    last_arrival: Duration,
}

pub(super) struct Network {
    config: SimConfig,
    random: Random,
    now: Duration,
    next_number: u64,
    events: BTreeMap<(Duration, u64), Event>,
    tables: HashMap<End, LinkTable>,
    lanes: HashMap<(End, LaneKind), Lane>,
    partitions: HashMap<(PeerId, PeerId), Partition>,
}

struct Partition {
    number: u64,
    silenced: Vec<Event>,
}

impl Network {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        Self {
            config,
            random: Random::new(seed),
            now: Duration::ZERO,
            next_number: 0,
            events: BTreeMap::new(),
            tables: HashMap::new(),
            lanes: HashMap::new(),
            partitions: HashMap::new(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    pub(super) fn table(&mut self, end: End) -> &mut LinkTable {
        let epoch = self.config.epoch;
        let new = || LinkTable::new(end.towards, epoch, FRAME_BYTES_MAX);
        self.tables.entry(end).or_insert_with(new)
    }

    /// A small message leaves an end.
    pub(super) fn say(&mut self, from: End, message: LinkMessage) {
        let (_, arrival) = self.transmit(from, LaneKind::Control, MESSAGE_BYTES);
        self.schedule(arrival, Event::Message(from.other(), message));
    }

    /// What a table wants carried leaves an end.
    pub(super) fn carry(&mut self, from: End, step: Option<Step>) {
        match step {
            None => {}
            Some(Step::Refuse(refusal)) => self.say(from, LinkMessage::Refuse(refusal)),
            Some(Step::Depart(departure)) => {
                let len = departure.payload.len() as u64;
                let (sent, arrival) = self.transmit(from, LaneKind::Bulk, len + MESSAGE_BYTES);
                self.schedule(sent, Event::Departed(from, departure.id, len));
                self.schedule(arrival, Event::Frame(from.other(), departure));
            }
        }
    }

    /// An end closes: it knows at once, the other end when the news arrives.
    pub(super) fn close(&mut self, end: End, cause: &str) {
        if self.table(end).close(cause) {
            let (_, arrival) = self.transmit(end, LaneKind::Control, MESSAGE_BYTES);
            let cause = format!("it closed the connection: {cause}");
            self.schedule(arrival, Event::Close(end.other(), cause));
        }
    }

    pub(super) fn advance(&mut self) -> bool {
        let Some(((time, _), event)) = self.events.pop_first() else { return false };
        self.now = time;
        self.happen(event);
        true
    }

    pub(super) fn run_until(&mut self, time: Duration) {
        while self.events.first_key_value().is_some_and(|((at, _), _)| *at <= time) {
            self.advance();
        }
        self.now = self.now.max(time);
    }

    pub(super) fn partition(&mut self, a: PeerId, b: PeerId) {
        let pair = (a.min(b), a.max(b));
        if self.partitions.contains_key(&pair) {
            return;
        }
        let number = self.next_number;
        self.partitions.insert(pair, Partition { number, silenced: Vec::new() });
        let at = self.now + self.config.idle_timeout;
        self.schedule(at, Event::Silence { pair, partition: number });
    }

    pub(super) fn heal(&mut self, a: PeerId, b: PeerId) {
        let Some(partition) = self.partitions.remove(&(a.min(b), a.max(b))) else { return };
        for event in partition.silenced {
            self.schedule(self.now, event);
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        let number = self.next_number;
        self.next_number += 1;
        self.events.insert((at, number), event);
    }

    /// When the last byte leaves, and when it arrives.
    fn transmit(&mut self, from: End, kind: LaneKind, bytes: u64) -> (Duration, Duration) {
        let config = &self.config;
        let nanos =
            u128::from(bytes) * 1_000_000_000 / u128::from(config.bandwidth_bytes_per_s.max(1));
        let duration = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut delay = self.random.between(config.latency_min, config.latency_max);
        let mut losses = 0;
        while losses < LOSSES_MAX && self.random.one_in_a_million(config.loss_per_million) {
            delay += config.retransmit_delay;
            losses += 1;
        }
        let lane = self.lanes.entry((from, kind)).or_default();
        lane.free_at = lane.free_at.max(self.now) + duration;
        lane.last_arrival = lane.last_arrival.max(lane.free_at + delay);
        (lane.free_at, lane.last_arrival)
    }

    fn happen(&mut self, event: Event) {
        let pair = match &event {
            Event::Message(end, _) | Event::Frame(end, _) | Event::Close(end, _) => {
                Some(end.pair())
            }
            Event::Departed(..) | Event::Silence { .. } => None,
        };
        if let Some(partition) = pair.and_then(|pair| self.partitions.get_mut(&pair)) {
            partition.silenced.push(event);
            return;
        }
        match event {
            Event::Message(end, message) => self.hear(end, message),
            Event::Frame(end, departure) => self.arrive(end, departure),
            Event::Departed(end, id, len) => self.table(end).departed(id, len),
            Event::Close(end, cause) => {
                self.table(end).close(&cause);
            }
            Event::Silence { pair, partition } => self.fall_silent(pair, partition),
        }
    }

    fn hear(&mut self, end: End, message: LinkMessage) {
        match message {
            LinkMessage::Grants(grants) => {
                for grant in grants {
                    match self.table(end).granted(grant) {
                        Ok(step) => self.carry(end, step),
                        Err(error) => self.close(end, &error.to_string()),
                    }
                }
            }
            LinkMessage::Refuse(refusal) => self.table(end).refused(refusal),
            LinkMessage::Abort { run, cause } => {
                self.table(end).abort(run, &cause);
            }
            // Nothing but the network carries frames here.
            LinkMessage::Offer(_) => {}
        }
    }

    fn arrive(&mut self, end: End, departure: Departure) {
        let Departure { slot, run, tag, meta, payload, .. } = departure;
        let header = FrameHeader {
            epoch: self.config.epoch,
            run,
            tag,
            slot,
            meta_len: 0,
            payload_len: payload.len() as u64,
            sequence: 0,
        };
        let table = self.table(end);
        match table.arriving(&header) {
            Ok(Arrival::Late) => {}
            Ok(Arrival::Place(mut place)) => {
                if table.agrees(&header, &meta)
                    && let Some(into) = place.region.bytes_mut().get_mut(..payload.len())
                {
                    into.copy_from_slice(payload.bytes());
                    table.arrived(&header, place.region, meta);
                }
            }
            Err(error) => self.close(end, &error.to_string()),
        }
    }

    fn fall_silent(&mut self, pair: (PeerId, PeerId), partition: u64) {
        if self.partitions.get(&pair).is_none_or(|current| current.number != partition) {
            return;
        }
        let end = End { of: pair.0, towards: pair.1 };
        for end in [end, end.other()] {
            self.table(end).close("it fell silent");
        }
    }
}
