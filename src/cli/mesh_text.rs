//! A cluster in words: nodes, devices, who holds which blocks, links.
//!
//! Owns the layout of the text. Pure; what is shown comes from the coordinator.

use std::collections::BTreeMap;
use std::fmt::Write;

use ditmesh::{ClusterStatus, Dtype};
use ditmesh_actors::protocol::LinkMeasured;
use ditmesh_actors::status::{DeviceStatus, MeshStatus, RequestStatus};

/// The whole cluster.
pub(crate) fn describe(status: &ClusterStatus) -> String {
    let ClusterStatus { cluster, build, coordinator, queued, running, .. } = status;
    let mut text = format!(
        "cluster {cluster} (ditmesh {build}), coordinator at {coordinator}, {running} running, \
         {queued} queued\n\n"
    );
    text.push_str(&devices(status));
    if status.joins_refused > 0 {
        let _ = writeln!(text, "machines that were not let in: {}", status.joins_refused);
    }
    if status.callers_refused > 0 {
        let _ = writeln!(text, "callers that were turned away: {}", status.callers_refused);
    }
    for node in &status.nodes {
        for device in node.devices.iter().filter(|device| device.callers_refused > 0) {
            let (name, DeviceStatus { index, callers_refused, .. }) = (&node.name, device);
            let _ = writeln!(text, "callers that {name}/{index} turned away: {callers_refused}");
        }
    }
    text.push('\n');
    match &status.mesh {
        Some(mesh) => text.push_str(&mesh_text(mesh)),
        None => {
            let cause = status.mesh_absent.as_deref().unwrap_or("it is being formed");
            let _ = writeln!(text, "no mesh: {cause}");
        }
    }
    for request in &status.requests {
        let RequestStatus { request, epoch, step, steps, waits_for } = request;
        let _ = match waits_for.as_str() {
            "" => writeln!(text, "request {request}: step {step} of {steps} on epoch {epoch}"),
            whom => writeln!(text, "request {request}: waits for {whom}"),
        };
    }
    text
}

fn devices(status: &ClusterStatus) -> String {
    let titles = ["node", "state", "process", "incarnation", "data plane", "speed"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let number = |number: u64| if number == 0 { String::new() } else { number.to_string() };
    for node in &status.nodes {
        rows.push(vec![
            node.name.clone(),
            node.state.clone(),
            number(node.process.into()),
            number(node.incarnation),
        ]);
        for device in &node.devices {
            rows.push(vec![
                format!("  {} {}", device.kind, device.index),
                device.state.clone(),
                number(device.process.into()),
                number(device.incarnation),
                device.address.clone(),
                speed(device.flops_per_s.map(|rate| rate as f64)),
            ]);
        }
    }
    table(&rows)
}

/// What a device was measured to sustain.
pub(super) fn speed(flops_per_s: Option<f64>) -> String {
    flops_per_s.map_or_else(|| "not measured".into(), |rate| format!("{:.1} GFLOP/s", rate / 1e9))
}

fn mesh_text(mesh: &MeshStatus) -> String {
    let dtype = match mesh.dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    };
    let MeshStatus { epoch, model, degrees, .. } = mesh;
    let mut text = format!("mesh of epoch {epoch}: {model} in {dtype}, {degrees}\n");
    let titles = ["rank", "device", "branch", "stage", "sequence", "blocks", "weights read"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(mesh.ranks.iter().map(|rank| {
        vec![
            rank.rank.to_string(),
            rank.device.clone(),
            rank.cfg.to_string(),
            rank.stage.to_string(),
            rank.sp.to_string(),
            format!("{}..{}", rank.blocks.0, rank.blocks.1),
            format!("{:.2} MB", rank.weight_bytes_read as f64 / 1e6),
        ]
    }));
    text.push_str(&table(&rows));
    let mut links: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for link in &mesh.links {
        let carrier = (link.transport.as_str(), link.why.as_str());
        links.entry(carrier).or_default().push(format!("{}-{}", link.a, link.b));
    }
    for ((transport, why), pairs) in links {
        let _ = writeln!(text, "links over {transport} ({why}): {}", pairs.join(" "));
    }
    for link in &mesh.links {
        if let Some(LinkMeasured { round_trip_us, bytes_per_s }) = link.measured {
            let (a, b, rate) = (link.a, link.b, bytes_per_s as f64 / 1e6);
            let _ = writeln!(text, "link {a}-{b}: {rate:.0} MB/s, round trip {round_trip_us} us");
        }
    }
    text
}

/// Columns of equal width, two spaces apart.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |c| c.chars().count());
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use ditmesh::Degrees;
    use ditmesh_actors::status::{LinkStatus, NodeStatus, RankStatus};

    use super::*;

    fn status() -> ClusterStatus {
        let device = DeviceStatus {
            index: 0,
            kind: "cpu".into(),
            state: "in mesh".into(),
            incarnation: 3,
            process: 4711,
            address: "127.0.0.1:40000".into(),
            callers_refused: 0,
            flops_per_s: None,
        };
        let rank = |rank: u32| RankStatus {
            rank,
            device: format!("a/{rank}"),
            data: 0,
            cfg: 0,
            stage: rank,
            sp: 0,
            blocks: (4 * rank, 4 * rank + 4),
            weight_bytes_read: 1_500_000,
        };
        ClusterStatus {
            cluster: "demo".into(),
            build: "0.1.0".into(),
            coordinator: "127.0.0.1:7000".into(),
            nodes: vec![NodeStatus {
                name: "a".into(),
                state: "alive".into(),
                incarnation: 1,
                process: 0,
                devices: vec![device],
            }],
            mesh: Some(MeshStatus {
                epoch: 2,
                model: "built-in".into(),
                dtype: Dtype::F32,
                degrees: Degrees { pipefusion_degree: 2, ..Degrees::default() },
                ranks: vec![rank(0), rank(1)],
                links: vec![LinkStatus {
                    a: 0,
                    b: 1,
                    transport: "quic".into(),
                    why: "as told".into(),
                    measured: Some(LinkMeasured { round_trip_us: 90, bytes_per_s: 117_000_000 }),
                }],
            }),
            requests: vec![
                RequestStatus {
                    request: 7,
                    epoch: 2,
                    step: 3,
                    steps: 20,
                    waits_for: String::new(),
                },
                RequestStatus {
                    request: 8,
                    epoch: 0,
                    step: 0,
                    steps: 0,
                    waits_for: "request 7".into(),
                },
            ],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn everything_a_user_asks_for_is_in_the_text() {
        let text = describe(&status());
        for part in [
            "cluster demo",
            "  cpu 0  in mesh  4711     3            127.0.0.1:40000  not measured",
            "mesh of epoch 2: built-in in f32, cfg 1 x pipefusion 2",
            "1     a/1     0       1      0         4..8    1.50 MB",
            "links over quic (as told): 0-1",
            "link 0-1: 117 MB/s, round trip 90 us",
            "request 7: step 3 of 20 on epoch 2\n",
            "request 8: waits for request 7\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_device_that_was_measured_says_how_fast_it_is() {
        let mut measured = status();
        measured.nodes[0].devices[0].flops_per_s = Some(41_234_000_000);
        let text = describe(&measured);
        assert!(text.contains("127.0.0.1:40000  41.2 GFLOP/s\n"), "{text}");
    }

    #[test]
    fn who_was_turned_away_is_counted_where_somebody_was() {
        let mut refused = ClusterStatus { joins_refused: 2, callers_refused: 7, ..status() };
        refused.nodes[0].devices[0].callers_refused = 5;
        let text = describe(&refused);
        for part in [
            "machines that were not let in: 2",
            "callers that were turned away: 7",
            "callers that a/0 turned away: 5",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
            assert!(!describe(&status()).contains(part));
        }
    }

    #[test]
    fn an_absent_mesh_says_why() {
        let absent =
            ClusterStatus { mesh: None, mesh_absent: Some("node `b` is dead".into()), ..status() };
        assert!(describe(&absent).contains("no mesh: node `b` is dead"));
    }
}
