//! The control channel, over QUIC and within one process.

use std::time::{Duration, Instant};

use ditmesh_transport::control::{
    Beats, CONTROL_MESSAGE_BYTES_MAX, CONTROL_QUEUE_MESSAGES_MAX, ControlHoldings,
};
use ditmesh_transport::{
    ClusterCa, ControlChannel, ControlConfig, ControlEndpoint, Role, TransportError,
};

use crate::support::{CLUSTER, Relay, block_on, identity, loopback, soon};

fn endpoint(role: Role, name: &str) -> ControlEndpoint {
    let mut config = ControlConfig::new(identity(role, name), loopback());
    config.idle_timeout = Duration::from_secs(20);
    ControlEndpoint::bind(&config).unwrap()
}

struct Pair {
    client: ControlChannel,
    server: ControlChannel,
    _endpoints: Option<(ControlEndpoint, ControlEndpoint)>,
}

async fn over_quic() -> Pair {
    let (client, server) = (endpoint(Role::Client, "me"), endpoint(Role::Node, "n1"));
    let expected = identity(Role::Node, "n1").subject().clone();
    let (here, there) =
        tokio::join!(client.connect(server.local_address(), &expected, soon()), server.accept());
    Pair { client: here.unwrap(), server: there.unwrap(), _endpoints: Some((client, server)) }
}

async fn both() -> [Pair; 2] {
    let (client, server) = ControlChannel::pair(8);
    [over_quic().await, Pair { client, server, _endpoints: None }]
}

#[test]
fn messages_arrive_in_order_both_ways() {
    block_on(async {
        for mut pair in both().await {
            let (sender, mut receiver) = pair.client.split();
            let echo = async move {
                while let Some(message) = pair.server.recv().await.unwrap() {
                    pair.server.send(message, soon()).await.unwrap();
                }
            };
            let ask = async move {
                for number in 0..200_u32 {
                    let body = vec![number as u8; number as usize * 97 % 5000];
                    sender.send(body, soon()).await.unwrap();
                }
            };
            let listen = async move {
                for number in 0..200_u32 {
                    let body = receiver.recv().await.unwrap().unwrap();
                    assert_eq!(body, vec![number as u8; number as usize * 97 % 5000]);
                }
            };
            tokio::join!(echo, async { tokio::join!(ask, listen) });
        }
    });
}

#[test]
fn both_ends_know_the_other() {
    block_on(async {
        let pair = over_quic().await;
        assert_eq!(pair.client.peer().to_string(), format!("node n1 of cluster {CLUSTER}"));
        assert_eq!(pair.server.peer().to_string(), format!("client me of cluster {CLUSTER}"));
    });
}

#[test]
fn a_message_above_the_bound_is_refused_and_one_at_the_bound_passes() {
    block_on(async {
        for mut pair in both().await {
            let large = pair.client.send(vec![0; CONTROL_MESSAGE_BYTES_MAX + 1], soon()).await;
            assert!(matches!(large, Err(TransportError::FrameTooLarge { .. })), "{large:?}");
            pair.client.send(vec![7; CONTROL_MESSAGE_BYTES_MAX], soon()).await.unwrap();
            let received = pair.server.recv().await.unwrap().unwrap();
            assert_eq!(received.len(), CONTROL_MESSAGE_BYTES_MAX);
        }
    });
}

#[test]
fn the_last_messages_before_a_drop_arrive_and_then_the_end() {
    block_on(async {
        for mut pair in both().await {
            for number in 0..5 {
                pair.client.send(vec![number; 1000], soon()).await.unwrap();
            }
            drop(pair.client);
            for number in 0..5 {
                assert_eq!(pair.server.recv().await.unwrap().unwrap(), vec![number; 1000]);
            }
            assert!(pair.server.recv().await.unwrap().is_none());
        }
    });
}

#[test]
fn a_closed_channel_ends_both_halves_of_both_ends() {
    block_on(async {
        for mut pair in both().await {
            pair.client.send(b"last".to_vec(), soon()).await.unwrap();
            pair.client.close("done with it");
            assert_eq!(pair.server.recv().await.unwrap().unwrap(), b"last");
            assert!(pair.server.recv().await.unwrap().is_none());
            assert!(pair.client.recv().await.unwrap().is_none());
            let refused = pair.client.send(vec![1], soon()).await;
            assert!(matches!(refused, Err(TransportError::SessionLost { .. })), "{refused:?}");
            let (sender, mut receiver) = pair.server.split();
            assert!(receiver.recv().await.unwrap().is_none());
            while sender.closed().is_none() {
                tokio::task::yield_now().await;
            }
            assert!(sender.closed().unwrap().contains("done with it"), "{:?}", sender.closed());
            assert!(sender.send(vec![1], soon()).await.is_err());
        }
    });
}

#[test]
fn a_full_queue_waits_until_the_deadline() {
    block_on(async {
        let (client, mut server) = ControlChannel::pair(1);
        client.send(vec![1], soon()).await.unwrap();
        let expired = client.send(vec![2], Instant::now() + Duration::from_millis(5)).await;
        assert!(matches!(expired, Err(TransportError::Deadline { .. })), "{expired:?}");
        let (sender, _receiver) = client.split();
        let full = sender.try_send(vec![2]);
        assert!(matches!(full, Err(TransportError::TooMany { .. })), "{full:?}");
        assert_eq!(server.recv().await.unwrap().unwrap(), vec![1]);
        sender.try_send(vec![3]).unwrap();
        assert_eq!(server.recv().await.unwrap().unwrap(), vec![3]);
    });
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    block_on(async {
        let pair = over_quic().await;
        let patience = Duration::from_millis(150);
        let mut sent = 0;
        let blocked = loop {
            let message = vec![0; CONTROL_MESSAGE_BYTES_MAX];
            match pair.client.send(message, Instant::now() + patience).await {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 1000);
        };
        assert!(matches!(blocked, TransportError::Deadline { .. }), "{blocked}");
        // Both queues, and what the two stacks hold in between.
        assert!(sent <= 2 * CONTROL_QUEUE_MESSAGES_MAX + 16, "{sent}");
    });
}

/// The longest time between two heartbeats that came while `busy` ran.
async fn longest_pause(mut beats: Beats, busy: impl Future<Output = ()>) -> (Duration, u32) {
    let (mut last, mut longest, mut count) = (Instant::now(), Duration::ZERO, 0);
    let hearing = async {
        loop {
            beats.next().await;
            longest = longest.max(last.elapsed());
            (last, count) = (Instant::now(), count + 1);
        }
    };
    tokio::select! {
        () = hearing => {}
        () = busy => {}
    }
    (longest.max(last.elapsed()), count)
}

const BEAT_EVERY: Duration = Duration::from_millis(20);

async fn beat_all_the_time(channel: &ControlChannel) {
    for sequence in 1.. {
        channel.beat(sequence);
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// A message of 1 MiB takes four seconds over this link: with heartbeats behind it the peer would
/// be taken for dead.
#[test]
fn heartbeats_do_not_wait_behind_a_large_message_on_a_slow_link() {
    let (client, server) = (endpoint(Role::Client, "me"), endpoint(Role::Node, "n1"));
    let relay = Relay::slow(server.local_address(), 256 << 10);
    let expected = identity(Role::Node, "n1").subject().clone();
    block_on(async {
        let (here, there) =
            tokio::join!(client.connect(relay.address, &expected, soon()), server.accept());
        let (here, mut there) = (here.unwrap(), there.unwrap());
        let beats = there.beats();
        here.send(vec![7; CONTROL_MESSAGE_BYTES_MAX], soon()).await.unwrap();
        let begun = Instant::now();
        let watched = longest_pause(beats, async {
            assert_eq!(there.recv().await.unwrap().unwrap().len(), CONTROL_MESSAGE_BYTES_MAX);
        });
        let (longest, count) = tokio::select! {
            watched = watched => watched,
            () = beat_all_the_time(&here) => unreachable!("it has no end"),
        };
        let took = begun.elapsed();
        eprintln!("{count} heartbeats beside a message of {took:?}, longest pause {longest:?}");
        assert!(took > Duration::from_secs(3), "the link is not slow: {took:?}");
        assert!(longest < Duration::from_millis(800), "{longest:?} between heartbeats");
        assert!(count > 20, "{count}");
    });
}

#[test]
fn heartbeats_come_where_nobody_reads_messages() {
    block_on(async {
        let pair = over_quic().await;
        let patience = Duration::from_millis(150);
        loop {
            let message = vec![0; CONTROL_MESSAGE_BYTES_MAX];
            if pair.client.send(message, Instant::now() + patience).await.is_err() {
                break;
            }
        }
        let mut beats = pair.server.beats();
        for sequence in 1..=50 {
            pair.client.beat(sequence);
            let heard = tokio::time::timeout(Duration::from_secs(10), beats.next()).await;
            assert_eq!(heard.unwrap(), sequence);
        }
    });
}

#[test]
fn blobs_pass_between_messages() {
    block_on(async {
        for mut pair in both().await {
            let blob: Vec<u8> = (0..20_000_000_u32).map(|at| (at / 7) as u8).collect();
            let copy = blob.clone();
            let (sender, _receiver) = pair.client.split();
            let giving = async move {
                sender.send(b"a picture follows".to_vec(), soon()).await.unwrap();
                sender.send_blob(copy, soon()).await.unwrap();
                sender.send_blob(Vec::new(), soon()).await.unwrap();
                sender.send(b"that was it".to_vec(), soon()).await.unwrap();
                sender
            };
            let taking = async {
                let early = pair.server.recv_blob(64 << 20).await;
                assert!(matches!(early, Err(TransportError::Mismatch { .. })), "{early:?}");
                pair.server.recv().await.unwrap().unwrap();
                let early = pair.server.recv().await;
                assert!(matches!(early, Err(TransportError::Mismatch { .. })), "{early:?}");
                assert!(pair.server.recv_blob(64 << 20).await.unwrap().unwrap() == blob);
                assert!(pair.server.recv_blob(64 << 20).await.unwrap().unwrap().is_empty());
                assert_eq!(pair.server.recv().await.unwrap().unwrap(), b"that was it");
            };
            tokio::join!(giving, taking);
        }
    });
}

#[test]
fn a_blob_above_the_receivers_bound_ends_the_channel() {
    block_on(async {
        for mut pair in both().await {
            pair.client.send_blob(vec![0; 1000], soon()).await.unwrap();
            let refused = pair.server.recv_blob(999).await;
            assert!(matches!(refused, Err(TransportError::FrameTooLarge { .. })), "{refused:?}");
            assert!(pair.client.recv().await.unwrap().is_none());
        }
    });
}

#[test]
fn a_receive_may_be_dropped_halfway() {
    block_on(async {
        let mut pair = over_quic().await;
        let blob = vec![5; 3_000_000];
        pair.client.send_blob(blob.clone(), soon()).await.unwrap();
        let received = loop {
            tokio::select! {
                biased;
                received = pair.server.recv_blob(8 << 20) => break received,
                () = tokio::task::yield_now() => {}
            }
        };
        assert!(received.unwrap().unwrap() == blob);
    });
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let stranger = ClusterCa::generate(CLUSTER).unwrap().issue(Role::Client, "me").unwrap();
    let client = ControlEndpoint::bind(&ControlConfig::new(stranger, loopback())).unwrap();
    let server = endpoint(Role::Node, "n1");
    let expected = identity(Role::Node, "n1").subject().clone();
    block_on(async {
        let refused = client.connect(server.local_address(), &expected, soon()).await;
        let error = refused.map(|_| ()).unwrap_err();
        assert!(matches!(error, TransportError::Untrusted { .. }), "{error}");
    });
}

#[test]
fn another_node_than_the_expected_one_is_refused() {
    let (client, server) = (endpoint(Role::Client, "me"), endpoint(Role::Node, "n1"));
    let expected = identity(Role::Node, "n2").subject().clone();
    block_on(async {
        let refused = client.connect(server.local_address(), &expected, soon()).await;
        let error = refused.map(|_| ()).unwrap_err();
        let TransportError::WrongIdentity { expected, found } = &error else { panic!("{error}") };
        assert!(expected.contains("n2") && found.contains("n1"), "{error}");
    });
}

#[test]
fn nobody_there_is_said_at_the_deadline() {
    let client = endpoint(Role::Client, "me");
    let nobody = endpoint(Role::Node, "n1").local_address();
    let expected = identity(Role::Node, "n1").subject().clone();
    block_on(async {
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = client.connect(nobody, &expected, deadline).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, TransportError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("n1"), "{error}");
    });
}

#[test]
fn a_taken_port_is_named() {
    let server = endpoint(Role::Node, "n1");
    let config = ControlConfig::new(identity(Role::Node, "n2"), server.local_address());
    let error = ControlEndpoint::bind(&config).map(|_| ()).unwrap_err();
    assert!(matches!(error, TransportError::Bind { .. }), "{error}");
}

#[test]
fn a_closed_endpoint_ends_its_channels_and_accepts_no_more() {
    block_on(async {
        let mut pair = over_quic().await;
        let (_client, server) = pair._endpoints.take().unwrap();
        server.close("shutting down");
        assert!(pair.client.recv().await.unwrap().is_none());
        assert!(pair.client.closed().is_none_or(|cause| cause.contains("shutting down")));
        let error = server.accept().await.map(|_| ()).unwrap_err();
        assert!(matches!(error, TransportError::Closed { .. }), "{error}");
    });
}

#[test]
fn a_flushed_endpoint_may_go_right_after_its_last_word() {
    block_on(async {
        let mut pair = over_quic().await;
        let (_client, server) = pair._endpoints.take().unwrap();
        pair.server.send(vec![9; 500_000], soon()).await.unwrap();
        drop(pair.server);
        assert!(server.flushed(soon()).await);
        drop(server);
        assert_eq!(pair.client.recv().await.unwrap().unwrap(), vec![9; 500_000]);
        assert!(pair.client.recv().await.unwrap().is_none());
    });
}

/// Each holds a stream of messages, which counts for both directions where it was accepted, and one
/// of heartbeats each way; one that is over holds nothing at either end.
#[test]
fn channels_that_come_and_go_leave_no_connection_and_no_stream() {
    block_on(async {
        let (client, server) = (endpoint(Role::Client, "me"), endpoint(Role::Node, "n1"));
        let expected = identity(Role::Node, "n1").subject().clone();
        for _ in 0..10 {
            let dialled = client.connect(server.local_address(), &expected, soon());
            let (here, there) = tokio::join!(dialled, server.accept());
            let (here, there) = (here.unwrap(), there.unwrap());
            let (mut heard_here, mut heard_there) = (here.beats(), there.beats());
            here.beat(1);
            there.beat(1);
            tokio::join!(heard_here.next(), heard_there.next());
            let one = |streams| ControlHoldings { connections: 1, streams, callers: 0 };
            assert_eq!((client.holdings(), server.holdings()), (one(3), one(4)));
            drop((here, there));
            assert!(client.flushed(soon()).await && server.flushed(soon()).await);
            let none = ControlHoldings::default();
            assert_eq!((client.holdings(), server.holdings()), (none, none));
        }
    });
}
