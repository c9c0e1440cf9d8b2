//! Links between workers that the coordinator does not see: who has lost whom, and which links
//! count as cut.
//!
//! Owns the rule that one report may be a death that nobody has seen yet, and a second one is a
//! cut, and how long that counts. Devices of two nodes share the way between their hosts: a report
//! of one pair is a report of all. The time comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Now;
use crate::protocol::DeviceId;

/// How long a link counts as cut, and how far apart the two reports of it may be.
pub const CUT_FOR: Duration = Duration::from_secs(60);

/// Ways that are remembered; the oldest goes first.
const WAYS_MAX: usize = 1024;

/// Two devices, the smaller name first.
pub type Pair = (DeviceId, DeviceId);

/// The link between two devices, whoever names it.
pub fn pair(a: DeviceId, b: DeviceId) -> Pair {
    if a <= b { (a, b) } else { (b, a) }
}

/// What lies between two devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// The network between their nodes, the smaller name first.
    Nodes(String, String),
    /// Their own node.
    Within(Pair),
}

impl Way {
    fn of(link: Pair) -> Self {
        let (a, b) = &link;
        match a.node == b.node {
            true => Self::Within(link),
            false => Self::Nodes(a.node.clone(), b.node.clone()),
        }
    }

    /// Whether the device is at one end.
    fn ends_at(&self, device: &DeviceId) -> bool {
        match self {
            Self::Nodes(a, b) => *a == device.node || *b == device.node,
            Self::Within((a, b)) => a == device || b == device,
        }
    }
}

#[derive(Debug)]
enum Report {
    /// One end has lost the other.
    Once(Now),
    /// It counts as cut since then.
    Cut(Now),
}

/// What is known of links.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    ways: BTreeMap<Way, Report>,
}

impl Cuts {
    /// An end of a link says that it has lost the other; true when the way between them is newly
    /// cut.
    pub(super) fn reported(&mut self, now: Now, link: Pair) -> bool {
        self.reported_way(now, Way::of(link))
    }

    fn reported_way(&mut self, now: Now, way: Way) -> bool {
        let fresh = |since: Now| now.saturating_sub(since) < CUT_FOR;
        let (report, newly) = match self.ways.get(&way) {
            Some(Report::Once(since)) if fresh(*since) => (Report::Cut(now), true),
            Some(Report::Cut(since)) if fresh(*since) => (Report::Cut(now), false),
            _ => (Report::Once(now), false),
        };
        if self.ways.len() >= WAYS_MAX && !self.ways.contains_key(&way) {
            let age = |report: &Report| match report {
                Report::Once(since) | Report::Cut(since) => *since,
            };
            let oldest = self.ways.iter().min_by_key(|(_, report)| age(report));
            if let Some(oldest) = oldest.map(|(way, _)| way.clone()) {
                self.ways.remove(&oldest);
            }
        }
        self.ways.insert(way, report);
        newly
    }

    /// A device could not be linked: whatever was reported of its ways is reported again.
    pub(super) fn unlinked(&mut self, now: Now, device: &DeviceId) -> bool {
        let ways: Vec<Way> = self.ways.keys().filter(|way| way.ends_at(device)).cloned().collect();
        let mut newly = false;
        for way in ways {
            newly |= self.reported_way(now, way);
        }
        newly
    }

    /// A device came back as another life: what was said of its links was said of the one before.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.ways.retain(|way, _| !way.ends_at(device));
    }

    /// Forgets what is too old; true when a cut is over.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        let mut over = false;
        self.ways.retain(|_, report| {
            let (Report::Once(since) | Report::Cut(since)) = *report;
            let fresh = now.saturating_sub(since) < CUT_FOR;
            over |= !fresh && matches!(report, Report::Cut(_));
            fresh
        });
        over
    }

    /// The links among `devices` that count as cut.
    pub(super) fn among(&self, devices: &[DeviceId]) -> Vec<Pair> {
        let on = |node: &str| {
            let node = node.to_owned();
            devices.iter().filter(move |device| device.node == node)
        };
        let mut links = Vec::new();
        for (way, report) in &self.ways {
            match (way, report) {
                (_, Report::Once(_)) => {}
                (Way::Within(link), Report::Cut(_)) => links.push(link.clone()),
                (Way::Nodes(a, b), Report::Cut(_)) => {
                    links
                        .extend(on(a).flat_map(|a| on(b).map(move |b| pair(a.clone(), b.clone()))));
                }
            }
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32) -> DeviceId {
        DeviceId { node: "a".into(), index }
    }

    fn of_b(index: u32) -> DeviceId {
        DeviceId { node: "b".into(), index }
    }

    fn link() -> Pair {
        pair(device(1), device(0))
    }

    fn s(seconds: u64) -> Now {
        Now::from_secs(seconds)
    }

    fn cut(cuts: &Cuts) -> Vec<Pair> {
        cuts.among(&[device(0), device(1), device(2), of_b(0), of_b(1)])
    }

    #[test]
    fn a_link_is_cut_by_its_second_report_and_for_a_minute() {
        let mut cuts = Cuts::default();
        assert!(!cuts.reported(s(0), link()));
        assert_eq!(cut(&cuts), []);
        assert!(cuts.reported(s(1), pair(device(0), device(1))));
        assert_eq!(cut(&cuts), [link()]);
        assert!(!cuts.expire(s(60)) && cuts.expire(s(61)));
        assert_eq!(cut(&cuts), []);
    }

    #[test]
    fn devices_of_two_nodes_share_the_way_between_them() {
        let mut cuts = Cuts::default();
        assert!(!cuts.reported(s(0), pair(device(0), of_b(0))));
        assert!(cuts.reported(s(1), pair(of_b(1), device(2))));
        let across = [0, 1, 2].map(|a| [0, 1].map(|b| pair(device(a), of_b(b))));
        assert_eq!(cut(&cuts), across.concat());
        cuts.forget(&of_b(0));
        assert_eq!(cut(&cuts), [], "it may have been the process after all");
    }

    #[test]
    fn reports_far_apart_are_not_of_one_cut() {
        let mut cuts = Cuts::default();
        cuts.reported(s(0), link());
        assert!(!cuts.reported(s(60), link()));
    }

    #[test]
    fn a_device_that_cannot_be_linked_confirms_the_report() {
        let mut cuts = Cuts::default();
        assert!(!cuts.unlinked(s(0), &device(0)), "nobody has reported it");
        cuts.reported(s(0), link());
        assert!(cuts.unlinked(s(1), &device(1)));
        cuts.forget(&device(0));
        assert_eq!(cut(&cuts), []);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut cuts = Cuts::default();
        for index in 1..2 * WAYS_MAX as u32 {
            cuts.reported(s(index.into()), pair(device(0), device(index)));
        }
        assert!(cuts.ways.len() <= WAYS_MAX);
    }
}
