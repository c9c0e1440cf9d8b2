//! What travels in fewer bytes: the arguments that `generate` and `plan` share.

use clap::Args;
use ditmesh::{WIRE_REFRESH_EVERY, Wire, WireDtypeError};

/// `--wire-dtype` and what goes with it.
#[derive(Debug, Args)]
pub(crate) struct WireArgs {
    /// Send activations in fewer bytes: f32, bf16, f16 or int8 for all axes, or AXIS=TYPE with cfg,
    /// ulysses, ring or pipefusion, several with commas [default: the cluster's, or f32]
    #[arg(long, value_name = "TYPES", value_parser = wire_dtype, help_heading = "How")]
    wire_dtype: Option<Wire>,

    /// Send hidden states between stages as the change since the step before
    #[arg(long, requires = "wire_dtype", help_heading = "How")]
    wire_residual: bool,

    /// Steps between those in which they are sent whole nevertheless; 0 for the first only
    #[arg(long, value_name = "K", default_value_t = WIRE_REFRESH_EVERY, requires = "wire_residual")]
    #[arg(help_heading = "How")]
    wire_refresh_every: u32,
}

impl WireArgs {
    /// What was asked for, when anything was.
    pub(crate) fn choice(&self) -> Option<Wire> {
        let Self { wire_residual, wire_refresh_every, .. } = *self;
        self.wire_dtype.map(|wire| Wire {
            residual: wire_residual,
            refresh_every: wire_refresh_every,
            ..wire
        })
    }
}

fn wire_dtype(text: &str) -> Result<Wire, String> {
    text.parse().map_err(|error: WireDtypeError| error.to_string())
}
