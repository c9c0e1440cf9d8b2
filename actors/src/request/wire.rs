//! What crosses between ranks in fewer bytes: the settings of a request, and the account of a run.
//!
//! Owns the names and defaults: everything travels as it is computed, in f32, unless asked
//! otherwise. Which messages belong to an axis is [`crate::plan::message`]'s, how floats become
//! fewer bytes [`ditmesh_transport::codec`]'s.

use std::str::FromStr;

use ditmesh_transport::frame;
use serde::{Deserialize, Serialize};

/// Steps between two refreshes of a residual where nothing else is asked for.
pub const WIRE_REFRESH_EVERY: u32 = 8;

/// Element type in which floats travel.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// 32-bit float: to the bit.
    #[default]
    F32,
    /// bfloat16: half the bytes, 8 bits of precision, any magnitude.
    Bf16,
    /// IEEE half: half the bytes, 11 bits of precision, magnitudes up to 65,504.
    F16,
    /// 8-bit codes with a scale for each row: about a quarter of the bytes, an error of at most
    /// 1/254 of the row's largest magnitude.
    Int8,
}

impl WireDtype {
    /// As people write it.
    pub const NAMES: [(&'static str, Self); 4] =
        [("f32", Self::F32), ("bf16", Self::Bf16), ("f16", Self::F16), ("int8", Self::Int8)];

    /// As people write it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, dtype)| *dtype == self).map_or("f32", |(name, _)| name)
    }

    /// The element type of a payload.
    pub fn payload(self) -> frame::Dtype {
        match self {
            Self::F32 => frame::Dtype::F32,
            Self::Bf16 => frame::Dtype::Bf16,
            Self::F16 => frame::Dtype::F16,
            Self::Int8 => frame::Dtype::I8Rows,
        }
    }
}

/// What a message belongs to.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Predicted noise between the guidance branches.
    Cfg,
    /// Queries, keys, values and outputs of Ulysses' all-to-all.
    Ulysses,
    /// Keys and values on a ring.
    Ring,
    /// Hidden states from stage to stage.
    Pipefusion,
    /// All others: text, latents, decisions, decoding, the result. Always as they are.
    Other,
}

impl Axis {
    /// The axes whose element type can be chosen.
    pub const CHOOSABLE: [Self; 4] = [Self::Cfg, Self::Ulysses, Self::Ring, Self::Pipefusion];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cfg => "cfg",
            Self::Ulysses => "ulysses",
            Self::Ring => "ring",
            Self::Pipefusion => "pipefusion",
            Self::Other => "other",
        }
    }
}

/// What travels in fewer bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(deny_unknown_fields, default)]
pub struct Wire {
    /// Predicted noise between the guidance branches.
    pub cfg: WireDtype,
    /// Ulysses' all-to-all.
    pub ulysses: WireDtype,
    /// Keys and values on a ring.
    pub ring: WireDtype,
    /// Hidden states from stage to stage. The latents that go back to the first stage are small and
    /// stay as they are.
    pub pipefusion: WireDtype,
    /// Whether hidden states travel as the change to what the receiver holds of the step before.
    pub residual: bool,
    /// Steps between those in which they travel whole and in f32 nevertheless; 0 is the first only.
    pub refresh_every: u32,
}

impl Default for Wire {
    fn default() -> Self {
        let (cfg, ulysses, ring, pipefusion) = Default::default();
        let (residual, refresh_every) = (false, WIRE_REFRESH_EVERY);
        Self { cfg, ulysses, ring, pipefusion, residual, refresh_every }
    }
}

impl Wire {
    /// The element type of an axis.
    pub fn dtype(&self, axis: Axis) -> WireDtype {
        match axis {
            Axis::Cfg => self.cfg,
            Axis::Ulysses => self.ulysses,
            Axis::Ring => self.ring,
            Axis::Pipefusion => self.pipefusion,
            Axis::Other => WireDtype::F32,
        }
    }

    /// Sets the element type of an axis.
    pub fn set(&mut self, axis: Axis, dtype: WireDtype) {
        match axis {
            Axis::Cfg => self.cfg = dtype,
            Axis::Ulysses => self.ulysses = dtype,
            Axis::Ring => self.ring = dtype,
            Axis::Pipefusion => self.pipefusion = dtype,
            Axis::Other => {}
        }
    }

    /// Whether hidden states travel whole in `step`, where they travel as changes.
    pub fn is_refresh(&self, step: usize) -> bool {
        step == 0 || (self.refresh_every > 0 && step.is_multiple_of(self.refresh_every as usize))
    }

    /// What makes no sense about it, and what to do.
    ///
    /// # Errors
    /// When changes are asked for that nothing would be saved by.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.residual && self.pipefusion == WireDtype::F32 {
            return Err("wire_residual with wire_dtype f32 between stages saves nothing; give \
                        pipefusion bf16, f16 or int8");
        }
        Ok(())
    }

    /// Whether everything travels as it is.
    pub fn is_exact(&self) -> bool {
        Axis::CHOOSABLE.iter().all(|&axis| self.dtype(axis) == WireDtype::F32)
    }
}

/// A list of element types is no such list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no element type of an axis; write f32, bf16, f16 or int8 for all axes, or \
     AXIS=TYPE with cfg, ulysses, ring or pipefusion, several with commas"
)]
pub struct WireDtypeError {
    /// The part that is wrong.
    pub found: String,
}

/// `int8` for all axes, or `ulysses=int8,pipefusion=bf16`; what is not named stays f32.
impl FromStr for Wire {
    type Err = WireDtypeError;

    fn from_str(text: &str) -> Result<Self, WireDtypeError> {
        let mut wire = Self::default();
        for part in text.split(',').map(str::trim) {
            let wrong = || WireDtypeError { found: part.to_owned() };
            let (axis, name) =
                part.split_once('=').map_or((None, part), |(axis, name)| (Some(axis), name));
            let known = WireDtype::NAMES.iter().find(|(known, _)| *known == name);
            let (_, dtype) = known.ok_or_else(wrong)?;
            let named = |candidate: &Axis| axis.is_none_or(|axis| axis == candidate.name());
            let axes: Vec<Axis> = Axis::CHOOSABLE.into_iter().filter(named).collect();
            if axes.is_empty() {
                return Err(wrong());
            }
            axes.into_iter().for_each(|axis| wire.set(axis, *dtype));
        }
        Ok(wire)
    }
}

impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_exact() {
            return write!(f, "f32");
        }
        let named = |axis: &Axis| self.dtype(*axis) != WireDtype::F32;
        let parts = Axis::CHOOSABLE.into_iter().filter(named);
        let parts: Vec<String> =
            parts.map(|axis| format!("{}={}", axis.name(), self.dtype(axis).name())).collect();
        write!(f, "{}", parts.join(","))?;
        if self.residual {
            write!(f, ", residual, refreshed every {}", self.refresh_every)?;
        }
        Ok(())
    }
}

/// Payload bytes of one axis.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct AxisTraffic {
    /// Which axis.
    pub axis: Axis,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// How many more the same frames would have had in f32.
    pub bytes_saved: u64,
}

/// What some ranks sent, axis by axis.
pub fn traffic_of<'a>(ranks: impl Iterator<Item = &'a [AxisTraffic]>) -> Vec<AxisTraffic> {
    let mut sums = std::collections::BTreeMap::<Axis, (u64, u64)>::new();
    for AxisTraffic { axis, bytes_sent, bytes_saved } in ranks.flatten().copied() {
        let (sent, saved) = sums.entry(axis).or_default();
        (*sent, *saved) = (*sent + bytes_sent, *saved + bytes_saved);
    }
    let entry = |(axis, (bytes_sent, bytes_saved))| AxisTraffic { axis, bytes_sent, bytes_saved };
    sums.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn types_are_written_for_all_axes_or_axis_by_axis() {
        let all: Wire = "int8".parse().unwrap();
        assert!(Axis::CHOOSABLE.iter().all(|&axis| all.dtype(axis) == WireDtype::Int8));
        let some: Wire = "ulysses=int8, pipefusion=bf16".parse().unwrap();
        assert_eq!((some.ulysses, some.pipefusion), (WireDtype::Int8, WireDtype::Bf16));
        assert_eq!((some.cfg, some.ring), (WireDtype::F32, WireDtype::F32));
        let mixed: Wire = "bf16,ring=f32".parse().unwrap();
        assert_eq!(mixed.to_string(), "cfg=bf16,ulysses=bf16,pipefusion=bf16");
        for bad in ["", "int4", "ulysses", "data=int8", "ulysses=", "other=int8", "int8,,"] {
            assert!(bad.parse::<Wire>().is_err(), "{bad}");
        }
        assert!("f32".parse::<Wire>().unwrap().is_exact());
    }

    #[test]
    fn refreshes_come_every_so_often_and_first() {
        let steps = |refresh_every| -> Vec<usize> {
            let wire = Wire { refresh_every, ..Wire::default() };
            (0..9).filter(|&step| wire.is_refresh(step)).collect()
        };
        assert_eq!(steps(4), [0, 4, 8]);
        assert_eq!(steps(0), [0]);
        assert_eq!(steps(1).len(), 9);
    }
}
