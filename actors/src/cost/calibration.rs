//! What was measured, on disk: one JSON file of device profiles and links.
//!
//! Owns the file's format and name. `ditmesh bench device` adds a device profile under a name (the
//! default is [`device_name`]), an agent those of kinds that it has measured; a coordinator adds
//! what agents say of their own devices ([`of_device`]), and links. A plan reads all. Two places are
//! looked at, the cluster's `<state_dir>/cache` before the user's cache folder. Invariants: the file
//! appears whole or not at all (temporary file and rename); of changes made at the same time none
//! is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::device::DeviceProfile;
use super::link::{Links, NodeLink};

/// Name of the file.
pub const FILE_NAME: &str = "calibration.json";
/// Version of its format.
pub const SCHEMA: u32 = 1;
/// Longest wait for somebody else who changes the file: it is written in milliseconds.
const UPDATE_MAX: Duration = Duration::from_secs(2);
/// Between looks at whether they still do.
const UPDATE_PAUSE: Duration = Duration::from_millis(5);
/// Largest file read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Measured devices and links.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Profiles by name; a device of the manifest names one, or has that of [`device_name`].
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceProfile>,
    /// Both classes of links, once measured.
    #[serde(default)]
    pub links: Option<Links>,
    /// Pairs of nodes measured at `up`; the newest of a pair counts.
    #[serde(default)]
    pub pairs: Vec<NodeLink>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { schema: SCHEMA, devices: BTreeMap::new(), links: None, pairs: Vec::new() }
    }
}

/// Why a calibration cannot be used.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// Reading or writing failed.
    #[error("calibration {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not a calibration.
    #[error("calibration {path}: {cause}; run `ditmesh bench device` again, or remove the file")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// Name of the profile of a processor with `threads` compute threads.
pub fn device_name(threads: usize) -> String {
    format!("cpu-{}", threads.max(1))
}

/// Name of the profile of one device, of the kind of profile `kind`, as its own agent knows it.
pub fn of_device(node: &str, index: usize, kind: &str) -> String {
    format!("{node}/{index} {kind}")
}

/// The folder of a cluster's calibration.
pub fn cluster_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("cache")
}

/// The folder of the user's calibration; none when no cache folder is named by the environment.
pub fn user_folder() -> Option<PathBuf> {
    ditmesh_model::cache::root().ok().map(|root| root.join("ditmesh"))
}

impl Calibration {
    /// Reads the calibration in `folder`; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn load(folder: &Path) -> Result<Option<Self>, CalibrationError> {
        let path = folder.join(FILE_NAME);
        let malformed = |cause: String| CalibrationError::Malformed { path: path.clone(), cause };
        let length = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CalibrationError::Io { path, source }),
        };
        if length > FILE_BYTES_MAX {
            return Err(malformed(format!("{length} bytes, at most {FILE_BYTES_MAX} are read")));
        }
        let bytes = fs::read(&path)
            .map_err(|source| CalibrationError::Io { path: path.clone(), source })?;
        let found: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if found.schema != SCHEMA {
            return Err(malformed(format!("schema {}, this build reads {SCHEMA}", found.schema)));
        }
        if let Some((name, _)) = found.devices.iter().find(|(_, profile)| !profile.is_sound()) {
            return Err(malformed(format!(
                "device \"{name}\" has a rate that is no positive number"
            )));
        }
        let pairs = found.pairs.iter().all(|pair| pair.link.is_sound());
        if !pairs || !found.links.as_ref().is_none_or(Links::is_sound) {
            return Err(malformed("a link has a rate that is no positive number".into()));
        }
        Ok(Some(found))
    }

    /// The cluster's calibration over the user's: what the first lacks comes from the second.
    ///
    /// # Errors
    /// When one is there and cannot be used.
    pub fn find(state_dir: &Path) -> Result<Self, CalibrationError> {
        let load = |folder: PathBuf| Ok(Self::load(&folder)?.unwrap_or_default());
        let user = user_folder().map_or(Ok(Self::default()), load)?;
        Ok(load(cluster_folder(state_dir))?.over(user))
    }

    /// What is in `self`, and from `below` what is not.
    pub fn over(self, below: Self) -> Self {
        let mut devices = below.devices;
        devices.extend(self.devices);
        let pairs = below.pairs.into_iter().chain(self.pairs).collect();
        Self { schema: SCHEMA, devices, links: self.links.or(below.links), pairs }
    }

    /// Keeps what was measured between nodes in the cluster's calibration, in place of older
    /// figures.
    ///
    /// # Errors
    /// When the file is there and cannot be used, or cannot be written.
    pub fn keep(state_dir: &Path, measured: &[NodeLink]) -> Result<(), CalibrationError> {
        Self::update(&cluster_folder(state_dir), |kept| {
            kept.pairs.retain(|old| !measured.iter().any(|new| new.joins(&old.a, &old.b)));
            kept.pairs.extend(measured.iter().cloned());
        })
    }

    /// Changes the calibration in `folder`, which is made when it is not there. Waits while somebody
    /// else changes it, at most [`UPDATE_MAX`].
    ///
    /// # Errors
    /// When the file is there and cannot be used, or cannot be written.
    pub fn update(folder: &Path, change: impl FnOnce(&mut Self)) -> Result<(), CalibrationError> {
        let _alone = alone(folder)?;
        let mut kept = Self::load(folder)?.unwrap_or_default();
        change(&mut kept);
        kept.save(folder)
    }

    /// Writes the file into `folder`, which is made when it is not there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), CalibrationError> {
        let path = folder.join(FILE_NAME);
        let failed = |source| CalibrationError::Io { path: path.clone(), source };
        let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        fs::create_dir_all(folder).map_err(failed)?;
        let temporary = folder.join(format!(".{FILE_NAME}.{}.tmp", std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        let done = written.and_then(|()| fs::rename(&temporary, &path));
        if done.is_err() {
            // Best effort: what stays is named as temporary.
            let _ = fs::remove_file(&temporary);
        }
        done.map_err(failed)
    }

    /// The links to plan with: measured classes and pairs, else what nobody measured.
    pub fn links(&self) -> Links {
        let mut links = self.links.clone().unwrap_or_else(Links::unmeasured);
        links.pairs.extend(self.pairs.iter().cloned());
        links
    }
}

/// The right to change the file in `folder`.
fn alone(folder: &Path) -> Result<fs::File, CalibrationError> {
    let path = folder.join(format!(".{FILE_NAME}.lock"));
    let failed = |source| CalibrationError::Io { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let deadline = Instant::now() + UPDATE_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let cause = format!("somebody else has held it for {} s", UPDATE_MAX.as_secs());
                return Err(failed(io::Error::new(io::ErrorKind::TimedOut, cause)));
            }
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(UPDATE_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_saved_is_found_and_the_cluster_goes_before_the_user() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Calibration::load(folder.path()).unwrap(), None);
        let mut user = Calibration::default();
        user.devices.insert("cpu-1".into(), DeviceProfile::unmeasured_cpu(1));
        user.devices.insert("cpu-2".into(), DeviceProfile::unmeasured_cpu(2));
        user.links = Some(Links::unmeasured());
        user.save(folder.path()).unwrap();
        assert_eq!(Calibration::load(folder.path()).unwrap(), Some(user.clone()));
        let mut cluster = Calibration::default();
        let fast = DeviceProfile { phase_s: 1e-9, ..DeviceProfile::unmeasured_cpu(1) };
        cluster.devices.insert("cpu-1".into(), fast.clone());
        let both = cluster.over(user);
        assert_eq!((&both.devices["cpu-1"], both.devices.len()), (&fast, 2));
        assert!(both.links.is_some());
    }

    #[test]
    fn what_is_measured_again_takes_the_place_of_what_was() {
        let state = tempfile::tempdir().unwrap();
        let link = Links::unmeasured().other_node;
        let pair = |a: &str, b: &str, bytes_per_s| NodeLink {
            a: a.into(),
            b: b.into(),
            link: super::super::link::LinkProfile { bytes_per_s, ..link },
        };
        Calibration::keep(state.path(), &[pair("a", "b", 1.0), pair("a", "c", 2.0)]).unwrap();
        Calibration::keep(state.path(), &[pair("b", "a", 3.0)]).unwrap();
        let found = Calibration::load(&cluster_folder(state.path())).unwrap().unwrap();
        assert_eq!(found.pairs, [pair("a", "c", 2.0), pair("b", "a", 3.0)]);
    }

    #[test]
    fn of_changes_made_at_the_same_time_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let keep = |number: usize| {
            let (name, profile) = (device_name(number), DeviceProfile::unmeasured_cpu(number));
            Calibration::update(folder.path(), |kept| drop(kept.devices.insert(name, profile)))
        };
        std::thread::scope(|scope| {
            let keepers: Vec<_> = (1..=8).map(|number| scope.spawn(move || keep(number))).collect();
            keepers.into_iter().for_each(|keeper| keeper.join().unwrap().unwrap());
        });
        let found = Calibration::load(folder.path()).unwrap().unwrap();
        assert_eq!(found.devices.len(), 8);
        let _held = alone(folder.path()).unwrap();
        let error = keep(9).unwrap_err().to_string();
        assert!(error.contains("somebody else"), "{error}");
    }

    #[test]
    fn what_cannot_be_reckoned_with_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut bad = Calibration::default();
        let slow = DeviceProfile { memory_bytes_per_s: 0.0, ..DeviceProfile::unmeasured_cpu(1) };
        bad.devices.insert("cpu-1".into(), slow);
        bad.save(folder.path()).unwrap();
        let error = Calibration::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cpu-1"), "{error}");
        fs::write(folder.path().join(FILE_NAME), b"{\"schema\": 9}").unwrap();
        let error = Calibration::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("schema 9"), "{error}");
    }
}
