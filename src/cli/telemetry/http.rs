//! One HTTP request of the exporter: blocking, on the exporter's own thread.

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
    /// A failure was warned of; later ones are not.
    warned: AtomicBool,
}

impl Client {
    /// A client whose requests end within `deadline`.
    pub(super) fn new(deadline: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(deadline))
            .http_status_as_error(false)
            .max_redirects(0)
            // Spans go where the user said and nowhere else.
            .proxy(None)
            .build();
        Self { agent: config.into(), warned: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let response = self.agent.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        let body = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    fn warn(&self, cause: &dyn std::fmt::Display) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "spans are lost: the OpenTelemetry collector does not take them: {cause}"
            );
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        match self.send(request) {
            Ok(response) => {
                if !response.status().is_success() {
                    self.warn(&response.status());
                }
                Ok(response)
            }
            Err(error) => {
                self.warn(&error);
                Err(error.into())
            }
        }
    }
}
