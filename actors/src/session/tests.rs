//! Sessions over a channel inside this process.

use std::time::{Duration, Instant};

use ditmesh_transport::control::ControlChannel;
use ditmesh_transport::identity::{PeerIdentity, Role};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::protocol::{ClientCall, FromCoordinator, Party, RequestKey, ToCoordinator};
use crate::request::GenerateRequest;

const PATIENCE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_millis(20);

/// Supervises a session and tells how it ended.
struct Owner;

impl Actor for Owner {
    type Msg = ();
    type State = mpsc::Sender<String>;
    type Arguments = (SessionArgs<CoordinatorSide, String>, mpsc::Sender<String>);

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        (args, told): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        PeerSession::start(args, myself.get_cell()).await?;
        Ok(told)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        told: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            let ended = error.downcast::<SessionEnded<String>>()?;
            told.send(format!("{}: {}", ended.peer, ended.reason)).await?;
        }
        Ok(())
    }
}

struct Fixture {
    far: ControlChannel,
    handle: SessionHandle<FromCoordinator>,
    heard: mpsc::UnboundedReceiver<ToCoordinator>,
    ended: mpsc::Receiver<String>,
}

async fn session(silence_max: Option<Duration>) -> Fixture {
    let (near, far) = ControlChannel::pair(16);
    let (handle, ends) = SessionHandle::new();
    let (deliver, heard) = mpsc::unbounded_channel();
    let args = SessionArgs {
        peer: "device a/0".to_string(),
        channel: near,
        ends,
        deliver: Box::new(move |message, _| drop(deliver.send(message))),
        heartbeat: HEARTBEAT,
        silence_max,
    };
    let (told, ended) = mpsc::channel(1);
    Owner::spawn(None, Owner, (args, told)).await.expect("an owner");
    Fixture { far, handle, heard, ended }
}

async fn end_of(fixture: &mut Fixture) -> String {
    timeout(PATIENCE, fixture.ended.recv()).await.expect("in time").expect("it ended")
}

#[tokio::test]
async fn messages_are_delivered_and_heartbeats_flow_both_ways() {
    let mut fixture = session(None).await;
    let told = ToCoordinator::Leave { drain_ms: 7 };
    let deadline = Instant::now() + PATIENCE;
    fixture.far.send(told.to_bytes().expect("bytes"), deadline).await.expect("sent");
    let heard = timeout(PATIENCE, fixture.heard.recv()).await.expect("in time");
    assert_eq!(heard, Some(told));
    fixture.far.beat(7);
    let heard = timeout(PATIENCE, fixture.heard.recv()).await.expect("in time");
    assert_eq!(heard, Some(ToCoordinator::Heartbeat { sequence: 7 }));
    let mut beats = fixture.far.beats();
    let first = timeout(PATIENCE, beats.next()).await.expect("in time");
    let second = timeout(PATIENCE, beats.next()).await.expect("in time");
    assert!(second > first, "{second} after {first}");
}

/// The peer takes no message, and so nothing more can be said, but signs of life come and go.
#[tokio::test]
async fn heartbeats_flow_while_messages_and_blobs_are_stuck() {
    let silence_max = Duration::from_millis(500);
    let mut fixture = session(Some(silence_max)).await;
    for _ in 0..100 {
        fixture.handle.send(FromCoordinator::Shutdown);
    }
    let call = ClientCall::Generate {
        key: RequestKey { client: 1, number: 1 },
        request: Box::new(GenerateRequest::new("x")),
        inputs_follow: true,
    };
    let announced = ToCoordinator::Client { id: 1, call: Box::new(call) };
    let deadline = Instant::now() + PATIENCE;
    fixture.far.send(announced.to_bytes().expect("bytes"), deadline).await.expect("sent");
    // The blob that was announced does not come for longer than silence may last.
    let mut beats = fixture.far.beats();
    let begun = Instant::now();
    let mut sequence = 0;
    while begun.elapsed() < 2 * silence_max {
        sequence += 1;
        fixture.far.beat(sequence);
        timeout(silence_max, beats.next()).await.expect("a heartbeat");
    }
    assert_eq!(fixture.ended.try_recv().ok(), None);
    let heard = timeout(PATIENCE, fixture.heard.recv()).await.expect("in time");
    assert!(matches!(heard, Some(ToCoordinator::Heartbeat { .. })), "{heard:?}");
    assert_eq!(end_of(&mut fixture).await, "device a/0: silent for 500 ms");
}

#[tokio::test]
async fn a_peer_that_closes_is_a_loss_that_names_it_and_its_reason() {
    let mut fixture = session(None).await;
    fixture.far.close("going home");
    assert_eq!(end_of(&mut fixture).await, "device a/0: going home");
}

#[tokio::test]
async fn a_silent_peer_is_a_loss() {
    let mut fixture = session(Some(Duration::from_millis(50))).await;
    assert_eq!(end_of(&mut fixture).await, "device a/0: silent for 50 ms");
}

#[tokio::test]
async fn nonsense_is_a_loss() {
    let mut fixture = session(None).await;
    let deadline = Instant::now() + PATIENCE;
    fixture.far.send(vec![0xff; 40], deadline).await.expect("sent");
    assert!(end_of(&mut fixture).await.contains("malformed control message of 40 bytes"));
}

#[tokio::test]
async fn what_was_queued_leaves_before_the_session_closes() {
    let mut fixture = session(None).await;
    fixture.handle.send(FromCoordinator::Shutdown);
    fixture.handle.close("done");
    let mut last = None;
    while let Ok(Some(bytes)) = timeout(PATIENCE, fixture.far.recv()).await.expect("in time") {
        last = Some(FromCoordinator::from_bytes(&bytes).expect("readable"));
    }
    assert_eq!(last, Some(FromCoordinator::Shutdown));
    assert_eq!(end_of(&mut fixture).await, "device a/0: done");
}

fn node(name: &str) -> PeerIdentity {
    PeerIdentity { role: Role::Node, name: name.into(), cluster: "demo".into() }
}

#[tokio::test]
async fn a_handshake_is_welcomed_or_refused_with_the_reason() {
    for (claimed, allowed) in [("b", true), ("c", false)] {
        let (mut near, mut far) = ControlChannel::pair_between(16, node("b"), node("a"));
        let deadline = Instant::now() + PATIENCE;
        let hello = handshake::hello("demo", Party::Agent { node: claimed.into() }, 1);
        let door = async {
            let hello = handshake::hear_hello(&mut far, "demo", deadline).await?;
            let welcome =
                FromCoordinator::Welcome { protocol: 1, heartbeat_ms: 200, dead_ms: 1500 };
            far.send(welcome.to_bytes().expect("bytes"), deadline).await.expect("sent");
            Ok::<_, handshake::HandshakeError>(hello)
        };
        let (welcome, heard) = tokio::join!(handshake::introduce(&mut near, hello, deadline), door);
        assert_eq!(heard.is_ok(), allowed);
        match welcome {
            Ok(welcome) => assert_eq!((allowed, welcome.dead_ms), (true, 1500)),
            Err(error) => {
                assert!(!allowed);
                let text = error.to_string();
                assert!(text.contains("node b") && text.contains("node c"), "{text}");
            }
        }
    }
}
