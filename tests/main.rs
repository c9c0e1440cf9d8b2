//! All integration tests, linked once.
//!
//! Modules named `cli_*` drive the built command line, `cluster_*` whole clusters of its processes.

#![allow(clippy::unwrap_used, missing_docs)]

mod bench_shaped;
mod cli_bench;
mod cli_cluster;
mod cli_files;
mod cli_generate;
mod cli_manifest;
mod cli_plan;
mod cli_process;
mod cli_trace;
mod cli_usage;
mod cluster_disk;
mod cluster_doctor;
mod cluster_elastic;
mod cluster_harness;
mod cluster_hostile;
mod cluster_joiner;
mod cluster_kill;
mod cluster_launch;
mod cluster_network;
mod cluster_parity;
mod cluster_pods;
mod cluster_slurm;
mod cluster_speeds;
mod cluster_ssh;
mod cluster_traces;
mod cluster_weights;
mod held_thread;
mod house;
mod intruder;
mod network_lab;
mod otlp_receiver;
mod ssh_server;
