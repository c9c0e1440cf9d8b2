//! Element types as one byte on the wire.
//!
//! Owns the codes, and how many bytes a payload of a shape has. Does not know what the numbers
//! mean, nor how floats become fewer bytes ([`crate::codec`]).

/// Bytes of the scale before the codes of each row of a [`Dtype::I8Rows`] payload.
pub const ROW_SCALE_BYTES: usize = 4;

/// The element type of a payload; the discriminant is the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    /// Bytes.
    U8 = 0,
    /// 32-bit float.
    F32 = 1,
    /// 16-bit IEEE float.
    F16 = 2,
    /// 16-bit brain float.
    Bf16 = 3,
    /// 64-bit float.
    F64 = 4,
    /// 32-bit unsigned integer.
    U32 = 5,
    /// 64-bit signed integer.
    I64 = 6,
    /// 8-bit signed integers with a scale for each row, which is the innermost dimension: f32
    /// scale, then the codes, row by row.
    I8Rows = 7,
}

impl Dtype {
    /// The code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The type of a code, if this build knows it.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::F32,
            2 => Self::F16,
            3 => Self::Bf16,
            4 => Self::F64,
            5 => Self::U32,
            6 => Self::I64,
            7 => Self::I8Rows,
            _ => return None,
        })
    }

    /// Width of one element in bytes; scales of rows are apart.
    pub const fn size_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8Rows => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// Bytes of one row of `elements` elements, the innermost dimension of a shape.
    pub const fn row_bytes(self, elements: usize) -> usize {
        let scale = if matches!(self, Self::I8Rows) { ROW_SCALE_BYTES } else { 0 };
        elements * self.size_bytes() as usize + scale
    }

    /// Bytes of a payload of `shape`, outermost dimension first; none for a dimension of 0. `None`
    /// when that is more than a number holds.
    pub fn payload_bytes(self, shape: impl IntoIterator<Item = u64>) -> Option<u64> {
        let (mut rows, mut row) = (1u64, 1u64);
        for dim in shape {
            rows = rows.checked_mul(row)?;
            row = dim;
        }
        let scales = if self == Self::I8Rows && row > 0 { ROW_SCALE_BYTES as u64 } else { 0 };
        rows.checked_mul(row.checked_mul(self.size_bytes())?.checked_add(scales)?)
    }
}
