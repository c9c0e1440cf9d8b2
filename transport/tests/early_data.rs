//! Nothing is served before the handshake: a client that sends data with its first packet (0-RTT)
//! is heard only after it has proved who it is, and has to say it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ditmesh_transport::identity::TlsRole;
use ditmesh_transport::{ControlConfig, ControlEndpoint, Role};
use rustls::client::Resumption;
use tokio::time::timeout;

use crate::hostile::SERVER_NAME;
use crate::support::{block_on, identity, loopback};

const PATIENCE: Duration = Duration::from_secs(20);

/// How a control channel begins: magic, oldest and newest protocol.
const GREETING: &[u8; 8] = b"DMC1\x01\0\x01\0";

/// A member that remembers sessions and sends with its first packet when it can.
fn eager_client() -> quinn::ClientConfig {
    let role = identity(Role::Node, "n0").tls(false).unwrap();
    let TlsRole::Client(tls, _) = role else { panic!("it accepts") };
    let mut tls = rustls::ClientConfig::clone(&tls);
    tls.enable_early_data = true;
    tls.resumption = Resumption::in_memory_sessions(8);
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(quic))
}

/// A server of the same name that takes early data, as no port of ours may.
fn server_that_takes_it() -> quinn::Endpoint {
    let role = identity(Role::Node, "n1").tls(true).unwrap();
    let TlsRole::Server(tls) = role else { panic!("it dials") };
    let mut tls = rustls::ServerConfig::clone(&tls);
    tls.max_early_data_size = u32::MAX;
    tls.send_tls13_tickets = 2;
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(quic));
    let endpoint = quinn::Endpoint::server(server, loopback()).unwrap();
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(caller) = accepting.accept().await {
            tokio::spawn(async move {
                let connection =
                    caller.accept().unwrap().into_0rtt().unwrap_or_else(|_| panic!()).0;
                while let Ok((mut sending, mut receiving)) = connection.accept_bi().await {
                    let said = receiving.read_to_end(64).await.unwrap_or_default();
                    // Whoever has gone hears nothing.
                    let _ = sending.write_all(&said).await;
                    let _ = sending.finish();
                }
            });
        }
    });
    endpoint
}

/// Sends the greeting with the first packet, if the client has a session to resume: whether it was
/// taken, and the connection.
async fn greet_early(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    to: SocketAddr,
) -> Option<(bool, quinn::Connection)> {
    let connecting = endpoint.connect_with(config.clone(), to, SERVER_NAME).unwrap();
    let (connection, taken) = connecting.into_0rtt().ok()?;
    let (mut sending, _receiving) = connection.open_bi().await.unwrap();
    sending.write_all(GREETING).await.unwrap();
    let taken = timeout(PATIENCE, taken).await.expect("the handshake ends");
    Some((taken, connection))
}

/// Makes the client know a session with `to`, if the server gives one.
async fn make_known(endpoint: &quinn::Endpoint, config: &quinn::ClientConfig, to: SocketAddr) {
    let connecting = endpoint.connect_with(config.clone(), to, SERVER_NAME).unwrap();
    let connection = timeout(PATIENCE, connecting).await.unwrap().unwrap();
    let (mut sending, mut receiving) = connection.open_bi().await.unwrap();
    sending.write_all(GREETING).await.unwrap();
    // Whatever the server has to say after a handshake has come with its answer, or before.
    let mut answer = [0; 8];
    sending.finish().unwrap();
    timeout(PATIENCE, receiving.read_exact(&mut answer)).await.unwrap().unwrap();
    connection.close(0_u32.into(), b"");
}

fn control() -> ControlEndpoint {
    ControlEndpoint::bind(&ControlConfig::new(identity(Role::Node, "n1"), loopback())).unwrap()
}

#[test]
fn early_data_is_not_served_before_the_handshake() {
    block_on(async {
        let (config, endpoint) = (eager_client(), quinn::Endpoint::client(loopback()).unwrap());
        let other = server_that_takes_it();
        let takes = other.local_addr().unwrap();
        make_known(&endpoint, &config, takes).await;
        let (taken, _) = greet_early(&endpoint, &config, takes).await.expect("a session");
        assert!(taken, "a server that wants early data gets it: the client can send some");
        // The session's name is ours too, so the client sends its greeting to us unasked.
        let server = control();
        let early = greet_early(&endpoint, &config, server.local_address()).await;
        let (taken, connection) = early.expect("a session");
        assert!(!taken, "early data was taken");
        // The one stream that a caller may open is still to be opened: what came early opened none.
        let (mut sending, mut receiving) =
            timeout(PATIENCE, connection.open_bi()).await.expect("a stream").unwrap();
        sending.write_all(GREETING).await.unwrap();
        let channel = timeout(PATIENCE, server.accept()).await.expect("in time").unwrap();
        assert_eq!(channel.peer().name, "n0");
        let mut answer = [0; 8];
        timeout(PATIENCE, receiving.read_exact(&mut answer)).await.expect("in time").unwrap();
        let second = timeout(Duration::from_millis(50), server.accept()).await;
        assert!(second.is_err(), "the greeting that came early was answered too");
    });
}

#[test]
fn no_session_is_given_to_be_resumed() {
    block_on(async {
        let (config, endpoint) = (eager_client(), quinn::Endpoint::client(loopback()).unwrap());
        let server = control();
        for _ in 0..3 {
            make_known(&endpoint, &config, server.local_address()).await;
            timeout(PATIENCE, server.accept()).await.expect("in time").unwrap();
        }
        let early = greet_early(&endpoint, &config, server.local_address()).await;
        assert!(early.is_none(), "the client was given a session");
    });
}
