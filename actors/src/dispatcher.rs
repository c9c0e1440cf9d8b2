//! Which request runs next and where: a bounded queue in front of the replicas of one mesh.
//!
//! A pure engine: events and the time go in, commands come out. Owns the order of requests and
//! who of them runs on which replica. Does not form meshes (it says which one it wants), nor run
//! anything.
//!
//! Invariants: first come, first served, also when the first one waits for another mesh; at most
//! one request per replica; every request ends by exactly one `Start` (then its run's own result),
//! `Fail` or, when it never came in, `Fail` at once.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::generation::GenerateError;
use crate::membership::Now;
use crate::request::Degrees;

/// Requests that may wait; one more is refused.
pub const QUEUE_REQUESTS_MAX: usize = 256;

/// Names a request inside one coordinator.
pub type RequestId = u64;

/// Names a replica: the epoch of its mesh.
pub type ReplicaId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum DispatcherEvent {
    /// A caller wants a picture from a mesh of these degrees.
    Submitted {
        /// Its request.
        request: RequestId,
        /// Degrees it needs.
        degrees: Degrees,
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
    },
    /// A replica's run has ended on all its ranks.
    ReplicaIdle {
        /// Which.
        replica: ReplicaId,
    },
    /// A replica is gone; the request it ran fails with this.
    ReplicaLost {
        /// Which.
        replica: ReplicaId,
        /// Result of its request.
        error: GenerateError,
    },
    /// A mesh of these degrees could not be formed.
    FormFailed {
        /// Which degrees.
        degrees: Degrees,
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
    /// Run a request.
    Start {
        /// Which.
        request: RequestId,
        /// Where.
        replica: ReplicaId,
    },
    /// Stop the run of a request that was cancelled.
    Abort {
        /// Which.
        request: RequestId,
        /// Where.
        replica: ReplicaId,
    },
    /// Form a mesh of these degrees; the present one is idle.
    Want {
        /// Which degrees.
        degrees: Degrees,
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
    degrees: Degrees,
    since: Now,
    ahead: Option<u32>,
}

#[derive(Debug)]
struct Replica {
    degrees: Degrees,
    running: Option<RequestId>,
    busy: bool,
}

/// The engine.
#[derive(Debug)]
pub struct Dispatcher {
    wait_max: Duration,
    queue: VecDeque<Waiting>,
    replicas: BTreeMap<ReplicaId, Replica>,
    /// What was last asked for, until there is an answer.
    asked: Option<Degrees>,
    absent: String,
    absent_since: Now,
}

impl Dispatcher {
    /// Without replicas; a request waits at most `wait_max` for a mesh.
    pub fn new(wait_max: Duration) -> Self {
        Self {
            wait_max,
            queue: VecDeque::new(),
            replicas: BTreeMap::new(),
            asked: None,
            absent: "it is not formed yet".into(),
            absent_since: Now::ZERO,
        }
    }

    /// Takes one event at time `now`.
    pub fn handle(&mut self, now: Now, event: DispatcherEvent) -> Vec<DispatcherCommand> {
        let mut commands = match event {
            DispatcherEvent::Submitted { request, degrees } => self.submit(now, request, degrees),
            DispatcherEvent::Cancelled { request } => self.cancel(request),
            DispatcherEvent::ReplicaReady { replica, degrees } => {
                self.asked = None;
                self.replicas.insert(replica, Replica { degrees, running: None, busy: false });
                Vec::new()
            }
            DispatcherEvent::ReplicaIdle { replica } => {
                if let Some(replica) = self.replicas.get_mut(&replica) {
                    replica.busy = false;
                    replica.running = None;
                }
                Vec::new()
            }
            DispatcherEvent::ReplicaLost { replica, error } => self.lose(now, replica, error),
            DispatcherEvent::FormFailed { degrees, error } => {
                self.asked = None;
                self.fail_waiting(error, |waiting| waiting.degrees == degrees)
            }
            DispatcherEvent::MeshAbsent { cause } => {
                self.absent = cause;
                Vec::new()
            }
            DispatcherEvent::Tick => return self.expire(now),
        };
        commands.extend(self.dispatch());
        commands.extend(self.tell_positions());
        commands
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests running.
    pub fn running(&self) -> usize {
        self.replicas.values().filter(|replica| replica.running.is_some()).count()
    }

    /// Degrees that the first request waits for.
    pub fn wanted(&self) -> Option<Degrees> {
        self.queue.front().map(|waiting| waiting.degrees)
    }

    fn submit(&mut self, now: Now, request: RequestId, degrees: Degrees) -> Vec<DispatcherCommand> {
        if self.queue.len() >= QUEUE_REQUESTS_MAX {
            let error = GenerateError::Failed(format!(
                "{QUEUE_REQUESTS_MAX} requests are waiting already; try again later"
            ));
            return vec![DispatcherCommand::Fail { request, error }];
        }
        self.queue.push_back(Waiting { request, degrees, since: now, ahead: None });
        Vec::new()
    }

    fn cancel(&mut self, request: RequestId) -> Vec<DispatcherCommand> {
        if let Some(position) = self.queue.iter().position(|waiting| waiting.request == request) {
            self.queue.remove(position);
            return vec![DispatcherCommand::Fail { request, error: GenerateError::Cancelled }];
        }
        for (&id, replica) in &mut self.replicas {
            if replica.running == Some(request) {
                replica.running = None;
                return vec![
                    DispatcherCommand::Abort { request, replica: id },
                    DispatcherCommand::Fail { request, error: GenerateError::Cancelled },
                ];
            }
        }
        Vec::new()
    }

    fn lose(
        &mut self,
        now: Now,
        replica: ReplicaId,
        error: GenerateError,
    ) -> Vec<DispatcherCommand> {
        let Some(lost) = self.replicas.remove(&replica) else { return Vec::new() };
        self.absent_since = now;
        self.asked = None;
        match lost.running {
            Some(request) => vec![DispatcherCommand::Fail { request, error }],
            None => Vec::new(),
        }
    }

    fn expire(&mut self, now: Now) -> Vec<DispatcherCommand> {
        if !self.replicas.is_empty() {
            return Vec::new();
        }
        let error = GenerateError::Lost(format!(
            "no mesh for {} s: {}",
            self.wait_max.as_secs(),
            self.absent
        ));
        let (absent_since, wait_max) = (self.absent_since, self.wait_max);
        self.fail_waiting(error, |waiting| {
            now.saturating_sub(waiting.since.max(absent_since)) >= wait_max
        })
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
                commands.push(DispatcherCommand::Fail { request, error });
            }
            !fails
        });
        commands
    }

    /// Starts requests on free replicas; asks for another mesh when the first one needs it and
    /// nothing runs.
    fn dispatch(&mut self) -> Vec<DispatcherCommand> {
        let mut commands = Vec::new();
        while let Some(first) = self.queue.front() {
            let free = self
                .replicas
                .iter_mut()
                .find(|(_, replica)| !replica.busy && replica.degrees == first.degrees);
            let Some((&id, replica)) = free else { break };
            replica.busy = true;
            replica.running = Some(first.request);
            commands.push(DispatcherCommand::Start { request: first.request, replica: id });
            self.queue.pop_front();
        }
        if let Some(first) = self.queue.front() {
            let fits = self.replicas.values().any(|replica| replica.degrees == first.degrees);
            let idle = self.replicas.values().all(|replica| !replica.busy);
            if !fits && idle && self.asked != Some(first.degrees) {
                self.asked = Some(first.degrees);
                commands.push(DispatcherCommand::Want { degrees: first.degrees });
            }
        }
        commands
    }

    fn tell_positions(&mut self) -> Vec<DispatcherCommand> {
        let running = self.replicas.values().filter(|replica| replica.busy).count();
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
