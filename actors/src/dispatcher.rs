//! Which request runs next and where: a bounded queue in front of the replicas of one mesh.
//!
//! A pure engine: events and the time go in, commands come out. Owns the order of requests, which
//! of them run together and on which replica. Does not form meshes (it says which one it wants),
//! nor run anything. A replica that is to give way takes no new run and is named idle when its last
//! ends.
//!
//! Invariants: first come, first served: nobody is started before somebody who came earlier, also
//! when that one waits for another mesh; a replica has at most [`Room::runs_max`] runs at a time,
//! and a second one only where both fit its memory; requests become one run only when they follow
//! each other in the queue, so nobody waits for company; a request that goes on after its
//! replica was lost waits where it would be had it never run; a request that is withheld is not
//! started until it is released, nor is anybody behind it; nobody waits beyond a deadline of its
//! own; every request ends by exactly one last `Start` (then its run's own result), `Fail` or, when
//! it never came in, `Fail` at once.

mod event;
mod need;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use event::{DispatcherCommand, DispatcherEvent};
pub use need::{MeshNeed, Need, OpenMeshes, Room};

use crate::generation::GenerateError;
use crate::membership::Now;
use crate::request::Degrees;

/// Requests that may wait; one more is refused. Those that go on after a loss were let in before.
pub const QUEUE_REQUESTS_MAX: usize = 256;

/// How long the first request waits for a mesh before its caller is told why.
const TELL_AFTER: Duration = Duration::from_secs(3);

/// Names a request inside one coordinator; later ones have higher numbers.
pub type RequestId = u64;

/// Names a replica: the epoch of its mesh.
pub type ReplicaId = u64;

/// Numbers a run inside one coordinator.
pub type RunNumber = u64;

#[derive(Debug)]
struct Waiting {
    request: RequestId,
    need: Need,
    since: Now,
    /// Of its deadline, before that.
    waited: Duration,
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
    /// Of requests that wait or run.
    deadlines: BTreeMap<RequestId, Duration>,
    replicas: BTreeMap<ReplicaId, Replica>,
    last_run: RunNumber,
    open: OpenMeshes,
    /// What was last asked for, until there is an answer.
    asked: Option<MeshNeed>,
    absent: String,
    /// Since when nothing runs and the first request has no mesh.
    starved_since: Option<Now>,
    /// What was told last of that, and of which request.
    told: Option<(RequestId, String)>,
}

impl Dispatcher {
    /// Without replicas; a request waits at most `wait_max` for a mesh.
    pub fn new(wait_max: Duration) -> Self {
        Self {
            wait_max,
            queue: VecDeque::new(),
            withheld: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            replicas: BTreeMap::new(),
            last_run: 0,
            open: OpenMeshes::default(),
            asked: None,
            absent: "it is not formed yet".into(),
            starved_since: None,
            told: None,
        }
    }

    /// Takes one event at time `now`.
    pub fn handle(&mut self, now: Now, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let mut commands = match event {
            DispatcherEvent::Submitted { request, need, deadline, waited } => {
                let waiting = Waiting { request, need, since: now, waited, ahead: None };
                self.submit(waiting, deadline)
            }
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
                let ended = self.replicas.values_mut().filter_map(|r| r.runs.remove(&run));
                for request in ended.flat_map(|run| run.requests) {
                    self.deadlines.remove(&request);
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
            DispatcherEvent::FormFailed { mesh, error } => self.form_failed(mesh, &error),
            DispatcherEvent::MeshAbsent { cause } => {
                self.absent = cause;
                Vec::new()
            }
            DispatcherEvent::Tick => {
                let mut commands = self.expire(now);
                commands.extend(self.tell_starving(now));
                return commands;
            }
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

    fn submit(&mut self, waiting: Waiting, deadline: Option<Duration>) -> Vec<DispatcherCommand> {
        let request = waiting.request;
        if self.queue.len() >= QUEUE_REQUESTS_MAX {
            self.withheld.remove(&request);
            let error = GenerateError::Failed(format!(
                "{QUEUE_REQUESTS_MAX} requests are waiting already; try again later"
            ));
            return vec![DispatcherCommand::Fail { request, error }];
        }
        self.deadlines.extend(deadline.map(|deadline| (request, deadline)));
        self.queue.push_back(waiting);
        Vec::new()
    }

    fn cancel(&mut self, request: RequestId) -> Vec<DispatcherCommand> {
        self.withheld.remove(&request);
        self.deadlines.remove(&request);
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
                    let (since, waited, ahead) = (now, Duration::ZERO, None);
                    self.queue.insert(place, Waiting { request, need, since, waited, ahead });
                }
                None => {
                    self.deadlines.remove(&request);
                    commands.push(DispatcherCommand::Fail { request, error: error.clone() });
                }
            }
        }
        commands
    }

    /// A mesh will not form until the devices change: whoever has a deadline of its own waits for
    /// that.
    fn form_failed(&mut self, mesh: MeshNeed, error: &GenerateError) -> Vec<DispatcherCommand> {
        let wants = |waiting: &Waiting| waiting.need.mesh == mesh;
        let commands = self.fail_waiting(|waiting, deadline| {
            (wants(waiting) && deadline.is_none()).then(|| error.clone())
        });
        let awaited = self.queue.iter().any(wants);
        self.asked = awaited.then_some(mesh);
        if awaited {
            self.absent = error.to_string();
        }
        commands
    }

    /// Tells the caller of the first request, once it has waited for a while, what keeps it from a
    /// mesh, and again when that is something else.
    fn tell_starving(&mut self, now: Now) -> Vec<DispatcherCommand> {
        let waits = self.starved_since.is_some_and(|since| now.saturating_sub(since) >= TELL_AFTER);
        let Some(first) = self.queue.front().filter(|_| waits) else { return Vec::new() };
        let cause = format!("it waits for a mesh for {}: {}", first.need.mesh, self.absent);
        let (request, telling) = (first.request, Some((first.request, cause.clone())));
        if self.told == telling {
            return Vec::new();
        }
        self.told = telling;
        vec![DispatcherCommand::Waits { request, cause }]
    }

    /// Fails requests that have waited beyond their deadlines, and those without one for whose mesh
    /// the first one has waited long enough, those behind it that want the same included once they
    /// have waited as long.
    fn expire(&mut self, now: Now) -> Vec<DispatcherCommand> {
        let (wanted, starved_since, wait_max) = (self.wanted(), self.starved_since, self.wait_max);
        let late = |waiting: &Waiting, deadline: Option<Duration>| match (deadline, starved_since) {
            (Some(deadline), _) => waiting.waited + now.saturating_sub(waiting.since) >= deadline,
            (None, Some(starved)) => {
                let waited = now.saturating_sub(waiting.since.max(starved));
                Some(waiting.need.mesh) == wanted && waited >= wait_max
            }
            (None, None) => false,
        };
        let deadline = |waiting: &Waiting| self.deadlines.get(&waiting.request).copied();
        if !self.queue.iter().any(|waiting| late(waiting, deadline(waiting))) {
            return Vec::new();
        }
        let whys: BTreeMap<RequestId, String> = self.queue().into_iter().collect();
        let mut commands = self.fail_waiting(|waiting, deadline| {
            late(waiting, deadline).then(|| {
                let seconds = deadline.unwrap_or(wait_max).as_secs();
                let why = whys.get(&waiting.request).map_or("its turn", String::as_str);
                GenerateError::Expired(format!("it waited {seconds} s for {why}"))
            })
        });
        self.starved_since = None;
        commands.extend(self.dispatch());
        commands.extend(self.tell_positions());
        self.notice_starving(now);
        commands
    }

    /// Ends the waiting requests that `doomed` has an error for, given their own deadlines.
    fn fail_waiting(
        &mut self,
        doomed: impl Fn(&Waiting, Option<Duration>) -> Option<GenerateError>,
    ) -> Vec<DispatcherCommand> {
        let mut commands = Vec::new();
        self.queue.retain(|waiting| {
            let request = waiting.request;
            let Some(error) = doomed(waiting, self.deadlines.get(&request).copied()) else {
                return true;
            };
            self.withheld.remove(&request);
            self.deadlines.remove(&request);
            commands.push(DispatcherCommand::Fail { request, error });
            false
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
