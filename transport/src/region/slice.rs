//! A shared, read-only view of a frozen region.
//!
//! Owns counting (through `Arc`) and the view's bounds. Invariants: the view lies inside the
//! region, and the region goes back to its pool when the last view is dropped, together with the
//! counter.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;

use super::{MemKind, Ready, Region};

/// A shared view; cloning costs a counter.
#[derive(Clone)]
pub struct Slice {
    region: Arc<Region>,
    offset: usize,
    len: usize,
    ready: Option<Arc<dyn Ready>>,
}

impl Slice {
    pub(super) fn of(region: Region, len: usize) -> Self {
        let len = len.min(region.len());
        Self { region: counted(region), offset: 0, len, ready: None }
    }

    /// A view of no bytes.
    pub fn empty() -> Self {
        Region::host(0).freeze(0)
    }

    /// A copy of `bytes` in memory of its own.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Region::copy_of(bytes).freeze(bytes.len())
    }

    /// The same view, to be read only after `ready`.
    #[must_use]
    pub fn with_ready(mut self, ready: Arc<dyn Ready>) -> Self {
        self.ready = Some(ready);
        self
    }

    /// What to wait for before reading.
    pub fn ready(&self) -> Option<&Arc<dyn Ready>> {
        self.ready.as_ref()
    }

    /// Whether it may be read.
    pub fn is_ready(&self) -> bool {
        self.ready.as_ref().is_none_or(|ready| ready.wait(Instant::now()))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the view has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the memory lives.
    pub fn kind(&self) -> MemKind {
        self.region.kind()
    }

    /// The region under the view.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Where in its region the view starts, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The bytes; empty when the host cannot address this kind of memory.
    pub fn bytes(&self) -> &[u8] {
        self.region.bytes().get(self.offset..self.offset + self.len).unwrap_or_default()
    }

    /// A part of this view, sharing its memory; `None` when it does not lie inside.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        let mut part = self.clone();
        part.offset += range.start;
        part.len = range.end - range.start;
        Some(part)
    }

    /// The region, for writing again, when this is the only view of it.
    ///
    /// # Errors
    /// The slice itself, while others share it.
    pub fn into_region(mut self) -> Result<Region, Self> {
        Arc::try_unwrap(std::mem::replace(&mut self.region, nothing())).map_err(|region| {
            self.region = region;
            self
        })
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        // Two last views that go at the same time both find the other: then the counter is freed.
        if Arc::get_mut(&mut self.region).is_none() {
            return;
        }
        let mut counter = std::mem::replace(&mut self.region, nothing());
        let Some(place) = Arc::get_mut(&mut counter) else { return };
        let region = std::mem::replace(place, Region::hollow());
        region.go_home(counter);
    }
}

/// The region behind a counter, one that was used before where its pool has one.
fn counted(region: Region) -> Arc<Region> {
    let Some(mut counter) = region.counter() else { return Arc::new(region) };
    match Arc::get_mut(&mut counter) {
        Some(place) => {
            *place = region;
            counter
        }
        None => Arc::new(region),
    }
}

/// What a view has after its end.
fn nothing() -> Arc<Region> {
    static NOTHING: LazyLock<Arc<Region>> = LazyLock::new(|| Arc::new(Region::hollow()));
    Arc::clone(&NOTHING)
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl From<Slice> for Bytes {
    fn from(slice: Slice) -> Self {
        Self::from_owner(slice)
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes, {:?})", self.len, self.kind())
    }
}
