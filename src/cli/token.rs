//! `token`: makes a token with which one machine can join a running cluster.

use std::time::Duration;

use ditmesh::{ClusterClient, manifest};

use super::args::TokenArgs;
use super::failure::Failure;
use super::terminal::Terminal;

/// Prints the token; what to do with it goes to stderr.
pub(crate) fn run(args: &TokenArgs, terminal: &Terminal) -> Result<(), Failure> {
    let manifest = manifest::parse::load(args.manifest.path())?;
    let client = ClusterClient::connect(&manifest)?;
    let ttl = Duration::from_secs(args.expires.into());
    let token = client.blocking_token(args.node.as_deref(), ttl)?;
    let coordinator = client.blocking_status()?.coordinator;
    terminal.note(&format!(
        "good once, for {} s; put it into a file that only you can read, and on the new machine run \
         `ditmesh join --coordinator {coordinator} --token-file FILE`",
        args.expires
    ));
    terminal.result(&token)
}
