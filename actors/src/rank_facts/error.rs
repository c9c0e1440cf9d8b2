//! Why it is not clear which node a process is.

use super::HOSTS_MAX;

/// Why a node's place could not be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankFactsError {
    /// Nobody says which node this is.
    #[error(
        "nothing says which of the manifest's nodes this is ({}); give --node or --node-rank, or \
         start it with `srun` or in a LeaderWorkerSet",
        known.join(", ")
    )]
    Unknown {
        /// Names in the manifest.
        known: Vec<String>,
    },
    /// A name that is not in the manifest.
    #[error("node \"{node}\" is not in the manifest, which has {}", known.join(", "))]
    UnknownNode {
        /// The name.
        node: String,
        /// Names in the manifest.
        known: Vec<String>,
    },
    /// A name and a rank that are two nodes.
    #[error("--node {node} is number {rank} in the manifest, and --node-rank is {other}; give one")]
    TwoNodes {
        /// The name.
        node: String,
        /// Its position.
        rank: usize,
        /// The rank given.
        other: u32,
    },
    /// A rank past the manifest's last node.
    #[error("{said_by} is {rank}, and the manifest has {nodes} nodes, counted from 0")]
    Outside {
        /// The rank.
        rank: usize,
        /// The flag or variable.
        said_by: &'static str,
        /// Nodes in the manifest.
        nodes: usize,
    },
    /// The launcher started more or fewer nodes than the manifest has.
    #[error("{said_by} is {nodes}, and the manifest has {manifest} nodes; start one for each")]
    Count {
        /// Nodes started.
        nodes: usize,
        /// The flag or variable.
        said_by: &'static str,
        /// Nodes in the manifest.
        manifest: usize,
    },
    /// Slurm started several agents on one node.
    #[error(
        "SLURM_LOCALID is {local}: one agent serves a whole node; start them with \
         --ntasks-per-node=1"
    )]
    SecondOnNode {
        /// Its number on this node.
        local: usize,
    },
    /// A value that cannot be read.
    #[error("{what} is {found:?}, expected {expected}")]
    Malformed {
        /// The flag or variable.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// A list of hosts that is too long.
    #[error("{what} names more than {HOSTS_MAX} hosts")]
    TooManyHosts {
        /// The variable.
        what: &'static str,
    },
    /// The coordinator's port is not known to the others.
    #[error(
        "control_port of node \"{node}\" is 0, so that other nodes cannot find the coordinator \
         there; write a port into the manifest or give --control-port or --coordinator"
    )]
    NoPort {
        /// The coordinator's node.
        node: String,
    },
    /// The environment names the leader only, and the coordinator is somewhere else.
    #[error(
        "LWS_LEADER_ADDRESS is the first node's, and the coordinator is on \"{node}\"; make that \
         the first node, or give --coordinator"
    )]
    LeaderElsewhere {
        /// The coordinator's node.
        node: String,
    },
    /// The manifest is empty.
    #[error("the manifest has no node")]
    NoNodes,
}
