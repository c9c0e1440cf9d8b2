//! One session with one peer: typed messages, heartbeats, and a loss that resolves everything.
//!
//! Owns the actor [`PeerSession`], one per peer and incarnation, with its reader and writer. Does
//! not own what a message means, nor who the members are.
//!
//! Invariants: a session always ends by failing with a [`SessionEnded`] that names its peer, so
//! that its supervisor hears of every loss in one place; nothing is delivered after that.

pub(crate) mod dial;
pub mod handle;
pub mod handshake;
mod pump;
#[cfg(test)]
mod tests;
pub(crate) mod uplink;
pub(crate) mod wire;

use std::fmt::{Debug, Display};
use std::marker::PhantomData;
use std::time::Duration;

use ditmesh_transport::control::ControlChannel;
pub(crate) use handle::{SessionEnds, SessionHandle};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::task::JoinHandle;
pub(crate) use wire::{CoordinatorSide, MemberSide, Side};

/// How a session ended: the one way its actor fails.
#[derive(Debug, thiserror::Error)]
#[error("session with {peer} ended: {reason}")]
pub(crate) struct SessionEnded<K: Debug + Display> {
    /// Who was at the other end.
    pub(crate) peer: K,
    /// Why it ended.
    pub(crate) reason: String,
}

/// Takes each message of the peer, with the blob that came with it.
pub(crate) type Deliver<M> = Box<dyn Fn(M, Option<Vec<u8>>) + Send + Sync>;

/// What a session is made of.
pub(crate) struct SessionArgs<S: Side, K> {
    /// Names the peer to the supervisor.
    pub(crate) peer: K,
    /// The channel, past the handshake.
    pub(crate) channel: ControlChannel,
    /// The other ends of the handle that the supervisor keeps.
    pub(crate) ends: SessionEnds<S::Out>,
    /// Takes what the peer says.
    pub(crate) deliver: Deliver<S::In>,
    /// Between heartbeats.
    pub(crate) heartbeat: Duration,
    /// Silence that ends the session; `None` leaves that to membership.
    pub(crate) silence_max: Option<Duration>,
}

/// Carries one session.
pub(crate) struct PeerSession<S, K>(PhantomData<fn() -> (S, K)>);

/// A reader or a writer is done.
#[derive(Debug)]
pub(crate) struct Ended(String);

/// A session at work.
pub(crate) struct State<K> {
    peer: Option<K>,
    tasks: [JoinHandle<()>; 2],
}

/// What names a peer.
pub(crate) trait PeerKey: Debug + Display + Send + Sync + 'static {}

impl<K: Debug + Display + Send + Sync + 'static> PeerKey for K {}

impl<S: Side, K: PeerKey> PeerSession<S, K> {
    /// Starts a session under `supervisor`.
    ///
    /// # Errors
    /// When the supervisor is ending.
    pub(crate) async fn start(
        args: SessionArgs<S, K>,
        supervisor: ActorCell,
    ) -> Result<(), SpawnErr> {
        Self::spawn_linked(None, Self(PhantomData), args, supervisor).await?;
        Ok(())
    }
}

impl<S: Side, K: PeerKey> Actor for PeerSession<S, K> {
    type Msg = Ended;
    type State = State<K>;
    type Arguments = SessionArgs<S, K>;

    async fn pre_start(
        &self,
        myself: ActorRef<Ended>,
        args: SessionArgs<S, K>,
    ) -> Result<State<K>, ActorProcessingErr> {
        let (sender, receiver) = args.channel.split();
        let (reader, writer) = (myself.clone(), myself);
        let reading = pump::read::<S>(receiver, args.deliver, args.silence_max);
        let writing = pump::write::<S>(sender, args.ends, args.heartbeat);
        // A session that has ended already needs no second reason.
        let tasks = [
            tokio::spawn(async move { drop(reader.cast(Ended(reading.await))) }),
            tokio::spawn(async move { drop(writer.cast(Ended(writing.await))) }),
        ];
        Ok(State { peer: Some(args.peer), tasks })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Ended>,
        Ended(reason): Ended,
        state: &mut State<K>,
    ) -> Result<(), ActorProcessingErr> {
        match state.peer.take() {
            Some(peer) => Err(SessionEnded { peer, reason }.into()),
            None => Ok(()),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Ended>,
        _event: SupervisionEvent,
        _state: &mut State<K>,
    ) -> Result<(), ActorProcessingErr> {
        // It supervises nobody.
        Ok(())
    }
}

impl<K> Drop for State<K> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
