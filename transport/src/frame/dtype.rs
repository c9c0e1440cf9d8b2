//! Element types as one byte on the wire.
//!
//! Owns the codes and widths. Does not know what the numbers mean.

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
            _ => return None,
        })
    }

    /// Width of one element in bytes.
    pub const fn size_bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}
