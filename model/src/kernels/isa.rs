//! Which instruction set the row kernels run with, and the macro that compiles one for each.
//!
//! Invariant: a kernel body is written once, in portable Rust that vectorises; the three versions
//! differ only in the target features the compiler may use.

use std::sync::OnceLock;

/// An instruction set the row kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Whatever the target guarantees.
    Portable,
}

impl Isa {
    /// The best set this processor has, or a lesser one that `DITMESH_ISA` names (`avx2`,
    /// `portable`); found once per process.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let wanted = std::env::var("DITMESH_ISA").unwrap_or_default();
            let sets = Self::up_to(&wanted);
            sets.iter().copied().find(|isa| isa.supported()).unwrap_or(Self::Portable)
        })
    }

    /// The sets that may be used when `wanted` is asked for, best first; all for an unknown name.
    fn up_to(wanted: &str) -> &'static [Self] {
        match wanted {
            "portable" => &[Self::Portable],
            "avx2" => &[Self::Avx2],
            _ => &[Self::Avx512, Self::Avx2],
        }
    }

    /// Whether this processor can run code compiled for this set.
    pub fn supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512 => {
                Self::Avx2.supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Self::Portable)
    }
}

/// Defines `fn name(isa: Isa, args..)`: the body compiled once per instruction set, and a jump to
/// the one asked for (to the portable one when this processor lacks it).
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name(isa: $crate::kernels::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            match isa {
                // SAFETY: the guard checked that the processor has every enabled feature.
                $crate::kernels::isa::Isa::Avx512 if isa.supported() => unsafe {
                    avx512($($arg),*)
                },
                // SAFETY: as above.
                $crate::kernels::isa::Isa::Avx2 if isa.supported() => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                body($($arg),*)
            }
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_set_is_always_there() {
        assert!(Isa::Portable.supported() && Isa::detect().supported());
    }

    #[test]
    fn a_lesser_set_can_be_asked_for_but_no_unknown_one() {
        assert_eq!(Isa::up_to("portable"), [Isa::Portable]);
        assert_eq!(Isa::up_to("avx2"), [Isa::Avx2]);
        assert_eq!(Isa::up_to("sse9"), [Isa::Avx512, Isa::Avx2]);
    }
}
