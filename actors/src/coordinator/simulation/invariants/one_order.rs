//! One order: what ranks of a mesh begin is the same on all of them, entry by entry, whatever was
//! stopped before; else they wait for each other.

use super::Watch;
use crate::plan::interleave::Entry;

pub(in super::super) const NAME: &str = "one order";

impl Watch {
    /// A rank of that epoch begins the entry of this number.
    pub(in super::super) fn begins(&mut self, epoch: u64, number: u64, entry: Entry) {
        let (run, unit) = (entry.run, entry.unit);
        let begun = *self.begun.entry((epoch, number)).or_insert((run, unit));
        if begun != (run, unit) {
            let how = format!("of epoch {epoch} is {begun:?}, then {:?}", (run, unit));
            self.broken(NAME, format!("entry {number} {how}"));
        }
    }
}
