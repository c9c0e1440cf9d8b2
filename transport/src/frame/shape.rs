//! The dimensions of a payload, in the frame's metadata itself.
//!
//! Owns the bound: no shape has memory of its own. Invariant: what lies beyond the count is never
//! looked at.

use std::fmt;
use std::ops::Deref;

use rkyv::{Archive, Deserialize, Serialize};

use super::SHAPE_DIMS_MAX;

/// Dimensions, outermost first, at most [`SHAPE_DIMS_MAX`].
#[derive(Clone, Copy, Default, Archive, Serialize, Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct Shape {
    /// How many; one of too many dimensions knows their number, and is refused wherever it goes.
    count: u8,
    dims: [u32; SHAPE_DIMS_MAX],
}

impl Shape {
    /// How many dimensions it was given.
    pub fn count(&self) -> usize {
        self.count.into()
    }
}

impl ArchivedShape {
    /// Whether it has no more dimensions than it can.
    pub(super) fn is_bounded(&self) -> bool {
        usize::from(self.count) <= SHAPE_DIMS_MAX
    }
}

impl FromIterator<u32> for Shape {
    fn from_iter<I: IntoIterator<Item = u32>>(dims: I) -> Self {
        let mut shape = Self::default();
        for dim in dims {
            let at = shape.count();
            if let Some(place) = shape.dims.get_mut(at) {
                *place = dim;
            }
            shape.count = shape.count.saturating_add(1);
        }
        shape
    }
}

impl<const N: usize> From<[u32; N]> for Shape {
    fn from(dims: [u32; N]) -> Self {
        dims.into_iter().collect()
    }
}

impl Deref for Shape {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.dims.get(..self.count()).unwrap_or(&self.dims)
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && **self == **other
    }
}

impl Eq for Shape {}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
