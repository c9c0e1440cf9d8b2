//! Where a rank's time went, as it is reported.

use serde::{Deserialize, Serialize};

/// The time of one rank in one run. The totals of `ops` and `elsewhere_s` add up to `wall_s`.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct RunTime {
    /// Seconds from the start of the run to its end, on this rank's clock.
    pub wall_s: f64,
    /// Seconds between operations: other runs that share the device.
    pub elsewhere_s: f64,
    /// By operation, in the order of first use.
    pub ops: Vec<OpTime>,
    /// Seconds of each denoising step, on the ranks of the last stage; empty on others. A step
    /// lasts from the end of the one before it (the first: from its first operation).
    pub step_seconds: Vec<f64>,
}

/// The time of one kind of operation.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[rkyv(attr(allow(missing_docs)))]
pub struct OpTime {
    /// `encode`, `receive.activation`, `forward.attend`, ...; `forward` alone is what a forward
    /// pass does outside its phases.
    pub op: String,
    /// Seconds of arithmetic.
    pub compute_s: f64,
    /// Seconds waiting for frames to come or to be taken.
    pub wait_s: f64,
    /// Seconds handing frames to the transport and posting places for others.
    pub send_s: f64,
    /// Seconds copying between tensors and frames.
    pub serialise_s: f64,
    /// Seconds of everything else.
    pub overhead_s: f64,
    /// How often it ran.
    pub count: u64,
}

impl OpTime {
    /// All seconds of this operation.
    pub fn total_s(&self) -> f64 {
        self.compute_s + self.wait_s + self.send_s + self.serialise_s + self.overhead_s
    }
}
