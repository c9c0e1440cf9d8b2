//! The files of a running cluster: one record per process in `<state_dir>/run/<cluster>`.
//!
//! Owns their form, their atomic appearance and the question whether a process is still the one
//! that was recorded. Does not start or stop anybody.
//!
//! Invariant: a record is trusted only while a process of the same id *and* start time lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

/// Records of one cluster that are read; more are not ours.
const RECORDS_MAX: usize = 65_536;

/// What a process of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The supervisor of `up`.
    Launcher,
    /// The agent of a node.
    Agent,
    /// The worker of a device.
    Worker,
    /// The coordinator, inside an agent.
    Coordinator,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// What it is.
    pub role: Role,
    /// Node, or node and device.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since the system started; 0 where the system does not tell.
    pub started: u64,
    /// Name of its host; empty in records of this build's elders.
    #[serde(default)]
    pub host: String,
    /// Where it listens, for coordinators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl ProcessRecord {
    /// Of the process `pid`.
    pub(crate) fn of(role: Role, name: &str, pid: u32) -> Self {
        let started = start_ticks(pid).unwrap_or(0);
        Self { role, name: name.into(), pid, started, host: host_name(), address: None }
    }

    /// Of this process.
    pub(crate) fn of_self(role: Role, name: &str) -> Self {
        Self::of(role, name, std::process::id())
    }

    /// Whether it is on this host; a folder may be shared by several.
    pub fn is_local(&self) -> bool {
        self.host.is_empty() || self.host == host_name()
    }

    /// Whether that very process lives; one of another host is taken to.
    pub fn is_alive(&self) -> bool {
        if !self.is_local() {
            return true;
        }
        match start_ticks(self.pid) {
            Some(started) => started == self.started,
            None => {
                let exists = i32::try_from(self.pid).is_ok_and(|pid| {
                    !Path::new("/proc/self").exists()
                        && signal::kill(Pid::from_raw(pid), None).is_ok()
                });
                exists && self.started == 0
            }
        }
    }

    /// Signals the process if it is still the recorded one.
    pub(crate) fn signal(&self, signal: Signal) {
        let ours = self.is_local() && self.is_alive();
        if let (true, Ok(pid)) = (ours, i32::try_from(self.pid)) {
            // It may have ended this very moment.
            let _ = signal::kill(Pid::from_raw(pid), signal);
        }
    }

    fn file_name(&self) -> String {
        let role = match self.role {
            Role::Launcher => return "launcher.json".into(),
            Role::Coordinator => return "coordinator.json".into(),
            Role::Agent => "agent",
            Role::Worker => "worker",
        };
        format!("{role}-{}.json", self.name)
    }
}

/// This host's name, as its kernel has it.
fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Field 22 of `/proc/<pid>/stat`: with the id it names one process for good. A process that has
/// ended and is not yet waited for counts as ended.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The folder of a running cluster's records.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// A published record; the file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Published {
    path: PathBuf,
    record: ProcessRecord,
}

impl Drop for Published {
    fn drop(&mut self) {
        // A later life of the same process may have published since.
        if read(&self.path).as_ref() == Some(&self.record) {
            // Whoever cleaned up before us did our work.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl RunFolder {
    /// Of the cluster of `manifest`.
    pub fn of(manifest: &Manifest) -> Self {
        Self::at(manifest.cluster.state_dir.join("run").join(&manifest.cluster.name))
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the coordinator's record is.
    pub fn coordinator_path(&self) -> PathBuf {
        self.path.join("coordinator.json")
    }

    /// The coordinator's record, if there is one.
    pub fn coordinator(&self) -> Option<ProcessRecord> {
        read(&self.coordinator_path())
    }

    pub(crate) fn launcher(&self) -> Option<ProcessRecord> {
        read(&self.path.join("launcher.json"))
    }

    /// How long the next node that a signal tells to leave may take.
    pub(crate) fn drain(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.path.join("drain")).ok()?;
        text.trim().parse().ok().map(Duration::from_millis)
    }

    /// Sets what [`Self::drain`] reads.
    pub(crate) fn set_drain(&self, drain: Duration) -> io::Result<()> {
        fs::write(self.path.join("drain"), drain.as_millis().to_string())
    }

    /// Every record there is.
    pub fn records(&self) -> Vec<ProcessRecord> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let json = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
        entries
            .take(RECORDS_MAX)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(json)
            .filter_map(|path| read(&path))
            .collect()
    }

    /// Recorded processes of this host that live, this one apart.
    pub(crate) fn others_alive(&self) -> Vec<ProcessRecord> {
        let mut alive: Vec<ProcessRecord> = self
            .records()
            .into_iter()
            .filter(ProcessRecord::is_local)
            .filter(|record| record.pid != std::process::id() && record.is_alive())
            .collect();
        alive.sort_by_key(|record| record.pid);
        alive.dedup_by_key(|record| record.pid);
        alive
    }

    /// Writes a record; it appears whole or not at all.
    pub(crate) fn publish(&self, record: ProcessRecord) -> io::Result<Published> {
        fs::create_dir_all(&self.path)?;
        let path = self.path.join(record.file_name());
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, serde_json::to_vec(&record)?)?;
        fs::rename(&partial, &path)?;
        Ok(Published { path, record })
    }

    /// Removes everything, and the folder above when nothing else is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(parent) = self.path.parent() {
            // Another cluster may have its folder there.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Option<ProcessRecord> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, RunFolder) {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = RunFolder::at(dir.path().join("run").join("demo"));
        (dir, folder)
    }

    #[test]
    fn a_record_is_there_as_long_as_it_is_published() {
        let (_dir, folder) = folder();
        let record = ProcessRecord {
            address: Some("127.0.0.1:7".into()),
            ..ProcessRecord::of_self(Role::Coordinator, "a")
        };
        let published = folder.publish(record.clone()).expect("published");
        assert_eq!(folder.coordinator(), Some(record.clone()));
        assert!(record.is_alive());
        assert!(folder.others_alive().is_empty(), "this process is not another one");
        drop(published);
        assert_eq!(folder.coordinator(), None);
        folder.remove().expect("removed");
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_process_id_alone_proves_nothing() {
        let mut record = ProcessRecord::of_self(Role::Agent, "a");
        record.started += 1;
        assert!(!record.is_alive());
    }

    #[test]
    fn a_process_of_another_host_is_believed_and_never_signalled() {
        let (_dir, folder) = folder();
        let record = ProcessRecord {
            host: "elsewhere".into(),
            pid: 1,
            ..ProcessRecord::of_self(Role::Agent, "a")
        };
        let _published = folder.publish(record.clone()).expect("published");
        assert!(record.is_alive() && !record.is_local());
        assert!(folder.others_alive().is_empty(), "nobody here is to be ended");
        record.signal(Signal::SIGKILL);
    }

    #[test]
    fn an_older_life_does_not_remove_the_record_of_a_newer_one() {
        let (_dir, folder) = folder();
        let old = folder.publish(ProcessRecord::of_self(Role::Agent, "a")).expect("published");
        let newer = ProcessRecord { pid: 1, ..ProcessRecord::of_self(Role::Agent, "a") };
        let _new = folder.publish(newer.clone()).expect("published");
        drop(old);
        assert_eq!(folder.records(), [newer]);
    }
}
