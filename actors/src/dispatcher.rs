//! Which request runs next and where: a bounded queue in front of the replicas of one mesh.
//!
//! A pure engine: events and the time go in, commands come out. Owns the order of requests, which of
//! them run together and on which replica. Does not form meshes (it says which one it wants), nor
//! run anything. A replica that is to give way takes no new run and is named idle when its last ends.
//!
//! Invariants: first come, first served: nobody is started before somebody who came earlier, also
//! when that one waits for another mesh; a replica has at most [`Room::runs_max`] runs at a time,
//! and a second one only where both fit its memory; requests become one run only when they follow
//! each other in the queue, so nobody waits for company; a request that goes on after its
//! replica was lost waits where it would be had it never run; a request that is withheld is not started
//! until it is released, nor is anybody behind it; every request ends by exactly one last
//! `Start` (then its run's own result), `Fail` or, when it never came in, `Fail` at once.

mod need;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use need::{MeshNeed, Need, OpenMeshes, Room};

use crate::generation::GenerateError;
use crate::membership::Now;
use crate::request::Degrees;

/// Requests that may wait; one more is refused. Those that go on after a loss were let in before.
pub const QUEUE_REQUESTS_MAX: usize = 256;

/// Names a request inside one coordinator; later ones have higher numbers.
pub type RequestId = u64;

/// Names a replica: the epoch of its mesh.
pub type ReplicaId = u64;

/// Numbers a run inside one coordinator.
pub type RunNumber = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum DispatcherEvent {
    /// A caller wants a picture.
    Submitted {
        /// Its request.
        request: RequestId,
        /// What it needs.
        need: Need,
    },
    /// A request, submitted or about to be, is not to be started yet: what it goes on from is on its
    /// way.
    Withheld {
        /// Which.
        request: RequestId,
    },
    /// A request that was withheld can be started.
    Released {
        /// Which.
        request: RequestId,
        /// What it needs, if that is something else by now.
        need: Option<Need>,
    },
    /// The caller does not want it any more.
    Cancelled {
        /// Its request.
        request: RequestId,
    },
    /// A replica of a mesh with these degrees is formed and free.
    ReplicaReady {
        /// Which.
        replica: ReplicaId,
        /// Degrees of the whole mesh.
        degrees: Degrees,
        /// What it takes.
        room: Room,
    },
    /// A run has ended on all its ranks.
    RunEnded {
        /// Which.
        run: RunNumber,
    },
    /// A replica is gone; of the requests it ran those that can go on wait for another one.
    ReplicaLost {
        /// Which.
        replica: ReplicaId,
        /// Requests that go on elsewhere, and what they need there.
        going_on: Vec<(RequestId, Need)>,
        /// Result of the others.
        error: GenerateError,
    },
    /// Requests with open degrees run on these meshes from now on.
    Open(OpenMeshes),
    /// A replica gives way to another mesh: it takes no new run.
    Retired {
        /// Which.
        replica: ReplicaId,
    },
    /// A mesh for this need could not be formed.
    FormFailed {
        /// Which.
        mesh: MeshNeed,
        /// Result of the requests that want it.
        error: GenerateError,
    },
    /// There is no mesh, and this is why.
    MeshAbsent {
        /// For people.
        cause: String,
    },
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub enum DispatcherCommand {
    /// Tell the caller that `ahead` requests come first.
    Queued {
        /// Its request.
        request: RequestId,
        /// Requests before it, running ones included.
        ahead: u32,
    },
    /// Run requests, one or several of one shape.
    Start {
        /// The run's number.
        run: RunNumber,
        /// Which, in order.
        requests: Vec<RequestId>,
        /// Where.
        replica: ReplicaId,
    },
    /// Stop a run whose requests were all cancelled.
    Abort {
        /// Which.
        run: RunNumber,
        /// Where.
        replica: ReplicaId,
    },
    /// Form a mesh for this need; the present one is idle.
    Want {
        /// Which.
        mesh: MeshNeed,
    },
    /// A retired replica has ended its last run.
    Idle {
        /// Which.
        replica: ReplicaId,
    },
    /// End a request without a picture.
    Fail {
        /// Which.
        request: RequestId,
        /// Its result.
        error: GenerateError,
    },
}

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    need: Need,
    since: Now,
    ahead: Option<u32>,
}

#[derive(Debug)]
struct Replica {
    degrees: Degrees,
    room: Room,
    runs: BTreeMap<RunNumber, Running>,
    /// Takes no new run; `Some(true)` once it was named idle.
    retired: Option<bool>,
}

/// A run until its ranks have ended; without requests when all were cancelled.
#[derive(Debug)]
struct Running {
    requests: Vec<RequestId>,
    bytes: u64,
}

impl Replica {
    /// Whether it is of the mesh of a need.
    fn serves(&self, mesh: MeshNeed, open: &OpenMeshes) -> bool {
        self.retired.is_none()
            && match mesh {
                MeshNeed::Exactly(degrees) => self.degrees == degrees,
                // However many replicas there are, each is the mesh.
                MeshNeed::Open { guided } => {
                    open.of(guided).is_some_and(|open| open.alone() == self.degrees.alone())
                }
            }
    }

    /// How many pictures of a need can start now, at most `wanted`.
    fn takes(&self, need: &Need, wanted: usize) -> usize {
        if self.runs.len() >= self.room.runs_max {
            return 0;
        }
        let wanted = wanted.min(self.room.images_max.max(1));
        let Some(room) = self.room.bytes.filter(|_| need.bytes > 0) else { return wanted };
        let used: u64 = self.runs.values().map(|run| run.bytes).sum();
        let fitting = (room.saturating_sub(used) / need.bytes).min(wanted as u64) as usize;
        // Alone it is tried: what the device says then is better than what was counted.
        if self.runs.is_empty() { fitting.max(1) } else { fitting }
    }
}

/// The engine.
#[derive(Debug)]
pub struct Dispatcher {
    wait_max: Duration,
    queue: VecDeque<Waiting>,
    withheld: BTreeSet<RequestId>,
    replicas: BTreeMap<ReplicaId, Replica>,
    last_run: RunNumber,
    open: OpenMeshes,
    /// What was last asked for, until there is an answer.
    asked: Option<MeshNeed>,
    absent: String,
    /// Since when nothing runs and the first request has no mesh.
    starved_since: Option<Now>,
}

impl Dispatcher {
    /// Without replicas; a request waits at most `wait_max` for a mesh.
    pub fn new(wait_max: Duration) -> Self {
        Self {
            wait_max,
            queue: VecDeque::new(),
            withheld: BTreeSet::new(),
            replicas: BTreeMap::new(),
            last_run: 0,
            open: OpenMeshes::default(),
            asked: None,
            absent: "it is not formed yet".into(),
            starved_since: None,
        }
    }

    /// Takes one event at time `now`.
    pub fn handle(&mut self, now: Now, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let mut commands = match event {
            DispatcherEvent::Submitted { request, need } => self.submit(now, request, need),
            DispatcherEvent::Withheld { request } => {
                self.withheld.insert(request);
                Vec::new()
            }
            DispatcherEvent::Released { request, need } => {
                self.withheld.remove(&request);
                let waiting = self.queue.iter_mut().find(|waiting| waiting.request == request);
                if let (Some(waiting), Some(need)) = (waiting, need) {
                    waiting.need = need;
                }
                Vec::new()
            }
            DispatcherEvent::Cancelled { request } => self.cancel(request),
            DispatcherEvent::ReplicaReady { replica, degrees, room } => {
                self.asked = None;
                let (runs, retired) = (BTreeMap::new(), None);
                self.replicas.insert(replica, Replica { degrees, room, runs, retired });
                Vec::new()
            }
            DispatcherEvent::RunEnded { run } => {
                for replica in self.replicas.values_mut() {
                    replica.runs.remove(&run);
                }
                Vec::new()
            }
            DispatcherEvent::ReplicaLost { replica, going_on, error } => {
                self.lose(now, replica, &going_on, &error)
            }
            DispatcherEvent::Open(open) => {
                self.open = open;
                Vec::new()
            }
            DispatcherEvent::Retired { replica } => {
                if let Some(replica) = self.replicas.get_mut(&replica) {
                    replica.retired = replica.retired.or(Some(false));
                }
                Vec::new()
            }
            DispatcherEvent::FormFailed { mesh, error } => {
                self.asked = None;
                self.fail_waiting(error, |waiting| waiting.need.mesh == mesh)
            }
            DispatcherEvent::MeshAbsent { cause } => {
                self.absent = cause;
                Vec::new()
            }
            DispatcherEvent::Tick => return self.expire(now),
        };
        commands.extend(self.dispatch());
        commands.extend(self.tell_idle());
        commands.extend(self.tell_positions());
        self.notice_starving(now);
        commands
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests running.
    pub fn running(&self) -> usize {
        self.runs().map(|run| run.requests.len()).sum()
    }

    /// Running requests, each with its replica and run, in order of their runs.
    pub fn under_way(&self) -> Vec<(RequestId, ReplicaId, RunNumber)> {
        let runs = self.replicas.iter().flat_map(|(&replica, state)| {
            let runs = state.runs.iter();
            runs.flat_map(move |(&run, running)| {
                running.requests.iter().map(move |&request| (request, replica, run))
            })
        });
        let mut under_way: Vec<_> = runs.collect();
        under_way.sort_unstable_by_key(|&(request, _, run)| (run, request));
        under_way
    }

    /// Waiting requests in order, each with whom or what it waits for.
    pub fn queue(&self) -> Vec<(RequestId, String)> {
        let running: Vec<String> =
            self.under_way().iter().map(|(request, ..)| request.to_string()).collect();
        let mut before = None;
        let queue = self.queue.iter().map(|waiting| {
            let why = match before.replace(waiting.request) {
                Some(before) => format!("request {before}"),
                None if self.withheld.contains(&waiting.request) => {
                    "the copy of its checkpoint".into()
                }
                None if !running.is_empty() => format!("request {}", running.join(", ")),
                None => format!("a mesh for {}: {}", waiting.need.mesh, self.absent),
            };
            (waiting.request, why)
        });
        queue.collect()
    }

    fn runs(&self) -> impl Iterator<Item = &Running> {
        self.replicas.values().flat_map(|replica| replica.runs.values())
    }

    /// The mesh that the first request waits for.
    pub fn wanted(&self) -> Option<MeshNeed> {
        self.queue.front().map(|waiting| waiting.need.mesh)
    }

    fn is_served(&self, mesh: MeshNeed) -> bool {
        self.replicas.values().any(|replica| replica.serves(mesh, &self.open))
    }

    /// Whether the first request waits for a mesh rather than for a run to end.
    fn notice_starving(&mut self, now: Now) {
        let starved = self.runs().next().is_none()
            && self.wanted().is_some_and(|wanted| !self.is_served(wanted));
        self.starved_since = starved.then(|| self.starved_since.unwrap_or(now));
    }

    fn submit(&mut self, now: Now, request: RequestId, need: Need) -> Vec<DispatcherCommand> {
        if self.queue.len() >= QUEUE_REQUESTS_MAX {
            self.withheld.remove(&request);
            let error = GenerateError::Failed(format!(
                "{QUEUE_REQUESTS_MAX} requests are waiting already; try again later"
            ));
            return vec![DispatcherCommand::Fail { request, error }];
        }
        self.queue.push_back(Waiting { request, need, since: now, ahead: None });
        Vec::new()
    }

    fn cancel(&mut self, request: RequestId) -> Vec<DispatcherCommand> {
        self.withheld.remove(&request);
        if let Some(position) = self.queue.iter().position(|waiting| waiting.request == request) {
            self.queue.remove(position);
            return vec![DispatcherCommand::Fail { request, error: GenerateError::Cancelled }];
        }
        let mut commands = Vec::new();
        for (&replica, state) in &mut self.replicas {
            for (&run, running) in &mut state.runs {
                let before = running.requests.len();
                running.requests.retain(|&running| running != request);
                if running.requests.len() == before {
                    continue;
                }
                // The others of a batch go on.
                if running.requests.is_empty() {
                    commands.push(DispatcherCommand::Abort { run, replica });
                }
                let error = GenerateError::Cancelled;
                commands.push(DispatcherCommand::Fail { request, error });
            }
        }
        commands
    }

    /// Requests that go on wait in the order in which they came.
    fn lose(
        &mut self,
        now: Now,
        replica: ReplicaId,
        going_on: &[(RequestId, Need)],
        error: &GenerateError,
    ) -> Vec<DispatcherCommand> {
        let Some(lost) = self.replicas.remove(&replica) else { return Vec::new() };
        self.asked = None;
        let mut commands = Vec::new();
        for request in lost.runs.into_values().flat_map(|run| run.requests) {
            match going_on.iter().find(|(going_on, _)| *going_on == request) {
                Some(&(request, need)) => {
                    let place = self.queue.partition_point(|waiting| waiting.request < request);
                    self.queue.insert(place, Waiting { request, need, since: now, ahead: None });
                }
                None => commands.push(DispatcherCommand::Fail { request, error: error.clone() }),
            }
        }
        commands
    }

    /// Fails the requests for whose mesh the first one has waited long enough, those behind it that
    /// want the same included once they have waited as long.
    fn expire(&mut self, now: Now) -> Vec<DispatcherCommand> {
        let (Some(wanted), Some(starved_since)) = (self.wanted(), self.starved_since) else {
            return Vec::new();
        };
        let wait_max = self.wait_max;
        let (seconds, absent) = (wait_max.as_secs(), &self.absent);
        let error = GenerateError::Lost(format!("no mesh for {seconds} s: {absent}"));
        let mut commands = self.fail_waiting(error, |waiting| {
            let since = waiting.since.max(starved_since);
            waiting.need.mesh == wanted && now.saturating_sub(since) >= wait_max
        });
        if !commands.is_empty() {
            self.starved_since = None;
            commands.extend(self.dispatch());
            commands.extend(self.tell_positions());
            self.notice_starving(now);
        }
        commands
    }

    fn fail_waiting(
        &mut self,
        error: GenerateError,
        doomed: impl Fn(&Waiting) -> bool,
    ) -> Vec<DispatcherCommand> {
        let mut commands = Vec::new();
        self.queue.retain(|waiting| {
            let fails = doomed(waiting);
            if fails {
                let (request, error) = (waiting.request, error.clone());
                self.withheld.remove(&request);
                commands.push(DispatcherCommand::Fail { request, error });
            }
            !fails
        });
        commands
    }

    /// Starts requests where there is room; asks for another mesh when the first one needs it and
    /// nothing runs.
    fn dispatch(&mut self) -> Vec<DispatcherCommand> {
        let mut commands = Vec::new();
        while let Some((replica, count)) = self.place() {
            let together: Vec<Waiting> = self.queue.drain(..count).collect();
            let requests: Vec<RequestId> = together.iter().map(|first| first.request).collect();
            let bytes = together.iter().map(|waiting| waiting.need.bytes).sum();
            self.last_run += 1;
            let run = self.last_run;
            if let Some(state) = self.replicas.get_mut(&replica) {
                state.runs.insert(run, Running { requests: requests.clone(), bytes });
            }
            commands.push(DispatcherCommand::Start { run, requests, replica });
        }
        if let Some(mesh) = self.wanted() {
            let idle = self.runs().next().is_none();
            if !self.is_served(mesh) && idle && self.asked != Some(mesh) {
                self.asked = Some(mesh);
                commands.push(DispatcherCommand::Want { mesh });
            }
        }
        commands
    }

    /// Names retired replicas whose last run has ended, once each.
    fn tell_idle(&mut self) -> Vec<DispatcherCommand> {
        let mut commands = Vec::new();
        for (&id, replica) in &mut self.replicas {
            if replica.retired == Some(false) && replica.runs.is_empty() {
                replica.retired = Some(true);
                commands.push(DispatcherCommand::Idle { replica: id });
            }
        }
        commands
    }

    /// Where the first request can start now, on the replica with the fewest runs, and how many go
    /// with it: its equals behind it, dealt evenly to the replicas that are idle.
    fn place(&self) -> Option<(ReplicaId, usize)> {
        let may_start = |waiting: &&Waiting| !self.withheld.contains(&waiting.request);
        let first = &self.queue.front().filter(may_start)?.need;
        let equal = |waiting: &&Waiting| {
            waiting.need == *first && first.shape.is_some() && may_start(waiting)
        };
        let alike = self.queue.iter().take_while(equal).count().max(1);
        let idle = self
            .replicas
            .values()
            .filter(|replica| replica.serves(first.mesh, &self.open) && replica.runs.is_empty());
        let share = alike.div_ceil(idle.count().max(1));
        let serving = self.replicas.iter().filter(|(_, r)| r.serves(first.mesh, &self.open));
        let open = serving.filter_map(|(&id, replica)| {
            let count = replica.takes(first, share);
            (count > 0).then_some((replica.runs.len(), id, count))
        });
        open.min().map(|(_, id, count)| (id, count))
    }

    fn tell_positions(&mut self) -> Vec<DispatcherCommand> {
        // A run that is being stopped still holds its place.
        let running: usize = self.runs().map(|run| run.requests.len().max(1)).sum();
        let mut commands = Vec::new();
        for (position, waiting) in self.queue.iter_mut().enumerate() {
            let ahead = (running + position) as u32;
            if waiting.ahead != Some(ahead) {
                waiting.ahead = Some(ahead);
                commands.push(DispatcherCommand::Queued { request: waiting.request, ahead });
            }
        }
        commands
    }
}
