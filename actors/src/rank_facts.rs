//! Which node of the manifest this process is, where the coordinator is, how many nodes there are:
//! from flags, else from what the launcher put into the environment, else from the manifest.
//!
//! Owns the order of precedence and the variables of Slurm (`SLURM_*`) and of Kubernetes'
//! LeaderWorkerSet (`LWS_*`). Pure: the environment is an argument. Looks nothing up and starts
//! nothing.
//!
//! Invariant: facts that disagree with the manifest are an error, never a guess.

mod error;
mod hostlist;
mod surroundings;

pub use error::RankFactsError;
pub use hostlist::HOSTS_MAX;

use crate::manifest::{Manifest, NodeSection};
use surroundings::Surroundings;

/// What the command line says; each of these goes before what the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankFlags {
    /// Name of this node in the manifest.
    pub node: Option<String>,
    /// Position of this node in the manifest, from 0.
    pub node_rank: Option<u32>,
    /// How many nodes were started.
    pub nodes: Option<u32>,
    /// Where the coordinator is, `HOST:PORT`.
    pub coordinator: Option<String>,
    /// Host name or address by which other nodes reach this one.
    pub address: Option<String>,
    /// Control port, in place of the manifest's.
    pub control_port: Option<u16>,
}

/// One node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankFacts {
    /// Position in the manifest, from 0.
    pub node_rank: usize,
    /// Where the coordinator is, `HOST:PORT`; `None` on the node that hosts it.
    pub coordinator: Option<String>,
    /// What each node is reached by, in the manifest's order, where the launcher knows better than
    /// the manifest.
    pub addresses: Vec<Option<String>>,
    /// Control port of the nodes, in place of the manifest's.
    pub control_port: Option<u16>,
    /// Who said so: `flags`, `slurm`, `lws`, `the manifest`.
    pub source: &'static str,
}

impl RankFacts {
    /// Finds them. `variable` reads the environment.
    ///
    /// # Errors
    /// [`RankFactsError`], when nobody says which node this is, or two sources disagree.
    pub fn find(
        flags: &RankFlags,
        variable: &dyn Fn(&str) -> Option<String>,
        manifest: &Manifest,
    ) -> Result<Self, RankFactsError> {
        let around = Surroundings::of(variable)?;
        let count = manifest.nodes.len();
        let node_rank = node_rank(flags, &around, manifest)?;
        check_count(flags, &around, count)?;
        let host = host_index(manifest);
        let mut addresses: Vec<Option<String>> = vec![None; count];
        for (address, found) in addresses.iter_mut().zip(&around.hosts) {
            *address = Some(found.clone());
        }
        if let (Some(leader), Some(first)) = (&around.leader, addresses.first_mut()) {
            *first = Some(leader.clone());
        }
        if let (Some(own), Some(address)) = (&flags.address, addresses.get_mut(node_rank)) {
            *address = Some(own.clone());
        }
        let said = flags.node.is_some() || flags.node_rank.is_some();
        let facts = Self {
            node_rank,
            coordinator: None,
            addresses,
            control_port: flags.control_port,
            source: if said { "flags" } else { around.launcher },
        };
        if host == node_rank {
            return Ok(facts);
        }
        let coordinator = match &flags.coordinator {
            Some(given) => host_port(given)?,
            None => facts.coordinator_of(&around, manifest, host)?,
        };
        Ok(Self { coordinator: Some(coordinator), ..facts })
    }

    fn coordinator_of(
        &self,
        around: &Surroundings,
        manifest: &Manifest,
        host: usize,
    ) -> Result<String, RankFactsError> {
        let Some(node) = manifest.nodes.get(host) else { return Err(RankFactsError::NoNodes) };
        if around.leader.is_some() && host != 0 {
            return Err(RankFactsError::LeaderElsewhere { node: node.name.clone() });
        }
        let port = self.control_port.unwrap_or(node.control_port);
        if port == 0 {
            return Err(RankFactsError::NoPort { node: node.name.clone() });
        }
        let named = self.addresses.get(host).cloned().flatten();
        let address = named.unwrap_or_else(|| node.address.clone());
        Ok(if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        })
    }

    /// The manifest as it is for this node: addresses and control port of whoever is known.
    pub fn place(&self, manifest: &mut Manifest) {
        let host = host_index(manifest);
        for (index, (node, address)) in manifest.nodes.iter_mut().zip(&self.addresses).enumerate() {
            if let Some(address) = address {
                node.address.clone_from(address);
            }
            if let Some(port) = self.control_port
                && (index == self.node_rank || index == host)
            {
                node.control_port = port;
            }
        }
    }

    /// This node's section.
    pub fn node<'m>(&self, manifest: &'m Manifest) -> Option<&'m NodeSection> {
        manifest.nodes.get(self.node_rank)
    }
}

/// Position of the coordinator's node.
fn host_index(manifest: &Manifest) -> usize {
    let name = manifest.coordinator_node();
    manifest.nodes.iter().position(|node| node.name == name).unwrap_or(0)
}

fn node_rank(
    flags: &RankFlags,
    around: &Surroundings,
    manifest: &Manifest,
) -> Result<usize, RankFactsError> {
    let count = manifest.nodes.len();
    let known = || manifest.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    if let Some(name) = &flags.node {
        let found = manifest.nodes.iter().position(|node| node.name == *name);
        let rank = found
            .ok_or_else(|| RankFactsError::UnknownNode { node: name.clone(), known: known() })?;
        return match flags.node_rank {
            Some(other) if other as usize != rank => {
                Err(RankFactsError::TwoNodes { node: name.clone(), rank, other })
            }
            _ => Ok(rank),
        };
    }
    let (rank, said_by) = match (flags.node_rank, around.node_rank) {
        (Some(rank), _) => (rank as usize, "--node-rank"),
        (None, Some((rank, variable))) => (rank, variable),
        (None, None) if count == 1 => return Ok(0),
        (None, None) => return Err(RankFactsError::Unknown { known: known() }),
    };
    if rank >= count {
        return Err(RankFactsError::Outside { rank, said_by, nodes: count });
    }
    Ok(rank)
}

fn check_count(
    flags: &RankFlags,
    around: &Surroundings,
    manifest: usize,
) -> Result<(), RankFactsError> {
    let said = flags.nodes.map(|nodes| (nodes as usize, "--nodes")).or(around.nodes);
    match said {
        Some((nodes, said_by)) if nodes != manifest => {
            Err(RankFactsError::Count { nodes, said_by, manifest })
        }
        _ => Ok(()),
    }
}

/// `HOST:PORT` with a port that can be dialled.
fn host_port(text: &str) -> Result<String, RankFactsError> {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok()?;
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        (!host.is_empty() && !bare_v6 && port > 0).then_some(port)
    });
    match port {
        Some(_) => Ok(text.to_owned()),
        None => Err(RankFactsError::Malformed {
            what: "--coordinator",
            found: text.to_owned(),
            expected: "HOST:PORT",
        }),
    }
}

#[cfg(test)]
mod tests;
