//! The UDP socket under an endpoint.
//!
//! Owns binding and buffer sizes.

use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use super::EndpointSettings;
use crate::error::TransportError;

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
