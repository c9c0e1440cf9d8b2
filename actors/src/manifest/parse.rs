//! Reading a manifest from TOML, with the line and column of whatever is wrong.
//!
//! Owns the mapping from keys to the schema and the resolution of relative paths. Rules between
//! values are in [`super::validate`], which runs here so that its findings get a place too.
//! Invariants: every key is known or refused; a manifest that is returned has passed every rule.

mod places;
mod section;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use self::places::Places;
use self::section::{Fault, Section};
use super::error::{ManifestError, Place, Problem};
use super::{
    ClusterSection, CoordinatorSection, DegreesSetting, DegreesTable, DeviceSection, GroupSection,
    HealthSection, LauncherSection, LinkSection, Manifest, ModelSection, NodeSection,
    SecuritySection, TelemetrySection, TransportSection, default_address, default_state_dir,
    validate,
};
use crate::request::wire::{Axis, Wire, WireDtype};

/// Bytes of a manifest beyond which it is refused.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks the manifest `path`; relative paths in it become absolute, against its folder.
///
/// # Errors
/// When the file cannot be read, or its content is not a valid manifest.
pub fn load(path: &Path) -> Result<Manifest, ManifestError> {
    let read = |source| ManifestError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let found = file.metadata().map_err(read)?.len();
    if found > MANIFEST_BYTES_MAX {
        let (path, limit) = (path.to_owned(), MANIFEST_BYTES_MAX);
        return Err(ManifestError::TooLarge { path, found, limit });
    }
    let mut text = String::new();
    file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
    let mut manifest = from_str(&text, &path.display().to_string())?;
    let absolute = std::path::absolute(path).map_err(read)?;
    resolve(&mut manifest, absolute.parent().unwrap_or(Path::new("/")));
    Ok(manifest)
}

/// Reads and checks a manifest from `text`; `name` stands for it in errors. Relative paths stay.
///
/// # Errors
/// When the text is not a valid manifest.
pub fn from_str(text: &str, name: &str) -> Result<Manifest, ManifestError> {
    let problem = |fault: Fault| Problem {
        message: fault.message,
        advice: fault.advice,
        place: Some(Place::of(name, text, fault.span.start, fault.span.end)),
    };
    let root = DeTable::parse(text).map_err(|error| {
        let message = error.message().trim().replace('\n', ", ");
        problem(Fault { span: error.span().unwrap_or(0..0), message, advice: None })
    })?;
    let table = root.get_ref();
    let manifest = manifest(&Section::root(table)).map_err(problem)?;
    if let Err(violation) = validate::check(&manifest) {
        let places = Places::of(table);
        let span = places.nearest(&violation.at);
        let message = violation.message;
        return Err(problem(Fault { span, message, advice: violation.advice }).into());
    }
    Ok(manifest)
}

fn resolve(manifest: &mut Manifest, folder: &Path) {
    let absolute = |path: &mut PathBuf| *path = folder.join(&*path);
    absolute(&mut manifest.cluster.state_dir);
    manifest.security.certs_dir.iter_mut().for_each(absolute);
    manifest.launcher.ssh_config.iter_mut().for_each(absolute);
    for model in &mut manifest.models {
        if model.path.as_os_str() != BUILT_IN {
            absolute(&mut model.path);
        }
    }
}

/// Path and name of the model that ships with the project.
const BUILT_IN: &str = "built-in";

fn manifest(root: &Section<'_, '_>) -> Result<Manifest, Fault> {
    root.keys(&[
        "schema",
        "cluster",
        "coordinator",
        "node",
        "model",
        "group",
        "link",
        "transport",
        "health",
        "security",
        "launcher",
        "telemetry",
    ])?;
    let mut models = root.sections("model")?.iter().map(model).collect::<Result<Vec<_>, _>>()?;
    if models.is_empty() {
        let (name, path) = (BUILT_IN.to_owned(), PathBuf::from(BUILT_IN));
        let (dtype, text_encoder) = Default::default();
        models.push(ModelSection { name, path, dtype, text_encoder });
    }
    Ok(Manifest {
        schema: root.required("schema")?,
        cluster: root.required_section("cluster").and_then(|section| cluster(&section))?,
        coordinator: root
            .section("coordinator")?
            .map(|section| coordinator(&section))
            .transpose()?,
        nodes: root.sections("node")?.iter().map(node).collect::<Result<_, _>>()?,
        models,
        groups: root.sections("group")?.iter().map(group).collect::<Result<_, _>>()?,
        links: root.sections("link")?.iter().map(link).collect::<Result<_, _>>()?,
        transport: transport(root)?,
        health: root.section("health")?.map_or(Ok(Default::default()), |s| health(&s))?,
        security: root.section("security")?.map_or(Ok(Default::default()), |s| security(&s))?,
        launcher: root.section("launcher")?.map_or(Ok(Default::default()), |s| launcher(&s))?,
        telemetry: root.section("telemetry")?.map_or(Ok(Default::default()), |s| telemetry(&s))?,
    })
}

fn cluster(section: &Section<'_, '_>) -> Result<ClusterSection, Fault> {
    section.keys(&["name", "state_dir"])?;
    Ok(ClusterSection {
        name: section.required("name")?,
        state_dir: section.or("state_dir", default_state_dir())?,
    })
}

fn coordinator(section: &Section<'_, '_>) -> Result<CoordinatorSection, Fault> {
    section.keys(&["node"])?;
    Ok(CoordinatorSection { node: section.required("node")? })
}

fn node(section: &Section<'_, '_>) -> Result<NodeSection, Fault> {
    section.keys(&["name", "address", "control_port", "bulk_ports", "device"])?;
    Ok(NodeSection {
        name: section.required("name")?,
        address: section.or("address", default_address())?,
        control_port: section.or("control_port", 0)?,
        bulk_ports: section.optional("bulk_ports")?,
        devices: section.sections("device")?.iter().map(device).collect::<Result<_, _>>()?,
    })
}

fn device(section: &Section<'_, '_>) -> Result<DeviceSection, Fault> {
    section.keys(&["kind", "index", "threads", "cores", "memory_bytes", "profile"])?;
    Ok(DeviceSection {
        kind: section.or("kind", Default::default())?,
        index: section.optional("index")?,
        threads: section.optional("threads")?,
        cores: section.or("cores", Vec::new())?,
        memory_bytes: section.optional("memory_bytes")?,
        profile: section.optional("profile")?,
    })
}

fn link(section: &Section<'_, '_>) -> Result<LinkSection, Fault> {
    section.keys(&["class", "nodes", "bytes_per_s", "latency_s", "message_s"])?;
    Ok(LinkSection {
        class: section.or("class", Default::default())?,
        nodes: section.or("nodes", Vec::new())?,
        bytes_per_s: section.required("bytes_per_s")?,
        latency_s: section.or("latency_s", 0.0)?,
        message_s: section.or("message_s", 0.0)?,
    })
}

fn model(section: &Section<'_, '_>) -> Result<ModelSection, Fault> {
    section.keys(&["name", "path", "dtype", "text_encoder"])?;
    Ok(ModelSection {
        name: section.required("name")?,
        path: section.required("path")?,
        dtype: section.or("dtype", Default::default())?,
        text_encoder: section.or("text_encoder", Default::default())?,
    })
}

fn group(section: &Section<'_, '_>) -> Result<GroupSection, Fault> {
    section.keys(&[
        "model",
        "nodes",
        "degrees",
        "max_batch",
        "checkpoint_every",
        "quality",
        "wire_dtype",
        "wire_residual",
        "wire_refresh_every",
    ])?;
    Ok(GroupSection {
        model: section.required("model")?,
        nodes: section.or("nodes", Vec::new())?,
        degrees: degrees(section)?,
        max_batch: section.or("max_batch", super::default_max_batch())?,
        checkpoint_every: section.or("checkpoint_every", super::default_checkpoint_every())?,
        wire: wire(section)?,
        quality: section.or("quality", Default::default())?,
    })
}

/// What travels in fewer bytes: one element type for all axes, or a table of axes.
fn wire(group: &Section<'_, '_>) -> Result<Wire, Fault> {
    let mut wire = Wire::default();
    if group.is_table("wire_dtype") {
        let names = Axis::CHOOSABLE.map(Axis::name);
        if let Some(section) = group.section("wire_dtype")? {
            section.keys(&names)?;
            for axis in Axis::CHOOSABLE {
                wire.set(axis, section.or(axis.name(), WireDtype::F32)?);
            }
        }
    } else {
        let dtype = group.or("wire_dtype", WireDtype::F32)?;
        Axis::CHOOSABLE.into_iter().for_each(|axis| wire.set(axis, dtype));
    }
    wire.residual = group.or("wire_residual", wire.residual)?;
    wire.refresh_every = group.or("wire_refresh_every", wire.refresh_every)?;
    Ok(wire)
}

/// By hand, because an untagged enum would hide which degree is misspelt.
fn degrees(group: &Section<'_, '_>) -> Result<DegreesSetting, Fault> {
    if group.word("degrees", "auto", "a table of degrees")? {
        return Ok(DegreesSetting::Auto);
    }
    let Some(section) = group.section("degrees")? else { return Ok(DegreesSetting::Auto) };
    section.keys(&[
        "cfg_degree",
        "pipefusion_degree",
        "ulysses_degree",
        "ring_degree",
        "data_degree",
    ])?;
    Ok(DegreesSetting::Fixed(DegreesTable {
        cfg_degree: section.or("cfg_degree", 1)?,
        pipefusion_degree: section.or("pipefusion_degree", 1)?,
        ulysses_degree: section.or("ulysses_degree", 1)?,
        ring_degree: section.or("ring_degree", 1)?,
        data_degree: section.or("data_degree", 1)?,
    }))
}

/// One word stands for a table that says nothing else.
fn transport(root: &Section<'_, '_>) -> Result<TransportSection, Fault> {
    let default = TransportSection::default();
    if !root.is_table("transport") {
        return Ok(TransportSection { kind: root.or("transport", default.kind)?, ..default });
    }
    let section = root.required_section("transport")?;
    section.keys(&[
        "kind",
        "same_host",
        "other_host",
        "trusted_network",
        "ucx_devices",
        "mtu_bytes",
        "bulk_connections",
        "congestion",
    ])?;
    Ok(TransportSection {
        kind: section.or("kind", default.kind)?,
        same_host: section.optional("same_host")?,
        other_host: section.optional("other_host")?,
        trusted_network: section.or("trusted_network", default.trusted_network)?,
        ucx_devices: section.optional("ucx_devices")?,
        mtu_bytes: section.or("mtu_bytes", default.mtu_bytes)?,
        bulk_connections: section.or("bulk_connections", default.bulk_connections)?,
        congestion: section.or("congestion", default.congestion)?,
    })
}

fn health(section: &Section<'_, '_>) -> Result<HealthSection, Fault> {
    section.keys(&[
        "heartbeat_ms",
        "suspect_ms",
        "dead_ms",
        "op_deadline_ms",
        "step_deadline_ms",
        "step_deadline_factor",
        "form_deadline_ms",
    ])?;
    let default = HealthSection::default();
    Ok(HealthSection {
        heartbeat_ms: section.or("heartbeat_ms", default.heartbeat_ms)?,
        suspect_ms: section.or("suspect_ms", default.suspect_ms)?,
        dead_ms: section.or("dead_ms", default.dead_ms)?,
        op_deadline_ms: section.or("op_deadline_ms", default.op_deadline_ms)?,
        step_deadline_ms: section.or("step_deadline_ms", default.step_deadline_ms)?,
        step_deadline_factor: section.or("step_deadline_factor", default.step_deadline_factor)?,
        form_deadline_ms: section.or("form_deadline_ms", default.form_deadline_ms)?,
    })
}

fn security(section: &Section<'_, '_>) -> Result<SecuritySection, Fault> {
    section.keys(&["certs_dir"])?;
    Ok(SecuritySection { certs_dir: section.optional("certs_dir")? })
}

fn launcher(section: &Section<'_, '_>) -> Result<LauncherSection, Fault> {
    section.keys(&[
        "kind",
        "isolation",
        "restarts_max",
        "measure_devices",
        "ready_deadline_ms",
        "program",
        "ssh_config",
        "ssh_host_keys",
    ])?;
    let default = LauncherSection::default();
    Ok(LauncherSection {
        kind: section.or("kind", default.kind)?,
        isolation: section.or("isolation", default.isolation)?,
        restarts_max: section.or("restarts_max", default.restarts_max)?,
        measure_devices: section.or("measure_devices", default.measure_devices)?,
        ready_deadline_ms: section.or("ready_deadline_ms", default.ready_deadline_ms)?,
        program: section.or("program", default.program)?,
        ssh_config: section.optional("ssh_config")?,
        ssh_host_keys: section.or("ssh_host_keys", default.ssh_host_keys)?,
    })
}

fn telemetry(section: &Section<'_, '_>) -> Result<TelemetrySection, Fault> {
    section.keys(&["otlp_endpoint"])?;
    Ok(TelemetrySection { otlp_endpoint: section.optional("otlp_endpoint")? })
}

#[cfg(test)]
mod tests;
