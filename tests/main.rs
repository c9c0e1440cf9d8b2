//! All integration tests, linked once.
//!
//! Modules named `cli_*` drive the built command line.

#![allow(clippy::unwrap_used, missing_docs)]

mod cli_cluster;
mod cli_files;
mod cli_generate;
mod cli_manifest;
mod cli_process;
mod cli_usage;
