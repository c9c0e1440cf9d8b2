//! The manifest as pods see it: the file's own text, with what is different in a pod.
//!
//! Comments and everything else stay. Invariant: what comes out is a valid manifest.

use ditmesh::{Manifest, manifest};
use toml_edit::{DocumentMut, Item, value};

use super::pod::{CERTS_DIR, STATE_DIR};
use crate::cli::failure::Failure;

/// The text of `source` with certificates and state where pods have them, and the coordinator
/// behind the name and port of its Service.
pub(super) fn in_pods(
    source: &str,
    of: &Manifest,
    coordinator: &str,
    port: u16,
) -> Result<String, Failure> {
    let mut document: DocumentMut = source.parse().map_err(Failure::usage)?;
    document["cluster"]["state_dir"] = value(STATE_DIR);
    let security = &mut document["security"];
    if security.is_none() {
        *security = toml_edit::table();
    }
    security["certs_dir"] = value(CERTS_DIR);
    let host = of.nodes.iter().position(|node| node.name == of.coordinator_node()).unwrap_or(0);
    let Some(node) = node_at(&mut document["node"], host) else {
        return Err(Failure::usage("the manifest's nodes are no [[node]] tables"));
    };
    node.insert("address", value(coordinator));
    node.insert("control_port", value(i64::from(port)));
    let text = document.to_string();
    manifest::parse::from_str(&text, "the manifest in pods")?;
    Ok(text)
}

fn node_at(nodes: &mut Item, index: usize) -> Option<&mut dyn toml_edit::TableLike> {
    match nodes {
        Item::ArrayOfTables(tables) => {
            tables.get_mut(index).map(|table| table as &mut dyn toml_edit::TableLike)
        }
        Item::Value(list) => list
            .as_array_mut()?
            .get_mut(index)?
            .as_inline_table_mut()
            .map(|table| table as &mut dyn toml_edit::TableLike),
        _ => None,
    }
}
