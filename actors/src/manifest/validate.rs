//! Rules between the values of a manifest.
//!
//! Owns what a manifest must satisfy before anything is started: pure functions of its values, no
//! file and no network is looked at. Does not own syntax or single values (see [`super::parse`]),
//! nor what a model can do (heads, blocks: the planner says that).
//! Invariant: a violation names the value by its path, so that a reader can be shown the line.

mod groups;
mod links;
mod nodes;

use std::collections::HashMap;

use ditmesh_transport::fabric::BULK_LANES_MAX;

use super::error::{ManifestError, Problem};
use super::{CarrierKind, HealthSection, Isolation, Manifest, TelemetrySection, TransportKind};

/// Version of the manifest's format that this build reads.
const SCHEMA: u32 = 1;
/// Least and greatest UDP payload: QUIC's minimum, and what one IPv4 datagram holds.
const MTU_BYTES: std::ops::RangeInclusive<u16> = 1200..=65_507;
/// Longest deadline: a day.
const DEADLINE_MS_MAX: u32 = 24 * 60 * 60 * 1000;

/// Most times that a step may take what it is planned to.
const STEP_DEADLINE_FACTOR_MAX: u32 = 1000;

/// Checks a manifest that a program built; [`super::parse`] has done it for one from a file.
///
/// # Errors
/// With the first rule that does not hold.
pub fn validate(manifest: &Manifest) -> Result<(), ManifestError> {
    check(manifest).map_err(|violation| {
        let message = format!("manifest, `{}`: {}", violation.at, violation.message);
        Problem { message, advice: violation.advice, place: None }.into()
    })
}

/// A rule that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation {
    /// Path of the value, as in `node[1].name`.
    pub(super) at: String,
    /// What is wrong.
    pub(super) message: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

impl Violation {
    fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into(), advice: None }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Checks every rule.
pub(super) fn check(manifest: &Manifest) -> Result<(), Violation> {
    if manifest.schema != SCHEMA {
        let found = manifest.schema;
        let message = format!("schema is {found}, and this build reads schema {SCHEMA}");
        return Err(Violation::new("schema", message).advise("use a ditmesh of the same age"));
    }
    label("cluster.name", "cluster name", &manifest.cluster.name)?;
    nodes::check(manifest)?;
    models(manifest)?;
    groups::check(manifest)?;
    links::check(manifest)?;
    transport(manifest)?;
    health(&manifest.health)?;
    telemetry(&manifest.telemetry)?;
    deadline("launcher.ready_deadline_ms", manifest.launcher.ready_deadline_ms)
}

fn telemetry(telemetry: &TelemetrySection) -> Result<(), Violation> {
    let Some(endpoint) = &telemetry.otlp_endpoint else { return Ok(()) };
    let host = endpoint.strip_prefix("http://").unwrap_or_default();
    if !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace) {
        return Ok(());
    }
    let message = format!("otlp_endpoint is {endpoint:?}, expected http://HOST:PORT");
    let advice = "a collector next to the cluster takes OTLP over HTTP, by habit on port 4318, and \
                  passes it on over TLS";
    Err(Violation::new("telemetry.otlp_endpoint", message).advise(advice))
}

fn models(manifest: &Manifest) -> Result<(), Violation> {
    let mut seen = HashMap::new();
    for (index, model) in manifest.models.iter().enumerate() {
        let at = format!("model[{index}].name");
        if model.name.is_empty() {
            return Err(Violation::new(at, "a model's name is empty"));
        }
        unique(&mut seen, at, "model", &model.name, index)?;
    }
    Ok(())
}

fn transport(manifest: &Manifest) -> Result<(), Violation> {
    let (transport, isolation) = (&manifest.transport, manifest.launcher.isolation);
    if transport.kind == TransportKind::InProcess && isolation == Isolation::Process {
        let message = "transport \"in-process\" cannot connect workers that are processes";
        let advice = "write kind = \"quic\" here, or isolation = \"thread\" under [launcher]";
        return Err(Violation::new("transport.kind", message).advise(advice));
    }
    carriers(manifest)?;
    if !MTU_BYTES.contains(&transport.mtu_bytes) {
        let (least, most) = (MTU_BYTES.start(), MTU_BYTES.end());
        let message = format!("mtu_bytes is {}, expected {least} to {most}", transport.mtu_bytes);
        return Err(Violation::new("transport.mtu_bytes", message));
    }
    let lanes = usize::from(transport.bulk_connections);
    if !(1..=BULK_LANES_MAX).contains(&lanes) {
        let message = format!("bulk_connections is {lanes}, expected 1 to {BULK_LANES_MAX}");
        return Err(Violation::new("transport.bulk_connections", message));
    }
    Ok(())
}

/// What carries which class of links.
fn carriers(manifest: &Manifest) -> Result<(), Violation> {
    let transport = &manifest.transport;
    let classes = [("same_host", transport.same_host), ("other_host", transport.other_host)];
    for (key, class) in classes {
        if transport.kind == TransportKind::InProcess && class.is_some() {
            let message = format!("{key} says what connects processes, and there is only one");
            return Err(Violation::new(format!("transport.{key}"), message));
        }
    }
    let mut addresses = manifest.nodes.iter().map(|node| &node.address);
    let first = addresses.next();
    let several_hosts = addresses.any(|address| Some(address) != first);
    let crosses = transport.carrier(false) == Some(CarrierKind::Ucx);
    if several_hosts && crosses && !transport.trusted_network {
        let message = "ucx would carry what is computed from host to host unencrypted";
        let advice = "write trusted_network = true if everybody on that network may read and \
                      forge it, or other_host = \"quic\"";
        return Err(Violation::new("transport.kind", message).advise(advice));
    }
    Ok(())
}

fn health(health: &HealthSection) -> Result<(), Violation> {
    let HealthSection { heartbeat_ms, suspect_ms, dead_ms, .. } = *health;
    deadline("health.heartbeat_ms", heartbeat_ms)?;
    if suspect_ms <= heartbeat_ms {
        let message =
            format!("suspect_ms ({suspect_ms}) must exceed heartbeat_ms ({heartbeat_ms})");
        let advice = format!("{} allows three lost heartbeats", heartbeat_ms.saturating_mul(4));
        return Err(Violation::new("health.suspect_ms", message).advise(advice));
    }
    if dead_ms <= suspect_ms {
        let message = format!("dead_ms ({dead_ms}) must exceed suspect_ms ({suspect_ms})");
        return Err(Violation::new("health.dead_ms", message));
    }
    deadline("health.dead_ms", dead_ms)?;
    deadline("health.op_deadline_ms", health.op_deadline_ms)?;
    deadline("health.step_deadline_ms", health.step_deadline_ms)?;
    let factor = health.step_deadline_factor;
    if !(1..=STEP_DEADLINE_FACTOR_MAX).contains(&factor) {
        let message =
            format!("step_deadline_factor is {factor}, expected 1 to {STEP_DEADLINE_FACTOR_MAX}");
        return Err(Violation::new("health.step_deadline_factor", message));
    }
    deadline("health.form_deadline_ms", health.form_deadline_ms)
}

fn deadline(at: &str, found: u32) -> Result<(), Violation> {
    if (1..=DEADLINE_MS_MAX).contains(&found) {
        return Ok(());
    }
    let key = at.rsplit('.').next().unwrap_or(at);
    Err(Violation::new(at, format!("{key} is {found}, expected 1 to {DEADLINE_MS_MAX}")))
}

/// Names that become part of certificates: a DNS label in lower case.
fn label(at: &str, what: &str, name: &str) -> Result<(), Violation> {
    const LABEL_CHARS_MAX: usize = 63;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=LABEL_CHARS_MAX).contains(&name.len());
    if fits && name.chars().all(plain) && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(());
    }
    let message = format!("{what} {name:?} cannot stand in a certificate");
    let advice = format!(
        "use 1 to {LABEL_CHARS_MAX} lower-case letters, digits and hyphens, no hyphen at either end"
    );
    Err(Violation::new(at, message).advise(advice))
}

/// Records `name` at position `index` and refuses it when another has it.
fn unique<'n>(
    seen: &mut HashMap<&'n str, usize>,
    at: String,
    what: &str,
    name: &'n str,
    index: usize,
) -> Result<(), Violation> {
    match seen.insert(name, index) {
        Some(first) => {
            let message = format!("{what} name `{name}` is taken by {what} number {}", first + 1);
            Err(Violation::new(at, message).advise("give each a name of its own"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
