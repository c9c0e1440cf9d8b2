//! Traces: spans of this process to an OpenTelemetry collector, by OTLP over HTTP.
//!
//! Owns the exporter and when it ends. Does not own what is traced; the library does that, through
//! `tracing`. Invariants: a collector that is slow, full or gone costs spans and one warning, never
//! time or a run; nothing of what the environment says (headers may be secrets) is logged.

mod http;

use std::time::Duration;

use ditmesh::manifest;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

use super::args::Command;

/// Variables of the OpenTelemetry specification that name the collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Path of traces below the base URL of a collector.
const TRACES_PATH: &str = "/v1/traces";
/// Spans that wait to be exported; more are dropped. A rank makes one for each step and patch.
const SPANS_QUEUED_MAX: usize = 16_384;
/// Spans of one export.
const SPANS_EXPORTED_MAX: usize = 2048;
/// Between exports.
const EXPORT_PAUSE: Duration = Duration::from_millis(500);
/// Longest export.
const EXPORT_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for the last spans at the end of this process.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// The exporter of this process, if there is one.
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
    /// Why there is none although one was asked for.
    failure: Option<String>,
    losses: http::Losses,
}

impl Telemetry {
    /// What the environment asks for, else the manifest that `command` names.
    pub(crate) fn of(command: &Command) -> Self {
        let endpoint = ENDPOINTS.iter().find_map(|name| set(name));
        // The environment's own endpoint is the exporter's to read, its rules about paths included.
        let (url, explicit) = match endpoint {
            Some(url) => (url, None),
            None => match of_manifest(command) {
                Some(base) => {
                    let url = format!("{}{TRACES_PATH}", base.trim_end_matches('/'));
                    (url.clone(), Some(url))
                }
                None => return Self::none(),
            },
        };
        if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Self::none();
        }
        let losses = http::Losses::default();
        match start(&url, explicit, role(command), losses.clone()) {
            Ok(provider) => Self { provider: Some(provider), failure: None, losses },
            Err(failure) => Self { failure: Some(failure), ..Self::none() },
        }
    }

    fn none() -> Self {
        Self { provider: None, failure: None, losses: http::Losses::default() }
    }

    /// Takes the spans of ditmesh; nothing when nobody asked for traces.
    pub(crate) fn layer<S>(&self) -> Option<impl Layer<S> + use<S>>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = self.provider.as_ref()?.tracer("ditmesh");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(Targets::new().with_target("ditmesh", LevelFilter::INFO)))
    }

    /// Says why there are no traces, once there is a log to say it in.
    pub(crate) fn explain(&self) {
        if let Some(failure) = &self.failure {
            tracing::warn!("no traces: {failure}");
        }
    }

    /// Exports what is left, within a deadline.
    pub(crate) fn end(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_DEADLINE)
        {
            self.losses.warn(&error);
        }
    }
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn of_manifest(command: &Command) -> Option<String> {
    let cluster = match command {
        Command::Generate(args) => args.cluster.as_deref(),
        Command::Agent(args) => args.cluster.as_deref(),
        _ => None,
    };
    // A manifest that cannot be read is the command's to report.
    manifest::parse::load(cluster?).ok()?.telemetry.otlp_endpoint
}

fn role(command: &Command) -> &'static str {
    match command {
        Command::Agent(_) => "agent",
        Command::Worker => "worker",
        _ => "client",
    }
}

fn start(
    url: &str,
    explicit: Option<String>,
    role: &'static str,
    losses: http::Losses,
) -> Result<SdkTracerProvider, String> {
    if !url.starts_with("http://") {
        return Err("the OTLP endpoint is not http://; send to a collector nearby, which passes \
                    traces on over TLS"
            .into());
    }
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_DEADLINE)
        .with_http_client(http::Client::new(EXPORT_DEADLINE, losses));
    if let Some(url) = explicit {
        exporter = exporter.with_endpoint(url);
    }
    let exporter = exporter.build().map_err(|error| error.to_string())?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_QUEUED_MAX)
        .with_max_export_batch_size(SPANS_EXPORTED_MAX)
        .with_scheduled_delay(EXPORT_PAUSE)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("process.pid", i64::from(std::process::id())),
        KeyValue::new("ditmesh.role", role),
    ]);
    if set("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("ditmesh");
    }
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_resource(resource.build())
        .build())
}
