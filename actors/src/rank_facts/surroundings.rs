//! What a launcher says in the environment of what it starts.
//!
//! Slurm: the output variables of `srun` (slurm.schedmd.com/srun.html). LeaderWorkerSet: the
//! variables that its controller adds to every container (sigs.k8s.io/lws, api v1).

use super::RankFactsError;
use super::hostlist;

/// What the environment says; nothing where nobody launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Surroundings {
    pub(super) launcher: &'static str,
    /// With the variable's name.
    pub(super) node_rank: Option<(usize, &'static str)>,
    /// With the variable's name.
    pub(super) nodes: Option<(usize, &'static str)>,
    /// All nodes in order of rank, where they are named.
    pub(super) hosts: Vec<String>,
    /// The first node, where only that is named.
    pub(super) leader: Option<String>,
}

type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Surroundings {
    /// Reads them.
    pub(super) fn of(variable: Read<'_>) -> Result<Self, RankFactsError> {
        let nothing = Self {
            launcher: "the manifest",
            node_rank: None,
            nodes: None,
            hosts: Vec::new(),
            leader: None,
        };
        if let Some(rank) = number(variable, "SLURM_NODEID")? {
            return slurm(variable, rank, nothing);
        }
        if let Some(rank) = number(variable, "LWS_WORKER_INDEX")? {
            let nodes = number(variable, "LWS_GROUP_SIZE")?.map(|nodes| (nodes, "LWS_GROUP_SIZE"));
            let leader = set(variable, "LWS_LEADER_ADDRESS");
            let node_rank = Some((rank, "LWS_WORKER_INDEX"));
            return Ok(Self { launcher: "lws", node_rank, nodes, leader, ..nothing });
        }
        Ok(nothing)
    }
}

/// The step's variables go before the job's: a step may have fewer nodes.
fn slurm(
    variable: Read<'_>,
    rank: usize,
    nothing: Surroundings,
) -> Result<Surroundings, RankFactsError> {
    if let Some(local) = number(variable, "SLURM_LOCALID")?
        && local > 0
    {
        return Err(RankFactsError::SecondOnNode { local });
    }
    let mut nodes = None;
    for name in ["SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"] {
        if nodes.is_none() {
            nodes = number(variable, name)?.map(|nodes| (nodes, name));
        }
    }
    let mut hosts = Vec::new();
    for name in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"] {
        if let (true, Some(list)) = (hosts.is_empty(), set(variable, name)) {
            hosts = hostlist::expand(name, &list)?;
        }
    }
    let node_rank = Some((rank, "SLURM_NODEID"));
    Ok(Surroundings { launcher: "slurm", node_rank, nodes, hosts, ..nothing })
}

fn set(variable: Read<'_>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

fn number(variable: Read<'_>, name: &'static str) -> Result<Option<usize>, RankFactsError> {
    let Some(text) = set(variable, name) else { return Ok(None) };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => {
            Err(RankFactsError::Malformed { what: name, found: text, expected: "a number from 0" })
        }
    }
}
