//! TCP, and TLS over it: what people would use instead.
//!
//! Owns blocking sockets on the measuring thread. TLS has the suites, the certificates and the
//! mutual authentication of the product's QUIC. Buffers are used again; nothing is copied but by
//! the kernel and by TLS.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use ditmesh_transport::Identity;
use ditmesh_transport::identity::TlsRole;
use rustls::{ClientConnection, ServerConnection, StreamOwned};

use super::wire::Wire;

/// Longest wait for the other end.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// What TLS takes at once, in bytes.
const TLS_BUFFER_BYTES: usize = 256 << 10;

/// A stream of bytes, one way or the other.
trait Stream: Read + Write + Send {
    /// The same stream for another thread, where that can be.
    fn second(&self) -> Option<Box<dyn Stream>>;
}

impl Stream for TcpStream {
    fn second(&self) -> Option<Box<dyn Stream>> {
        Some(Box::new(self.try_clone().ok()?))
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn second(&self) -> Option<Box<dyn Stream>> {
        None
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn second(&self) -> Option<Box<dyn Stream>> {
        None
    }
}

struct StreamWire {
    stream: Box<dyn Stream>,
    out: Vec<u8>,
    into: Vec<u8>,
}

/// Listens for the other end.
pub(super) fn listen(ip: IpAddr) -> Result<TcpListener, String> {
    TcpListener::bind(SocketAddr::new(ip, 0)).map_err(|error| error.to_string())
}

/// Joins the two ends: the one that listens is the server.
pub(super) fn join(
    listener: Option<TcpListener>,
    peer: SocketAddr,
    tls: Option<&Identity>,
) -> Result<Box<dyn Wire>, String> {
    let server = listener.is_some();
    let socket = match listener {
        Some(listener) => listener.accept().map(|(socket, _)| socket),
        None => TcpStream::connect_timeout(&peer, WAIT_MAX),
    };
    let socket = socket.and_then(|socket| {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        socket.set_write_timeout(Some(WAIT_MAX))?;
        Ok(socket)
    });
    let socket = socket.map_err(|error| error.to_string())?;
    let words = |error: rustls::Error| error.to_string();
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(socket),
        Some(identity) => match identity.tls(server).map_err(|error| error.to_string())? {
            TlsRole::Client(config, name) => {
                let mut tls = ClientConnection::new(config, name).map_err(words)?;
                tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
                Box::new(StreamOwned::new(tls, socket))
            }
            TlsRole::Server(config) => {
                let mut tls = ServerConnection::new(config).map_err(words)?;
                tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
                Box::new(StreamOwned::new(tls, socket))
            }
        },
    };
    Ok(Box::new(StreamWire { stream, out: Vec::new(), into: Vec::new() }))
}

impl StreamWire {
    fn put(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.out, bytes);
        put(self.stream.as_mut(), &self.out[..bytes])
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.into, bytes);
        self.stream.read_exact(&mut self.into[..bytes]).map_err(|error| error.to_string())
    }
}

fn put(stream: &mut dyn Stream, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).and_then(|()| stream.flush()).map_err(|error| error.to_string())
}

impl Wire for StreamWire {
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
        let mut second = self.stream.second().ok_or("it cannot send and receive at once")?;
        grow(&mut self.out, bytes);
        let out = std::mem::take(&mut self.out);
        let sending = std::thread::spawn(move || {
            (0..count).try_for_each(|_| put(second.as_mut(), &out[..bytes]))
        });
        for _ in 0..count {
            self.take(bytes)?;
        }
        sending.join().map_err(|_| "the sending thread ended badly".to_owned())?
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

/// At least `bytes` long; the bytes that are there stay, so that nothing is written while time is
/// taken but the first time.
pub(super) fn grow(buffer: &mut Vec<u8>, bytes: usize) {
    if buffer.len() < bytes {
        buffer.resize(bytes, 7);
    }
}
