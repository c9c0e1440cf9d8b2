//! Members and their sessions: from arrival to loss.
//!
//! Owns the table of sessions and carries membership's commands out. Does not judge anybody.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use ditmesh_transport::control::ControlChannel;
use ractor::ActorRef;

use super::formation::FormationEvent;
use super::{CoordinatorMsg, State};
use crate::groups::RankMsg;
use crate::membership::{Incarnation, Loss, Member, MembershipCommand, MembershipEvent};
use crate::protocol::{DeviceId, FromCoordinator, Hello, PROTOCOL_MAX, Party, ToCoordinator};
use crate::session::{
    CoordinatorSide, PeerSession, SessionArgs, SessionEnded, SessionHandle, handshake,
};

/// Longest time to tell a peer that it is refused.
const REFUSE_DEADLINE: Duration = Duration::from_secs(2);

/// Who is at the other end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Member(Member, Incarnation),
    Client(u64),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member, _) => member.fmt(f),
            Self::Client(number) => write!(f, "client {number}"),
        }
    }
}

/// A member's session.
pub(super) struct MemberSession {
    incarnation: Incarnation,
    pub(super) handle: SessionHandle<FromCoordinator>,
    /// Process id.
    pub(super) process: u32,
    /// Newest epoch a worker had been in when it came.
    epoch: u64,
    /// Callers that it says it turned away.
    pub(super) callers_refused: u64,
}

/// The sessions of members.
#[derive(Default)]
pub(super) struct Sessions {
    members: BTreeMap<Member, MemberSession>,
}

impl Sessions {
    pub(super) fn get(&self, member: &Member) -> Option<&MemberSession> {
        self.members.get(member)
    }

    fn is_current(&self, member: &Member, incarnation: Incarnation) -> bool {
        self.members.get(member).is_some_and(|session| session.incarnation == incarnation)
    }

    /// A member says how many callers it has turned away.
    fn note_refused(&mut self, member: &Member, total: u64) {
        if let Some(session) = self.members.get_mut(member) {
            session.callers_refused = total;
        }
    }

    fn close(&mut self, member: &Member, incarnation: Incarnation, reason: &str) {
        if self.is_current(member, incarnation)
            && let Some(session) = self.members.remove(member)
        {
            session.handle.close(reason);
        }
    }

    /// Tells every member to end.
    pub(super) fn shut_down(&self) {
        for session in self.members.values() {
            session.handle.send(FromCoordinator::Shutdown);
        }
    }

    pub(super) fn close_all(&mut self, reason: &str) {
        for session in std::mem::take(&mut self.members).into_values() {
            session.handle.close(reason);
        }
    }
}

impl State {
    /// Somebody passed the handshake.
    pub(super) async fn arrived(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        hello: Hello,
        channel: ControlChannel,
    ) {
        let member = match hello.party.clone() {
            Party::Agent { node } => Member::Agent(node),
            Party::Worker { device } => Member::Worker(device),
            Party::Client => return self.client_arrived(myself, channel).await,
        };
        let incarnation = Incarnation(hello.incarnation);
        let mut commands = self.membership.handle(
            self.now(),
            MembershipEvent::Joined {
                member: member.clone(),
                incarnation,
                address: hello.fabric_address.clone(),
            },
        );
        let verdict = commands.iter().position(|command| {
            matches!(command, MembershipCommand::Accept(..) | MembershipCommand::Refuse(..))
        });
        // What comes before the verdict ends an older life of the same member.
        let after = commands.split_off(verdict.map_or(commands.len(), |at| at + 1));
        let verdict = if verdict.is_some() { commands.pop() } else { None };
        self.carry_out(myself, commands).await;
        match verdict {
            Some(MembershipCommand::Accept(..)) => {
                self.welcome(myself, member, incarnation, &hello, channel).await;
            }
            Some(MembershipCommand::Refuse(_, _, refusal)) => {
                tracing::warn!(%member, %refusal, "member refused");
                self.callers_refused += 1;
                tokio::spawn(async move {
                    let deadline = Instant::now() + REFUSE_DEADLINE;
                    handshake::refuse(&channel, &refusal.to_string(), deadline).await;
                });
            }
            _ => {}
        }
        self.carry_out(myself, after).await;
    }

    async fn welcome(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        member: Member,
        incarnation: Incarnation,
        hello: &Hello,
        channel: ControlChannel,
    ) {
        tracing::info!(%member, %incarnation, process = hello.process, "member joined");
        self.memory.note_member(&member, incarnation);
        let peer = Peer::Member(member.clone(), incarnation);
        let Some(handle) = self.open_session(myself, peer, channel).await else { return };
        let (process, epoch, callers_refused) = (hello.process, hello.epoch, 0);
        let session = MemberSession { incarnation, handle, process, epoch, callers_refused };
        self.sessions.members.insert(member, session);
    }

    /// Starts the session of a welcome peer.
    pub(super) async fn open_session(
        &self,
        myself: &ActorRef<CoordinatorMsg>,
        peer: Peer,
        channel: ControlChannel,
    ) -> Option<SessionHandle<FromCoordinator>> {
        let (handle, ends) = SessionHandle::new();
        let health = &self.manifest.health;
        handle.send(FromCoordinator::Welcome {
            protocol: PROTOCOL_MAX,
            heartbeat_ms: health.heartbeat_ms,
            dead_ms: health.dead_ms,
        });
        let (from, coordinator) = (peer.clone(), myself.clone());
        let args = SessionArgs::<CoordinatorSide, Peer> {
            peer,
            channel,
            ends,
            deliver: Box::new(move |message, blob| {
                let said = CoordinatorMsg::Said(from.clone(), Box::new(message), blob);
                // A coordinator that has ended hears nothing more.
                let _ = coordinator.cast(said);
            }),
            heartbeat: Duration::from_millis(health.heartbeat_ms.into()),
            silence_max: None,
        };
        match PeerSession::start(args, myself.get_cell()).await {
            Ok(()) => Some(handle),
            Err(error) => {
                tracing::error!(%error, "cannot start a session");
                None
            }
        }
    }

    /// A session delivered a message.
    pub(super) async fn said(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        peer: Peer,
        message: ToCoordinator,
        blob: Option<Vec<u8>>,
    ) {
        let (member, incarnation) = match peer {
            Peer::Client(client) => {
                return self.client_says(myself, client, message, blob).await;
            }
            Peer::Member(member, incarnation) => (member, incarnation),
        };
        if !self.sessions.is_current(&member, incarnation) {
            return;
        }
        let heard = MembershipEvent::Heard { member: member.clone(), incarnation };
        self.member(myself, heard).await;
        match (message, member) {
            (ToCoordinator::Heartbeat { .. }, _) => {}
            (ToCoordinator::WorkerExited { device, incarnation, status }, Member::Agent(node))
                if device.node == node =>
            {
                tracing::warn!(%device, %status, "worker ended");
                let incarnation = Incarnation(incarnation);
                let exited = MembershipEvent::WorkerExited { device, incarnation, status };
                self.member(myself, exited).await;
            }
            (ToCoordinator::Leave { drain_ms }, Member::Agent(node)) => {
                let drain = Duration::from_millis(drain_ms.into());
                if let Err(cause) = self.leave(myself, node, drain).await {
                    tracing::warn!(cause, "a node cannot leave");
                }
            }
            (ToCoordinator::LinksObserved { epoch, links }, Member::Worker(device)) => {
                self.observe_links(&device, epoch, &links);
            }
            (ToCoordinator::LinkMeasuredAgain { number, figures }, Member::Worker(_)) => {
                self.measured_again(number, figures);
            }
            (ToCoordinator::CallersRefused(total), member @ Member::Worker(_)) => {
                self.sessions.note_refused(&member, total);
            }
            (ToCoordinator::Examined(examination), Member::Agent(node)) => {
                self.examined(&node, *examination);
            }
            (
                message @ (ToCoordinator::CopiesHeld(_)
                | ToCoordinator::CopyTaken { .. }
                | ToCoordinator::CopyPart(_)),
                Member::Agent(node),
            ) => self.about_copies(myself, &node, message).await,
            (message, Member::Worker(device)) => self.worker_says(device, message),
            (message, member) => tracing::warn!(%member, ?message, "unexpected message"),
        }
    }

    /// Hands a worker's report to its place in the mesh that the report is about.
    fn worker_says(&mut self, device: DeviceId, message: ToCoordinator) {
        let epoch = match &message {
            ToCoordinator::Formed { epoch, .. } | ToCoordinator::FormFailed { epoch, .. } => {
                Some(*epoch)
            }
            ToCoordinator::Proposed { run, .. }
            | ToCoordinator::Progress { run, .. }
            | ToCoordinator::RunEnded { run, .. } => self.runs.get(run).map(|run| run.replica),
            _ => None,
        };
        if let ToCoordinator::RunEnded { run, rank, .. } = &message
            && let Some(run) = self.runs.get_mut(run)
        {
            run.rank_ended(*rank);
        }
        if let Some(proxy) = epoch.and_then(|epoch| self.proxies.get(&(device, epoch))) {
            // A proxy that has failed hears nothing more.
            let _ = proxy.cast(RankMsg::Worker(message));
        }
    }

    pub(super) async fn session_ended(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        ended: SessionEnded<Peer>,
    ) {
        match ended.peer {
            Peer::Client(client) => self.client_gone(client),
            Peer::Member(member, incarnation) => {
                tracing::info!(%member, %incarnation, reason = ended.reason, "session ended");
                if self.sessions.is_current(&member, incarnation) {
                    self.sessions.members.remove(&member);
                    if let Member::Agent(node) = &member {
                        self.not_examined(node);
                    }
                }
                let reason = ended.reason;
                let closed = MembershipEvent::SessionClosed { member, incarnation, reason };
                self.member(myself, closed).await;
            }
        }
    }

    /// Takes an event to membership and carries out what it says.
    pub(super) async fn member(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        event: MembershipEvent,
    ) {
        let commands = self.membership.handle(self.now(), event);
        self.carry_out(myself, commands).await;
    }

    async fn carry_out(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        commands: Vec<MembershipCommand>,
    ) {
        for command in commands {
            match command {
                MembershipCommand::Accept(..) | MembershipCommand::Refuse(..) => {}
                MembershipCommand::CloseSession(member, incarnation, loss) => {
                    self.sessions.close(&member, incarnation, &loss.to_string());
                }
                MembershipCommand::Suspect(member, silent) => {
                    tracing::warn!(%member, ?silent, "member is suspect");
                }
                MembershipCommand::Recovered(member) => {
                    tracing::info!(%member, "member was heard again");
                }
                MembershipCommand::NodeReady(node) => tracing::info!(node, "node is there"),
                MembershipCommand::NodeLost(node, cause) => {
                    tracing::warn!(node, %cause, "node lost");
                    self.node_gone(&node);
                    self.holder_gone(myself, &node).await;
                }
                MembershipCommand::DeviceLeaving(device) => {
                    self.device_leaving(myself, device).await;
                }
                MembershipCommand::Release(node) => self.release(&node),
                MembershipCommand::Quarantined(member, length) => {
                    tracing::warn!(%member, ?length, "it dies too often and is not counted on");
                }
                MembershipCommand::CutsChanged => {
                    tracing::warn!(cuts = ?self.membership.cuts(), "links between workers");
                    self.form(myself, FormationEvent::CutsChanged).await;
                }
                MembershipCommand::DeviceReady(device) => self.device_ready(myself, device).await,
                MembershipCommand::DeviceLost(device, loss) => {
                    tracing::warn!(%device, cause = %loss, "device lost");
                    self.recycle(&device, &loss);
                    self.form(myself, FormationEvent::DeviceLost(device.clone())).await;
                    self.proxies.retain(|(seated, _), proxy| {
                        let is_its = *seated == device;
                        if is_its {
                            // A proxy that has failed already has taken its mesh along.
                            let _ = proxy.cast(RankMsg::Lost(loss.clone()));
                        }
                        !is_its
                    });
                }
            }
        }
    }

    /// A worker that is silent while its agent is not, or hangs, will not come back by itself.
    fn recycle(&self, device: &DeviceId, loss: &Loss) {
        let agent = self.sessions.get(&Member::Agent(device.node.clone()));
        if let (Loss::Silent { .. } | Loss::Hung { .. }, Some(agent)) = (loss, agent) {
            let life = self.membership.incarnation(&Member::Worker(device.clone()));
            let (device, incarnation) = (device.clone(), life.0);
            agent.handle.send(FromCoordinator::Recycle { device, incarnation });
        }
    }

    /// Newest epoch a worker had been in when it came.
    pub(super) fn last_epoch(&self, device: &DeviceId) -> u64 {
        self.sessions.get(&Member::Worker(device.clone())).map_or(0, |session| session.epoch)
    }
}
