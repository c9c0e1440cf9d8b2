//! What a host finds out about itself and its ways to others, when a client asks for it
//! (`ditmesh doctor`).

/// How bad a finding is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    serde::Serialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Links work, and could be faster or safer.
    Slow,
    /// Could not be looked at.
    Unknown,
    /// Links do not work, or will not for long.
    Problem,
}

/// One thing that was looked at.
#[derive(
    Clone, Debug, PartialEq, Eq, serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Finding {
    /// What was looked at, in one or two words.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// The node on whose host it was looked at; absent for the host of whoever asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What was found.
    pub found: String,
    /// The command that fixes it; there is one for whatever is not as it should be.
    pub fix: Option<String>,
}

/// A port to be asked.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Target {
    /// Whose it is.
    pub node: String,
    /// `HOST:PORT`.
    pub address: String,
    /// What is there: `agent`, `coordinator`, `device 0, bulk 1`.
    pub what: String,
    /// Whether a process of the cluster says that it listens there.
    pub listening: bool,
}

/// What came back from a port.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum PortAnswer {
    /// The way there and back is open.
    Listens,
    /// The host says that nobody listens; a firewall that rejects may say the same.
    NobodyListens,
    /// Packets may not pass or find no way, in the system's words.
    Rejected(String),
    /// Nothing came back.
    Silent {
        /// Whether the host answers at another port.
        host_answers: bool,
    },
    /// It was not asked.
    NotAsked(String),
}

/// What was seen of one port.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Seen {
    /// Which.
    pub target: Target,
    /// What came back.
    pub answer: PortAnswer,
    /// The device through which packets go there, where the system tells.
    pub nic: Option<Nic>,
    /// The largest UDP payload that got there whole; of one port of each node.
    pub payload_bytes: Option<u32>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its largest frame, in bytes.
    pub mtu_bytes: u32,
    /// What kind of virtual device it is; `None` for hardware.
    pub kind: Option<String>,
    /// Offloads that are on, by the kernel's names; `None` where it does not tell.
    pub features: Option<Vec<String>>,
}

/// What an agent found out.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Examination {
    /// Which order it answers.
    pub number: u64,
    /// Its clock when the order came, microseconds since 1970.
    pub received_us: u64,
    /// Its clock when this left.
    pub sent_us: u64,
    /// Of the host.
    pub findings: Vec<Finding>,
    /// Of the ports that it was to ask.
    pub seen: Vec<Seen>,
}

/// Orders an agent to look at its host and at the ports of others.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Examine {
    /// Comes back with the answer.
    pub number: u64,
    /// Ports of other nodes.
    pub targets: Vec<Target>,
    /// The largest UDP payload that links use.
    pub payload_bytes_max: u32,
}

/// What became of the order to one node's agent.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct NodeExamined {
    /// Its name.
    pub node: String,
    /// The coordinator's clock when the order left, microseconds since 1970.
    pub asked_us: u64,
    /// The same when the answer came.
    pub heard_us: u64,
    /// What it found, or why there is no answer.
    pub outcome: Result<Examination, String>,
}

/// The answer to [`super::ClientCall::Examine`].
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Examined {
    /// The coordinator's clock when it was asked, microseconds since 1970.
    pub received_us: u64,
    /// The same when this left.
    pub sent_us: u64,
    /// All nodes.
    pub nodes: Vec<NodeExamined>,
    /// Every port that a process of the cluster says it listens at.
    pub ports: Vec<Target>,
}
