//! The arguments of `bench`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::generate::DtypeArg;
use crate::cli::bench::method::Method;

/// `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One rank against two, for each parallel method, and what keeps them from being twice as fast
    Scaling(ScalingArgs),
    /// What a step costs beside computing and moving bytes
    Overhead(OverheadArgs),
    /// What a slow link between two ranks costs each parallel method; needs root
    Shaped(ShapedBenchArgs),
    /// What every way from one process to another carries, and at what price
    Transport(TransportBenchArgs),
    /// What the loss of a device in the middle of a run costs: processes are really killed and
    /// stopped
    Recovery(RecoveryArgs),
    /// What a device sustains; kept for `plan`, `generate` and `up`
    Device(DeviceArgs),
}

/// The random model that is measured.
#[derive(Clone, Debug, Args)]
pub(crate) struct SizeArgs {
    /// Width of the hidden states
    #[arg(long, value_name = "N", default_value_t = 1152, value_parser = counted(65_536))]
    #[arg(help_heading = "Model")]
    pub(crate) hidden: u32,

    /// Attention heads
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = counted(1024))]
    #[arg(help_heading = "Model")]
    pub(crate) heads: u32,

    /// Transformer blocks
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = counted(1024))]
    #[arg(help_heading = "Model")]
    pub(crate) blocks: u32,

    /// Edge of the latent; it has (N / 2)^2 tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = counted(1024))]
    #[arg(help_heading = "Model")]
    pub(crate) latent: u32,
}

/// Where the ranks are.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlaceArgs {
    /// How ranks reach each other: worker processes over QUIC or UCX, or threads of this process
    #[arg(long, value_enum, default_value = "quic", help_heading = "Where")]
    pub(crate) transport: TransportArg,

    /// The two cores that ranks are pinned to [default: the first two that are no hyperthreads of
    /// one another]
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Where")]
    pub(crate) cores: Option<Vec<usize>>,
}

/// `bench scaling`.
#[derive(Debug, Args)]
pub(crate) struct ScalingArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Timed steps of every run; two more are run before them and dropped
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = counted(100))]
    pub(crate) steps: u32,

    /// Rounds; each measures everything once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = counted(100))]
    pub(crate) rounds: u32,

    /// No round is begun that would not end within this time
    #[arg(long, value_name = "MINUTES", default_value_t = 45, value_parser = counted(1440))]
    pub(crate) minutes: u32,

    /// Measure these methods only
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    pub(crate) only: Option<Vec<Method>>,

    /// A Python that has torch, to be measured beside; without torch that part is left out
    #[arg(long, value_name = "PROGRAM", default_value = "python3", value_hint = ValueHint::CommandName)]
    pub(crate) python: PathBuf,

    #[command(flatten)]
    pub(crate) size: SizeArgs,

    /// Precision of weights and activations
    #[arg(long, value_enum, default_value = "f32", help_heading = "Model")]
    pub(crate) dtype: DtypeArg,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// The two GPUs of this host that ranks compute on, in place of cores; one may be named twice.
    /// Torch is not measured beside them
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Where")]
    #[arg(conflicts_with = "cores")]
    pub(crate) gpus: Option<Vec<usize>>,
}

/// `bench overhead`.
#[derive(Debug, Args)]
pub(crate) struct OverheadArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Steps of each run without computing
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = counted(1000))]
    pub(crate) steps: u32,

    #[command(flatten)]
    pub(crate) size: SizeArgs,

    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

/// `bench recovery`.
#[derive(Debug, Args)]
pub(crate) struct RecoveryArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Rounds; each kills a worker and stops an agent, of an exact mesh and of a pipeline
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = counted(100))]
    pub(crate) rounds: u32,

    /// The two cores that ranks are pinned to [default: as for `bench scaling`]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) cores: Option<Vec<usize>>,
}

/// `bench device`.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Compute threads of the device
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counted(1024))]
    pub(crate) threads: u32,

    /// Name of the profile [default: cpu-N, which devices of N threads have]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Keep it for this cluster [default: for all of this user's]
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath)]
    pub(crate) cluster: Option<PathBuf>,

    /// Width of the hidden states of the block that is measured
    #[arg(long, value_name = "N", default_value_t = 1152, value_parser = counted(65_536))]
    pub(crate) hidden: u32,

    /// Its attention heads
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = counted(1024))]
    pub(crate) heads: u32,

    /// Milliseconds spent on each of the figures
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = counted(60_000))]
    pub(crate) each_ms: u32,
}

/// `bench shaped`.
#[derive(Debug, Args)]
pub(crate) struct ShapedBenchArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Rate of the link in Mbit/s
    #[arg(long, value_name = "MBITS", default_value_t = 1000, value_parser = counted(100_000))]
    pub(crate) mbits: u32,

    /// Its frames
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = counted(9000))]
    pub(crate) link_mtu: u32,

    /// How long its queue gets before it drops packets
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = counted(1000))]
    pub(crate) queue_ms: u32,

    /// Timed steps of every run; two more are run before them and dropped
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = counted(100))]
    pub(crate) steps: u32,

    /// Rounds; each measures everything once with and once without the limit
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = counted(100))]
    pub(crate) rounds: u32,

    /// These methods only [default: pipefusion2,ulysses2,ring2]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    pub(crate) only: Option<Vec<Method>>,

    /// The two cores that ranks are pinned to [default: as for `bench scaling`]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) cores: Option<Vec<usize>>,

    #[command(flatten)]
    pub(crate) size: SizeArgs,
}

/// `bench transport`.
#[derive(Debug, Args)]
pub(crate) struct TransportBenchArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Measure the links between the nodes of this cluster, with its transport settings [default:
    /// two processes on loopback]
    #[arg(long, value_name = "MANIFEST", value_hint = ValueHint::FilePath)]
    pub(crate) cluster: Option<PathBuf>,

    /// What else is measured in the same rounds, where it is installed
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEERS")]
    pub(crate) against: Vec<AgainstArg>,

    /// Only these ways, by the names of the table [default: all]
    #[arg(long, value_delimiter = ',', value_name = "WAYS")]
    pub(crate) only: Vec<String>,

    /// Rounds; each measures everything once
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = counted(1000))]
    pub(crate) rounds: u32,

    /// Size of the messages that ways are compared by
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = counted(256))]
    pub(crate) message_mib: u32,

    /// Messages per round and way
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = counted(10_000))]
    pub(crate) messages: u32,

    /// Largest message of the table by size
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = counted(256))]
    pub(crate) largest_mib: u32,

    /// A Python that has torch, for gloo
    #[arg(long, value_name = "PROGRAM", default_value = "python3", value_hint = ValueHint::CommandName)]
    pub(crate) python: PathBuf,

    /// The two cores that processes are pinned to [default: as for `bench scaling`]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) cores: Option<Vec<usize>>,

    /// Instead of loopback, a link of this many Mbit/s between two network namespaces; needs root
    #[arg(long, value_name = "MBITS", value_parser = counted(100_000), help_heading = "Shaped link")]
    pub(crate) shaped: Option<u32>,

    /// Its frames
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = counted(9000))]
    #[arg(help_heading = "Shaped link")]
    pub(crate) link_mtu: u32,

    /// Of a million packets, how many it loses
    #[arg(long, value_name = "PPM", default_value_t = 0)]
    #[arg(help_heading = "Shaped link")]
    pub(crate) loss_ppm: u32,

    /// How long its queue gets before it drops packets
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = counted(1000))]
    #[arg(help_heading = "Shaped link")]
    pub(crate) queue_ms: u32,

    /// What it adds to every round trip, on the way of acknowledgements
    #[arg(long, value_name = "MS", default_value_t = 0)]
    #[arg(help_heading = "Shaped link")]
    pub(crate) delay_ms: u32,

    /// Heartbeats sent under the first way's bulk load, one every 20 ms; 0 for none
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = RangedU64ValueParser::<u32>::new().range(0..=1_000_000))]
    #[arg(help_heading = "Shaped link")]
    pub(crate) heartbeats: u32,
}

/// `--against`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AgainstArg {
    /// Plain TCP
    Tcp,
    /// TLS 1.3 over TCP, AES-128-GCM
    Tls,
    /// UCX's own benchmark
    #[value(name = "ucx_perftest")]
    UcxPerftest,
    /// torch.distributed over gloo
    Gloo,
}

/// `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportArg {
    /// Worker processes on loopback, as a cluster has them
    Quic,
    /// The same with their frames in UCX's shared memory, and those of GPUs in GPU memory where UCX
    /// takes that
    Ucx,
    /// Threads and memory of this process
    InProcess,
}

impl TransportArg {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Ucx => "ucx",
            Self::InProcess => "in-process",
        }
    }
}

fn counted(max: u64) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=max)
}
