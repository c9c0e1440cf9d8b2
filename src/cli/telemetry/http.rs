//! One HTTP request of the exporter: blocking, on the exporter's own thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

/// Bytes of an answer that are read; a collector says little.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Sends to a collector.
#[derive(Debug)]
pub(super) struct Client {
    agent: ureq::Agent,
    losses: Losses,
}

/// Warns of lost spans, once in the life of the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    warned: Arc<AtomicBool>,
}

impl Losses {
    /// Spans are lost because of `cause`.
    pub(super) fn warn(&self, cause: &dyn std::fmt::Display) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "spans are lost: the OpenTelemetry collector does not take them: {cause}"
            );
        }
    }
}

impl Client {
    /// A client whose requests end within `deadline`.
    pub(super) fn new(deadline: Duration, losses: Losses) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(deadline))
            .http_status_as_error(false)
            .max_redirects(0)
            // Spans go where the user said and nowhere else.
            .proxy(None)
            .build();
        Self { agent: config.into(), losses }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        match self.send(request) {
            Ok(response) => {
                if !response.status().is_success() {
                    self.losses.warn(&response.status());
                }
                Ok(response)
            }
            Err(error) => {
                self.losses.warn(&error);
                Err(error.into())
            }
        }
    }
}
