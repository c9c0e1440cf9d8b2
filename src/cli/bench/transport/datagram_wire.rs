//! Datagrams of bare UDP: what is under QUIC.
//!
//! Owns a blocking socket on the measuring thread. To and fro only: nothing sends again what is
//! lost, so there is no stream to measure.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::stream_wire::grow;
use super::wire::Wire;

/// Longest wait for the other end.
const WAIT_MAX: Duration = Duration::from_secs(20);

struct DatagramWire {
    socket: UdpSocket,
    buffer: Vec<u8>,
}

pub(super) fn bind(ip: IpAddr) -> Result<UdpSocket, String> {
    UdpSocket::bind(SocketAddr::new(ip, 0)).map_err(|error| error.to_string())
}

pub(super) fn join(socket: UdpSocket, peer: SocketAddr) -> Result<Box<dyn Wire>, String> {
    let joined = socket.connect(peer).and_then(|()| socket.set_read_timeout(Some(WAIT_MAX)));
    joined.map_err(|error| error.to_string())?;
    Ok(Box::new(DatagramWire { socket, buffer: Vec::new() }))
}

impl DatagramWire {
    fn put(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.buffer, bytes);
        let sent = self.socket.send(&self.buffer[..bytes]);
        sent.map(drop).map_err(|error| error.to_string())
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        grow(&mut self.buffer, bytes);
        let received = self.socket.recv(&mut self.buffer[..bytes]);
        received.map(drop).map_err(|error| error.to_string())
    }
}

fn no_bulk() -> Result<(), String> {
    Err("bare datagrams carry no bulk".to_owned())
}

impl Wire for DatagramWire {
    fn send(&mut self, _: usize, _: u64) -> Result<(), String> {
        no_bulk()
    }

    fn receive(&mut self, _: usize, _: u64) -> Result<(), String> {
        no_bulk()
    }

    fn exchange(&mut self, _: usize, _: u64) -> Result<(), String> {
        no_bulk()
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
