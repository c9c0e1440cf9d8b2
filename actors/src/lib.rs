//! Who does what, when: the actors of a ditmesh cluster and the plans they carry out.
//!
//! Owns the manifest, the plan (one program per rank, as data), the executor that walks a program
//! on a device, the worker and node actors, the group supervisors, the coordinator, the launcher
//! and the engine that embeds all of it. Only this layer knows both the numerics
//! (`ditmesh-model`) and the network (`ditmesh-transport`).

#![allow(rustdoc::private_intra_doc_links, reason = "module docs are for readers of the source")]

pub mod agent;
pub mod checkpoint;
pub mod client;
pub mod controller;
pub mod coordinator;
pub mod cost;
pub mod device_bench;
pub mod dispatcher;
pub mod engine;
pub mod examine;
pub mod executor;
pub mod generation;
#[cfg(feature = "cuda")]
pub mod gpu_memory;
pub mod groups;
mod journal;
pub mod launcher;
pub mod manifest;
pub mod membership;
pub mod parallel;
pub mod plan;
pub mod planner;
pub mod protocol;
pub mod rank_facts;
pub mod request;
pub mod session;
pub mod simulate;
pub mod staleness;
pub mod status;
pub mod timeline;
mod trace_context;
pub mod weights;
pub mod worker;
pub mod worker_process;
