//! The devices that meshes can be formed from, in the order in which they came to be known.
//!
//! Owns who is ready, who leaves, who is set aside, and which set was last planned for. Devices of
//! the manifest that have never come are waited for until `settle`.

use std::collections::BTreeSet;

use crate::protocol::DeviceId;

/// All devices of the group.
#[derive(Debug)]
pub(super) struct Roster {
    known: Vec<DeviceId>,
    ready: BTreeSet<DeviceId>,
    leaving: BTreeSet<DeviceId>,
    /// Could not load their part when last asked to.
    unfit: BTreeSet<DeviceId>,
    /// Expected and never seen.
    awaited: BTreeSet<DeviceId>,
    /// What was last planned for, in the order of the plan.
    planned: Option<Vec<DeviceId>>,
}

impl Roster {
    pub(super) fn new(known: Vec<DeviceId>) -> Self {
        let awaited = known.iter().cloned().collect();
        let (ready, leaving, unfit) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { known, ready, leaving, unfit, awaited, planned: None }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// A device can be used; one that was not known comes last.
    pub(super) fn ready(&mut self, device: DeviceId) {
        self.awaited.remove(&device);
        self.leaving.remove(&device);
        self.unfit.remove(&device);
        if !self.known.contains(&device) {
            self.known.push(device.clone());
        }
        self.ready.insert(device);
        // Even the same device holds nothing of the mesh it was in.
        self.planned = None;
    }

    pub(super) fn lost(&mut self, device: &DeviceId) {
        self.awaited.remove(device);
        if self.ready.remove(device) && !self.leaving.contains(device) {
            self.planned = None;
        }
    }

    pub(super) fn leaving(&mut self, device: &DeviceId) {
        self.awaited.remove(device);
        self.leaving.insert(device.clone());
    }

    /// Plans without a device until it is ready again; false when there is nobody else.
    pub(super) fn set_aside(&mut self, device: &DeviceId) -> bool {
        let others = self.usable().any(|usable| usable != device);
        others && self.unfit.insert(device.clone())
    }

    /// The last plan counts no longer.
    pub(super) fn plan_again(&mut self) {
        self.planned = None;
    }

    pub(super) fn settle(&mut self) {
        self.awaited.clear();
    }

    /// Who is still waited for, in words.
    pub(super) fn awaited(&self) -> Option<String> {
        let names: Vec<String> = self.awaited.iter().map(ToString::to_string).collect();
        match names.as_slice() {
            [] => None,
            [one] => Some(format!("device {one}")),
            many => Some(format!("devices {}", many.join(", "))),
        }
    }

    /// The usable devices, those that should `stay` first, when they are others than last time.
    pub(super) fn changed(&mut self, stay: &[DeviceId]) -> Option<Vec<DeviceId>> {
        if !self.awaited.is_empty() {
            return None;
        }
        let usable: Vec<DeviceId> = self.usable().cloned().collect();
        let same = |planned: &Vec<DeviceId>| {
            planned.len() == usable.len() && planned.iter().all(|device| usable.contains(device))
        };
        if self.planned.as_ref().is_some_and(same) {
            return None;
        }
        let (mut ordered, rest): (Vec<_>, Vec<_>) = (
            stay.iter().filter(|device| usable.contains(device)).cloned().collect(),
            usable.iter().filter(|device| !stay.contains(device)).cloned().collect::<Vec<_>>(),
        );
        ordered.extend(rest);
        self.planned = Some(ordered.clone());
        Some(ordered)
    }

    /// The devices last planned for.
    pub(super) fn planned(&self) -> &[DeviceId] {
        self.planned.as_deref().unwrap_or(&[])
    }

    pub(super) fn all_leaving(&self) -> &BTreeSet<DeviceId> {
        &self.leaving
    }

    /// Known devices that cannot be used, for people.
    pub(super) fn missing(&self) -> String {
        let usable: BTreeSet<&DeviceId> = self.usable().collect();
        let missing = self.known.iter().filter(|device| !usable.contains(device));
        let names: Vec<String> = missing.map(ToString::to_string).collect();
        if names.is_empty() { String::new() } else { format!(" (without {})", names.join(", ")) }
    }

    fn usable(&self) -> impl Iterator<Item = &DeviceId> {
        self.known.iter().filter(|device| {
            self.ready.contains(device)
                && !self.leaving.contains(device)
                && !self.unfit.contains(device)
        })
    }
}
