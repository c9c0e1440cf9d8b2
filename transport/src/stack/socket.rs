//! The UDP socket under a port.
//!
//! Owns reading and writing through the runtime's reactor, and how many packets fit into one write:
//! what exceeds UDP's largest message fails with EMSGSIZE, which would be mistaken for a path that
//! has lost its MTU.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSocketState};
use tokio::io::Interest;

use super::slots::{SLOTS, Slots};

/// The largest UDP payload over IPv4, in bytes.
const UDP_BYTES_MAX: usize = 65_507;

pub(super) struct Socket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

/// A message that came: packets of `stride` bytes, the last may be shorter.
#[derive(Clone, Copy)]
pub(super) struct Arrived {
    pub(super) from: SocketAddr,
    /// The local address that it was sent to.
    pub(super) to: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) len: usize,
    pub(super) stride: usize,
}

impl Socket {
    /// Must be called inside a runtime.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let local = socket.local_addr()?;
        Ok(Self { io: tokio::net::UdpSocket::from_std(socket)?, state, local })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// How many packets of this size one write may have.
    pub(super) fn packets_max(&self, packet_bytes: u16) -> usize {
        let fit = UDP_BYTES_MAX / usize::from(packet_bytes).max(1);
        self.state.max_gso_segments().min(fit).max(1)
    }

    /// Reads into `slots`, or wakes the task when there is something to read; what has come is
    /// described in `arrived`.
    pub(super) fn poll_receive(
        &self,
        context: &mut Context<'_>,
        slots: &mut Slots,
        arrived: &mut Vec<Arrived>,
    ) -> Poll<io::Result<()>> {
        arrived.clear();
        let mut metas = [RecvMeta::default(); SLOTS];
        let count = loop {
            ready!(self.io.poll_recv_ready(context))?;
            let read = || self.state.recv((&self.io).into(), &mut slots.places(), &mut metas);
            match self.io.try_io(Interest::READABLE, read) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Anybody can send the ICMP message that this comes from.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        };
        arrived.extend(metas.iter().take(count).map(|meta| Arrived {
            from: meta.addr,
            to: meta.dst_ip,
            ecn: meta.ecn.map(from_udp),
            len: meta.len,
            stride: meta.stride.max(1),
        }));
        Poll::Ready(Ok(()))
    }

    /// Sends all of `bytes` or none; errors of the network are losses, which the protocol handles.
    pub(super) fn try_send(&self, transmit: &Transmit, bytes: &[u8]) -> io::Result<()> {
        let Transmit { destination, ecn, segment_size, src_ip, .. } = *transmit;
        let ecn = ecn.map(to_udp);
        let transmit =
            quinn_udp::Transmit { destination, ecn, contents: bytes, segment_size, src_ip };
        let write = || self.state.send((&self.io).into(), &transmit);
        self.io.try_io(Interest::WRITABLE, write)
    }

    /// Whether a write may succeed; wakes the task when it may.
    pub(super) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_send_ready(context)
    }
}

fn from_udp(ecn: quinn_udp::EcnCodepoint) -> EcnCodepoint {
    match ecn {
        quinn_udp::EcnCodepoint::Ect0 => EcnCodepoint::Ect0,
        quinn_udp::EcnCodepoint::Ect1 => EcnCodepoint::Ect1,
        quinn_udp::EcnCodepoint::Ce => EcnCodepoint::Ce,
    }
}

fn to_udp(ecn: EcnCodepoint) -> quinn_udp::EcnCodepoint {
    match ecn {
        EcnCodepoint::Ect0 => quinn_udp::EcnCodepoint::Ect0,
        EcnCodepoint::Ect1 => quinn_udp::EcnCodepoint::Ect1,
        EcnCodepoint::Ce => quinn_udp::EcnCodepoint::Ce,
    }
}
