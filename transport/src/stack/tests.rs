//! Two ports of one process.
#![allow(clippy::unwrap_used)]

use std::net::UdpSocket;
use std::time::Duration;

use quinn_proto::TransportConfig;
use tokio::time::timeout;

use super::*;
use crate::identity::{ClusterCa, Identity, Role, client_crypto, server_crypto};

const LONG: Duration = Duration::from_secs(20);

fn identity(authority: &ClusterCa, name: &str) -> Identity {
    authority.issue(Role::Node, name).unwrap()
}

fn transport(mtu_bytes: u16) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config.initial_mtu(mtu_bytes).min_mtu(1200).max_concurrent_uni_streams(VarInt::from_u32(16));
    Arc::new(config)
}

/// One end, and how it dials the other.
struct End {
    endpoint: Endpoint,
    client: ClientConfig,
    name: String,
}

fn end(authority: &ClusterCa, name: &str, mtu_bytes: u16) -> End {
    let identity = identity(authority, name);
    let (crypto, tls_name) = client_crypto(&identity).unwrap();
    let mut client = ClientConfig::new(crypto);
    client.transport_config(transport(mtu_bytes));
    let mut server = ServerConfig::with_crypto(server_crypto(&identity).unwrap());
    server.transport_config(transport(mtu_bytes));
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu_bytes).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::new(config, Some(server), socket).unwrap();
    End { endpoint, client, name: tls_name }
}

fn two(mtu_bytes: u16) -> [End; 2] {
    let authority = ClusterCa::generate("emoji").unwrap();
    ["n0", "n1"].map(|name| end(&authority, name, mtu_bytes))
}

async fn connected([one, other]: &[End; 2]) -> [Connection; 2] {
    let dialling =
        one.endpoint.connect(one.client.clone(), other.endpoint.local_addr(), &one.name).unwrap();
    let accepting = async { other.endpoint.accept().await.unwrap().await };
    let (dialled, accepted) =
        timeout(LONG, async { tokio::join!(dialling, accepting) }).await.unwrap();
    [dialled.unwrap(), accepted.unwrap()]
}

fn pattern(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31).wrapping_add(seed) >> 3) as u8).collect()
}

/// Streams in both directions at once, in packets of both sizes that networks have.
#[tokio::test]
async fn every_byte_arrives_once_and_in_order() {
    for mtu_bytes in [1472, 8952] {
        let ends = two(mtu_bytes);
        let connections = connected(&ends).await;
        let mut tasks = Vec::new();
        for stream in 0..4 {
            let bytes = (3 << 20) + stream * 4099;
            for connection in connections.clone() {
                tasks.push(tokio::spawn(async move {
                    let mut stream_of = connection.open_uni().await.unwrap();
                    let all = pattern(stream, bytes);
                    let head = (bytes as u64).to_le_bytes();
                    stream_of.write_all(&head).await.unwrap();
                    let (copied, chunk) = all.split_at(bytes / 3);
                    stream_of.write_all(copied).await.unwrap();
                    stream_of.write_chunk(chunk.to_vec().into()).await.unwrap();
                    stream_of.finish().unwrap();
                    assert_eq!(stream_of.stopped().await.unwrap(), None);
                }));
            }
            for connection in connections.clone() {
                tasks.push(tokio::spawn(async move {
                    let mut stream = connection.accept_uni().await.unwrap();
                    let mut head = [0; 8];
                    stream.read_exact(&mut head).await.unwrap();
                    let bytes = u64::from_le_bytes(head) as usize;
                    let mut all = vec![0; bytes];
                    stream.read_exact(&mut all).await.unwrap();
                    let seed = (bytes - (3 << 20)) / 4099;
                    assert!(all == pattern(seed, bytes), "stream {seed} is not what was sent");
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), None);
                    assert_eq!(stream.read(&mut [0]).await.unwrap(), None);
                }));
            }
        }
        for task in tasks {
            timeout(LONG, task).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_dropped_half_is_known_at_the_other_end() {
    let ends = two(1452);
    let [one, other] = connected(&ends).await;
    let (mut sending, receiving) = one.open_bi().await.unwrap();
    sending.write_all(b"last words").await.unwrap();
    drop(sending);
    let (mut answering, mut heard) = timeout(LONG, other.accept_bi()).await.unwrap().unwrap();
    let words = timeout(LONG, heard.read_to_end(64)).await.unwrap().unwrap();
    assert_eq!(words, b"last words");
    drop(receiving);
    let stopped = timeout(LONG, answering.stopped()).await.unwrap().unwrap();
    assert_eq!(stopped, Some(VarInt::from_u32(0)));
    assert!(matches!(answering.write_all(b"?").await, Err(WriteError::Stopped(_))));
    let (mut long, _receiving) = one.open_bi().await.unwrap();
    long.write_all(&[1; 65]).await.unwrap();
    long.finish().unwrap();
    assert!(matches!(long.write_all(b"?").await, Err(WriteError::Finished)));
    let (_answering, mut heard) = timeout(LONG, other.accept_bi()).await.unwrap().unwrap();
    let too_long = timeout(LONG, heard.read_to_end(64)).await.unwrap();
    assert!(matches!(too_long, Err(ReadError::TooLong(64))));
    let (mut short, _receiving) = one.open_bi().await.unwrap();
    short.write_all(&[1; 3]).await.unwrap();
    short.finish().unwrap();
    let (_answering, mut heard) = timeout(LONG, other.accept_bi()).await.unwrap().unwrap();
    let early = timeout(LONG, heard.read_exact(&mut [0; 4])).await.unwrap();
    assert!(matches!(early, Err(ReadExactError::FinishedEarly(3))));
}

/// Whatever somebody waits for: they learn why it will not come, and the first reason stays.
#[tokio::test]
async fn the_end_of_a_connection_wakes_everybody() {
    let ends = two(1452);
    let [one, other] = connected(&ends).await;
    let (mut sending, mut receiving) = one.open_bi().await.unwrap();
    sending.write_all(b"hello").await.unwrap();
    let full = tokio::spawn(async move {
        let chunk = Bytes::from(vec![0; 64 << 20]);
        sending.write_chunk(chunk).await
    });
    let read = tokio::spawn(async move { receiving.read(&mut [0; 8]).await });
    let [accepting, watching] = [one.clone(), one.clone()];
    let accept = tokio::spawn(async move { accepting.accept_uni().await.map(drop) });
    let closed = tokio::spawn(async move { watching.closed().await });
    let (_sending, mut heard) = timeout(LONG, other.accept_bi()).await.unwrap().unwrap();
    heard.read_exact(&mut [0; 5]).await.unwrap();
    other.close(VarInt::from_u32(7), b"enough");
    let told = |error: &ConnectionError| match error {
        ConnectionError::ApplicationClosed(close) => {
            close.error_code == VarInt::from_u32(7) && &close.reason[..] == b"enough"
        }
        _ => false,
    };
    assert!(told(&timeout(LONG, closed).await.unwrap().unwrap()));
    let full = timeout(LONG, full).await.unwrap().unwrap();
    assert!(matches!(full, Err(WriteError::Lost(error)) if told(&error)));
    let read = timeout(LONG, read).await.unwrap().unwrap();
    assert!(matches!(read, Err(ReadError::Lost(error)) if told(&error)));
    assert!(told(&timeout(LONG, accept).await.unwrap().unwrap().unwrap_err()));
    one.close(VarInt::from_u32(0), b"later");
    assert!(told(&one.close_reason().unwrap()));
    assert!(matches!(other.close_reason(), Some(ConnectionError::LocallyClosed)));
    for end in &ends {
        timeout(LONG, end.endpoint.wait_idle()).await.unwrap();
    }
}

#[tokio::test]
async fn the_last_handle_closes_and_a_closed_port_takes_nobody() {
    let ends = two(1452);
    let [one, other] = connected(&ends).await;
    let (stream, _receiving) = one.open_bi().await.unwrap();
    drop(one);
    // The streams are handles too.
    assert!(other.close_reason().is_none());
    drop((stream, _receiving));
    assert!(matches!(
        timeout(LONG, other.closed()).await.unwrap(),
        ConnectionError::ApplicationClosed(_)
    ));
    let accepting = tokio::spawn({
        let endpoint = ends[1].endpoint.clone();
        async move { endpoint.accept().await.is_none() }
    });
    ends[1].endpoint.close(VarInt::from_u32(0), b"closing time");
    assert!(timeout(LONG, accepting).await.unwrap().unwrap());
    let [one, two] = &ends;
    let address = two.endpoint.local_addr();
    let dialling = one.endpoint.connect(one.client.clone(), address, &one.name).unwrap();
    assert!(timeout(LONG, dialling).await.unwrap().is_err());
    let dialling = two.endpoint.connect(two.client.clone(), address, &two.name).map(drop);
    assert!(matches!(dialling, Err(ConnectError::EndpointStopping)));
}

/// A caller that is asked for a token comes again with it; one that nobody decides about is
/// refused.
#[tokio::test]
async fn callers_are_asked_refused_or_accepted() {
    let [one, other] = two(1452);
    let address = other.endpoint.local_addr();
    let dial = || one.endpoint.connect(one.client.clone(), address, &one.name).unwrap();
    let asking = async {
        let caller = other.endpoint.accept().await.unwrap();
        assert!(caller.may_retry() && !caller.remote_address_validated());
        caller.retry();
        let caller = other.endpoint.accept().await.unwrap();
        assert!(caller.remote_address_validated());
        caller.await.unwrap()
    };
    let (dialled, _accepted) = timeout(LONG, async { tokio::join!(dial(), asking) }).await.unwrap();
    dialled.unwrap();
    let refusing = async { drop(other.endpoint.accept().await.unwrap()) };
    let (dialled, ()) = timeout(LONG, async { tokio::join!(dial(), refusing) }).await.unwrap();
    assert!(matches!(dialled, Err(ConnectionError::ConnectionClosed(_))));
}

/// Nobody drives it any more: those who wait elsewhere are woken all the same.
#[test]
fn the_end_of_the_runtime_ends_its_connections() {
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let there = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let there = there.unwrap();
    let authority = ClusterCa::generate("emoji").unwrap();
    let one = {
        let _in_runtime = there.enter();
        end(&authority, "n0", 1452)
    };
    let connections = here.block_on(async {
        let ends = [one, end(&authority, "n1", 1452)];
        let connections = connected(&ends).await;
        (connections, ends)
    });
    let ([one, other], ends) = connections;
    there.shutdown_background();
    here.block_on(async {
        let ended = timeout(LONG, one.closed()).await.unwrap();
        assert!(matches!(ended, ConnectionError::LocallyClosed));
        assert!(matches!(one.open_uni().await, Err(ConnectionError::LocallyClosed)));
        assert!(timeout(LONG, ends[0].endpoint.accept()).await.unwrap().is_none());
        timeout(LONG, ends[0].endpoint.wait_idle()).await.unwrap();
        assert!(other.close_reason().is_none());
    });
}
