//! Somebody who wants a connection and has none yet.
//!
//! Owns the decision: accept, ask to come again with a token, or ignore. Invariant: a caller about
//! whom nothing was decided is refused.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Instant;

use quinn_proto::ConnectionError;

use super::{Connection, Endpoint};

pub(crate) struct Incoming {
    /// None when it was decided.
    caller: Option<quinn_proto::Incoming>,
    from: SocketAddr,
    validated: bool,
    may_retry: bool,
    endpoint: Endpoint,
}

impl Incoming {
    pub(super) fn new(caller: quinn_proto::Incoming, endpoint: Endpoint) -> Self {
        let from = caller.remote_address();
        let (validated, may_retry) = (caller.remote_address_validated(), caller.may_retry());
        Self { caller: Some(caller), from, validated, may_retry, endpoint }
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        self.from
    }

    /// Whether it has shown that it receives what is sent to its address.
    pub(crate) fn remote_address_validated(&self) -> bool {
        self.validated
    }

    /// Whether it can be asked to show that.
    pub(crate) fn may_retry(&self) -> bool {
        self.may_retry
    }

    /// Asks it to come again with a token; keeps nothing.
    pub(crate) fn retry(mut self) {
        let Some(caller) = self.caller.take() else { return };
        let (port, mut answer) = (&self.endpoint.port, Vec::new());
        let mut core = port.core();
        match core.endpoint.retry(caller, &mut answer) {
            Ok(transmit) => port.answer(&transmit, &answer),
            Err(cannot) => core.endpoint.ignore(cannot.into_incoming()),
        }
    }

    /// Forgets it.
    pub(crate) fn ignore(mut self) {
        if let Some(caller) = self.caller.take() {
            self.endpoint.port.core().endpoint.ignore(caller);
        }
    }

    fn accept(mut self) -> Result<Connection, ConnectionError> {
        let caller = self.caller.take().ok_or(ConnectionError::LocallyClosed)?;
        let (port, mut answer) = (&self.endpoint.port, Vec::new());
        let mut core = port.core();
        match core.endpoint.accept(caller, Instant::now(), &mut answer, None) {
            Ok((handle, protocol)) => Ok(core.adopt(&port.work, handle, protocol)),
            Err(error) => {
                if let Some(transmit) = error.response {
                    port.answer(&transmit, &answer);
                }
                Err(error.cause)
            }
        }
    }
}

/// Accepts, and waits for the end of the handshake.
impl IntoFuture for Incoming {
    type Output = Result<Connection, ConnectionError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.accept()?.established().await })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(caller) = self.caller.take() else { return };
        let (port, mut answer) = (&self.endpoint.port, Vec::new());
        let refusal = port.core().endpoint.refuse(caller, &mut answer);
        port.answer(&refusal, &answer);
    }
}
