//! The one place that installs a `tracing` subscriber.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::failure::Failure;
use super::telemetry::Telemetry;

/// Variable that holds the level when `--log` is not given; child processes inherit it.
const VARIABLE: &str = "DITMESH_LOG";

/// Sends log lines to stderr: at the level of `--log` or of `DITMESH_LOG`, else warnings, or only
/// errors when quiet; and spans to `telemetry`, whatever that level is.
pub(crate) fn install(
    level: Option<&str>,
    quiet: bool,
    telemetry: &Telemetry,
) -> Result<(), Failure> {
    let variable = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let (source, directives) = match (level, variable) {
        (Some(level), _) => ("--log", level.to_owned()),
        (None, Some(text)) => (VARIABLE, text),
        (None, None) => ("default", if quiet { "error" } else { "warn" }.to_owned()),
    };
    let filter = EnvFilter::try_new(&directives).map_err(|error| {
        let levels = "error, warn, info, debug or trace, or directives such as warn,quinn=debug";
        Failure::usage(format!("{source} is {directives:?}, expected {levels}: {error}"))
    })?;
    let stderr = std::io::stderr;
    let lines =
        fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_filter(filter);
    let subscriber = tracing_subscriber::registry().with(lines).with(telemetry.layer());
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|error| Failure::failed(format!("cannot set up logging: {error}")))?;
    telemetry.explain();
    Ok(())
}
