//! quinn as it comes, and the control channel of the product.
//!
//! Owns the runtime that drives them. quinn's end has one connection, one stream and its default
//! settings; only certificates are the product's, and an idle connection is kept alive, because
//! other ways are measured meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::{
    ControlChannel, ControlConfig, ControlEndpoint, Identity, PeerIdentity, Role,
};
use quinn::{ClientConfig, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig};
use tokio::runtime::Runtime;

use super::stream_wire::grow;
use super::wire::Wire;

/// Longest wait for the other end.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// How long a connection is driven after it was made.
const SETTLE: Duration = Duration::from_millis(100);

/// Turns of quinn's tasks in which what was written is sent.
const LEAVING_TURNS: usize = 2;

/// An end that listens.
pub(super) enum Bound {
    Quinn(Endpoint, Runtime),
    Control(Box<ControlEndpoint>, Runtime),
}

struct QuinnWire {
    runtime: Runtime,
    sending: SendStream,
    receiving: RecvStream,
    out: Vec<u8>,
    into: Vec<u8>,
    _endpoint: Endpoint,
}

struct ControlWire {
    runtime: Runtime,
    channel: ControlChannel,
    _endpoint: Box<ControlEndpoint>,
}

fn runtime(own_thread: bool) -> Result<Runtime, String> {
    let mut runtime = match own_thread {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    runtime.worker_threads(1).enable_all().build().map_err(words)
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Binds quinn, driven by a thread of its own or by whoever waits.
pub(super) fn bind_quinn(
    identity: &Identity,
    ip: IpAddr,
    own_thread: bool,
) -> Result<(Bound, SocketAddr), String> {
    let runtime = runtime(own_thread)?;
    let mut transport = TransportConfig::default();
    match own_thread {
        true => transport.keep_alive_interval(Some(Duration::from_secs(5))),
        // Nobody drives it while something else is measured.
        false => transport.max_idle_timeout(None),
    };
    let transport = Arc::new(transport);
    let (client, _) = identity.quic_client().map_err(words)?;
    let mut client = ClientConfig::new(client);
    client.transport_config(Arc::clone(&transport));
    let mut server = ServerConfig::with_crypto(identity.quic_server().map_err(words)?);
    server.transport_config(transport);
    let endpoint = {
        let _in_runtime = runtime.enter();
        let mut endpoint = Endpoint::server(server, SocketAddr::new(ip, 0)).map_err(words)?;
        endpoint.set_default_client_config(client);
        endpoint
    };
    let address = endpoint.local_addr().map_err(words)?;
    Ok((Bound::Quinn(endpoint, runtime), address))
}

/// Binds a control endpoint.
pub(super) fn bind_control(identity: &Identity, ip: IpAddr) -> Result<(Bound, SocketAddr), String> {
    let mut config = ControlConfig::new(identity.clone(), SocketAddr::new(ip, 0));
    config.idle_timeout = WAIT_MAX;
    let endpoint = ControlEndpoint::bind(&config).map_err(words)?;
    let address = endpoint.local_address();
    Ok((Bound::Control(Box::new(endpoint), runtime(true)?), address))
}

/// Joins the two ends; rank 0 dials.
pub(super) fn join(
    bound: Bound,
    identity: &Identity,
    rank: u8,
    peer: SocketAddr,
) -> Result<Box<dyn Wire>, String> {
    match bound {
        Bound::Quinn(endpoint, runtime) => {
            let joined = async {
                if rank == 0 {
                    let (_, name) = identity.quic_client().map_err(words)?;
                    let connection = endpoint.connect(peer, &name).map_err(words)?;
                    let connection = connection.await.map_err(words)?;
                    let (mut sending, receiving) = connection.open_bi().await.map_err(words)?;
                    // The other end sees a stream when something is written.
                    sending.write_all(&[1]).await.map_err(words)?;
                    Ok::<_, String>((sending, receiving))
                } else {
                    let incoming = endpoint.accept().await.ok_or("the endpoint is closed")?;
                    let connection = incoming.await.map_err(words)?;
                    let (sending, mut receiving) = connection.accept_bi().await.map_err(words)?;
                    receiving.read_exact(&mut [0]).await.map_err(words)?;
                    Ok((sending, receiving))
                }
            };
            let joined = async {
                let streams = joined.await?;
                // What was written last leaves while somebody drives.
                tokio::time::sleep(SETTLE).await;
                Ok::<_, String>(streams)
            };
            let (sending, receiving) = runtime.block_on(joined)?;
            let (out, into) = (Vec::new(), Vec::new());
            Ok(Box::new(QuinnWire { runtime, sending, receiving, out, into, _endpoint: endpoint }))
        }
        Bound::Control(endpoint, runtime) => {
            let deadline = Instant::now() + Duration::from_secs(20);
            let cluster = &identity.subject().cluster;
            let expected = PeerIdentity::new(Role::Node, "n1", cluster).map_err(words)?;
            let channel = runtime.block_on(async {
                match rank {
                    0 => endpoint.connect(peer, &expected, deadline).await,
                    _ => endpoint.accept().await,
                }
            });
            let channel = channel.map_err(words)?;
            Ok(Box::new(ControlWire { runtime, channel, _endpoint: endpoint }))
        }
    }
}

impl QuinnWire {
    fn put(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.out, bytes);
        self.runtime.block_on(async {
            self.sending.write_all(&self.out[..bytes]).await.map_err(words)?;
            // Where nobody drives later, it leaves now.
            for _ in 0..LEAVING_TURNS {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.into, bytes);
        self.runtime.block_on(self.receiving.read_exact(&mut self.into[..bytes])).map_err(words)
    }
}

impl Wire for QuinnWire {
    fn send(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        for _ in 0..count {
            self.put(bytes)?;
        }
        self.take(1)
    }

    fn receive(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        for _ in 0..count {
            self.take(bytes)?;
        }
        self.put(1)
    }

    fn exchange(&mut self, bytes: usize, count: u64) -> Result<(), String> {
        grow(&mut self.out, bytes);
        grow(&mut self.into, bytes);
        let Self { runtime, sending, receiving, out, into, .. } = self;
        runtime.block_on(async {
            let sends = async {
                for _ in 0..count {
                    sending.write_all(&out[..bytes]).await.map_err(words)?;
                }
                Ok::<_, String>(())
            };
            let receives = async {
                for _ in 0..count {
                    receiving.read_exact(&mut into[..bytes]).await.map_err(words)?;
                }
                Ok(())
            };
            tokio::try_join!(sends, receives).map(drop)
        })
    }

    fn ask(&mut self, bytes: usize) -> Result<(), String> {
        self.put(bytes)?;
        self.take(bytes)
    }

    fn answer(&mut self, bytes: usize) -> Result<(), String> {
        self.take(bytes)?;
        self.put(bytes)
    }
}

impl ControlWire {
    fn put(&mut self, bytes: usize) -> Result<(), String> {
        let sent = self.channel.send(vec![7; bytes], Instant::now() + WAIT_MAX);
        self.runtime.block_on(sent).map_err(words)
    }

    fn take(&mut self) -> Result<(), String> {
        match self.runtime.block_on(self.channel.recv()).map_err(words)? {
            Some(_) => Ok(()),
            None => Err("the channel ended".to_owned()),
        }
    }
}

/// Heartbeats come and go on it; bulk never does.
impl Wire for ControlWire {
    fn send(&mut self, _: usize, _: u64) -> Result<(), String> {
        Err("the control channel carries no bulk".to_owned())
    }

    fn receive(&mut self, _: usize, _: u64) -> Result<(), String> {
        Err("the control channel carries no bulk".to_owned())
    }

    fn exchange(&mut self, _: usize, _: u64) -> Result<(), String> {
        Err("the control channel carries no bulk".to_owned())
    }

    fn ask(&mut self, bytes: usize) -> Result<(), String> {
        self.put(bytes)?;
        self.take()
    }

    fn answer(&mut self, bytes: usize) -> Result<(), String> {
        self.take()?;
        self.put(bytes)
    }
}
