//! Links between workers that the coordinator does not see: who has lost whom, and which links count
//! as cut.
//!
//! Owns the rule that one report may be a death that nobody has seen yet, and a second one of the
//! same pair is a cut, and how long that counts. The time comes in as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Now;
use crate::protocol::DeviceId;

/// How long a link counts as cut, and how far apart the two reports of it may be.
pub const CUT_FOR: Duration = Duration::from_secs(60);

/// Pairs of devices that are remembered; the oldest goes first.
const PAIRS_MAX: usize = 1024;

/// Two devices, the smaller name first.
pub type Pair = (DeviceId, DeviceId);

/// The link between two devices, whoever names it.
pub fn pair(a: DeviceId, b: DeviceId) -> Pair {
    if a <= b { (a, b) } else { (b, a) }
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
    pairs: BTreeMap<Pair, Report>,
}

impl Cuts {
    /// An end of a link says that it has lost the other; true when the link is newly cut.
    pub(super) fn reported(&mut self, now: Now, link: Pair) -> bool {
        let fresh = |since: Now| now.saturating_sub(since) < CUT_FOR;
        let (report, newly) = match self.pairs.get(&link) {
            Some(Report::Once(since)) if fresh(*since) => (Report::Cut(now), true),
            Some(Report::Cut(since)) if fresh(*since) => (Report::Cut(now), false),
            _ => (Report::Once(now), false),
        };
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&link) {
            let age = |report: &Report| match report {
                Report::Once(since) | Report::Cut(since) => *since,
            };
            let oldest = self.pairs.iter().min_by_key(|(_, report)| age(report));
            if let Some(oldest) = oldest.map(|(pair, _)| pair.clone()) {
                self.pairs.remove(&oldest);
            }
        }
        self.pairs.insert(link, report);
        newly
    }

    /// A device could not be linked: whoever it was reported with is reported again.
    pub(super) fn unlinked(&mut self, now: Now, device: &DeviceId) -> bool {
        let with = |(a, b): &&Pair| a == device || b == device;
        let pairs: Vec<Pair> = self.pairs.keys().filter(with).cloned().collect();
        let mut newly = false;
        for link in pairs {
            newly |= self.reported(now, link);
        }
        newly
    }

    /// A device came back as another life: what was said of its links was said of the one before.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.pairs.retain(|(a, b), _| a != device && b != device);
    }

    /// Forgets what is too old; true when a cut is over.
    pub(super) fn expire(&mut self, now: Now) -> bool {
        let mut over = false;
        self.pairs.retain(|_, report| {
            let (Report::Once(since) | Report::Cut(since)) = *report;
            let fresh = now.saturating_sub(since) < CUT_FOR;
            over |= !fresh && matches!(report, Report::Cut(_));
            fresh
        });
        over
    }

    /// The links that count as cut.
    pub(super) fn cut(&self) -> Vec<Pair> {
        let cut = self.pairs.iter().filter(|(_, report)| matches!(report, Report::Cut(_)));
        cut.map(|(link, _)| link.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32) -> DeviceId {
        DeviceId { node: "a".into(), index }
    }

    fn link() -> Pair {
        pair(device(1), device(0))
    }

    fn s(seconds: u64) -> Now {
        Now::from_secs(seconds)
    }

    #[test]
    fn a_link_is_cut_by_its_second_report_and_for_a_minute() {
        let mut cuts = Cuts::default();
        assert!(!cuts.reported(s(0), link()));
        assert_eq!(cuts.cut(), []);
        assert!(cuts.reported(s(1), pair(device(0), device(1))));
        assert_eq!(cuts.cut(), [link()]);
        assert!(!cuts.expire(s(60)) && cuts.expire(s(61)));
        assert_eq!(cuts.cut(), []);
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
        assert_eq!(cuts.cut(), []);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut cuts = Cuts::default();
        for index in 1..2 * PAIRS_MAX as u32 {
            cuts.reported(s(index.into()), pair(device(0), device(index)));
        }
        assert!(cuts.pairs.len() <= PAIRS_MAX);
    }
}
