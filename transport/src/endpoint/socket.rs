//! The UDP socket under an endpoint.
//!
//! Owns binding, buffer sizes, and the cap on segments per send: quinn batches up to 10 packets in
//! one `sendmsg`, which above about 6,550 bytes per packet exceeds what UDP can carry (65,507
//! bytes), fails with EMSGSIZE and is then mistaken for a path that lost its MTU.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};

use super::EndpointSettings;
use crate::error::TransportError;

/// The largest UDP payload over IPv4, in bytes.
const UDP_BYTES_MAX: usize = 65_507;

/// Receives in one system call, of up to 64 KiB each: what they bring is copied once more by quinn,
/// and should still be in the cache then.
const RECEIVES_MAX: usize = 4;

/// Segments per send that quinn itself never exceeds.
const SEGMENTS_MAX: usize = 10;

pub(super) struct BoundSocket {
    pub(super) socket: std::net::UdpSocket,
    /// Payload bytes that the receive buffer holds.
    pub(super) receive_bytes: u32,
}

pub(super) fn bind(settings: &EndpointSettings) -> Result<BoundSocket, TransportError> {
    let failed = |error| TransportError::system("open a UDP socket", error);
    let domain = Domain::for_address(settings.bind);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
    let wanted = settings.socket_buffer_bytes;
    socket.set_recv_buffer_size(wanted).map_err(failed)?;
    socket.set_send_buffer_size(wanted).map_err(failed)?;
    // Linux reports twice what it grants, the other half being its own bookkeeping.
    let granted = socket.recv_buffer_size().map_err(failed)? / 2;
    if granted < wanted {
        tracing::info!(
            endpoint = settings.name,
            wanted_bytes = wanted,
            granted_bytes = granted,
            "the UDP receive buffer is clamped; raise net.core.rmem_max and wmem_max"
        );
    }
    socket.bind(&settings.bind.into()).map_err(|source| TransportError::Bind {
        address: settings.bind,
        source: Arc::new(source),
    })?;
    Ok(BoundSocket {
        socket: socket.into(),
        receive_bytes: u32::try_from(granted).unwrap_or(u32::MAX),
    })
}

/// Wraps the socket for quinn; must run inside the endpoint's runtime.
pub(super) fn capped(
    socket: std::net::UdpSocket,
    mtu_bytes: u16,
) -> Result<Arc<dyn AsyncUdpSocket>, TransportError> {
    let inner = TokioRuntime
        .wrap_udp_socket(socket)
        .map_err(|error| TransportError::system("use a UDP socket", error))?;
    let segments = SEGMENTS_MAX.min(UDP_BYTES_MAX / usize::from(mtu_bytes).max(1)).max(1);
    let received = UDP_BYTES_MAX.div_ceil(usize::from(mtu_bytes).max(1)).max(1);
    Ok(Arc::new(CappedSocket { inner, segments, received }))
}

struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
    /// The largest packets that one receive can hold.
    received: usize,
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (buffers, _) = buffers.split_at_mut(RECEIVES_MAX.min(buffers.len()));
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }

    fn max_receive_segments(&self) -> usize {
        // quinn takes memory for that many of the largest packets, 32 times.
        self.inner.max_receive_segments().min(self.received)
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for CappedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CappedSocket({:?}, {} segments)", self.inner, self.segments)
    }
}
