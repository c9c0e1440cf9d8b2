//! How fast devices are, by the word of their own agents.
//!
//! Owns what was said, as long as the coordinator lives: plans reckon with it, also those for a
//! model that is still being looked up. What it says of nodes of the manifest is kept for the next
//! start and for `ditmesh plan`. What a device is taken for before its agent has said anything is
//! [`crate::cost::cluster`]'s.

use ractor::ActorRef;

use super::formation::FormationEvent;
use super::{CoordinatorMsg, State};
use crate::cost::calibration::{Calibration, cluster_folder, of_device};
use crate::manifest::Isolation;
use crate::protocol::DeviceSpeed;

impl State {
    /// An agent says what its devices sustain.
    pub(super) async fn learn_speeds(
        &mut self,
        myself: &ActorRef<CoordinatorMsg>,
        node: String,
        mut speeds: Vec<DeviceSpeed>,
    ) {
        let known = self.manifest.nodes.iter().find(|known| known.name == node);
        let devices = known.map_or(0, |known| known.devices.len());
        speeds.retain(|speed| (speed.index as usize) < devices && speed.profile.is_sound());
        speeds.truncate(devices);
        self.speeds.insert(node.clone(), speeds);
        if self.reckon_with_speeds(&node) {
            self.form(myself, FormationEvent::SpeedsChanged).await;
        }
    }

    /// All that was said while the model was being looked up.
    pub(super) fn reckon_with_all_speeds(&self) {
        for node in self.speeds.keys() {
            self.reckon_with_speeds(node);
        }
    }

    /// Has plans reckon with what a node's agent said; whether that is news.
    fn reckon_with_speeds(&self, node: &str) -> bool {
        let (Some(Ok(model)), Some(speeds)) = (&self.model, self.speeds.get(node)) else {
            return false;
        };
        if !model.learn_speeds(node, speeds) {
            return false;
        }
        tracing::info!(node, devices = speeds.len(), "what devices sustain is known");
        // An engine inside a program leaves no files behind.
        let embedded = self.manifest.launcher.isolation == Isolation::Thread;
        if !embedded && !self.has_joined(node) {
            self.keep_speeds(node, speeds.clone());
        }
        true
    }

    fn keep_speeds(&self, node: &str, speeds: Vec<DeviceSpeed>) {
        let folder = cluster_folder(&self.manifest.cluster.state_dir);
        let node = node.to_owned();
        tokio::task::spawn_blocking(move || {
            let named = speeds.into_iter().map(|DeviceSpeed { index, kind, profile }| {
                (of_device(&node, index as usize, &kind), profile)
            });
            if let Err(error) = Calibration::update(&folder, |kept| kept.devices.extend(named)) {
                tracing::warn!(%error, "what devices sustain is not kept for the next start");
            }
        });
    }
}
