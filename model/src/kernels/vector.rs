//! A register of f32 lanes, one type per instruction set.
//!
//! Owns the few operations that the micro-kernels of [`super::micro`] are written with. Does not
//! own the choice of a set: whoever names a type here has checked that the processor has it.
//!
//! Invariant: `fma` rounds once with AVX2 and AVX-512 (and on aarch64), twice on other portable
//! targets; so AVX2 and AVX-512 agree to the bit wherever the order of operations is the same.
#![allow(unsafe_code)]

/// `LANES` f32 in registers.
///
/// # Safety
/// The functions may only run on a processor that has the instruction set of the type, and are
/// meant to be inlined into a function that enables it.
pub(super) unsafe trait Vector: Copy {
    const LANES: usize;

    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;

    /// The `LANES` elements from `from` on, at any alignment; they must be readable.
    unsafe fn load(from: *const f32) -> Self;

    /// Writes the lanes from `to` on, at any alignment; the place must be writable.
    unsafe fn store(self, to: *mut f32);

    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;

    /// `self + a * b`.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
}

/// Eight lanes that can be written across.
///
/// # Safety
/// As [`Vector`].
pub(super) unsafe trait Octet: Vector {
    /// Writes lane `i` of the four registers, one after another, to the four elements from
    /// `to + i * stride` on, for all eight lanes; the places must be writable.
    unsafe fn store_across(lines: [Self; 4], to: *mut f32, stride: usize);

    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;

    /// Lets the processor fetch the cache line of a place to the second level, where it can be told
    /// to; any place will do.
    fn prefetch(place: *const f32);

    /// The same, to the first level.
    fn prefetch_near(place: *const f32);
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

// SAFETY: needs no instruction set beyond the target's own.
unsafe impl Vector for Plain {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight readable elements.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for eight writable elements.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane += other;
        }
        self
    }

    #[inline(always)]
    unsafe fn fma(mut self, a: Self, b: Self) -> Self {
        for ((lane, a), b) in self.0.iter_mut().zip(a.0).zip(b.0) {
            // Elsewhere a fused operation may be a call into a library.
            *lane = if cfg!(target_arch = "aarch64") { a.mul_add(b, *lane) } else { *lane + a * b };
        }
        self
    }
}

// SAFETY: needs no instruction set beyond the target's own.
unsafe impl Octet for Plain {
    #[inline(always)]
    unsafe fn store_across(lines: [Self; 4], to: *mut f32, stride: usize) {
        for lane in 0..Self::LANES {
            for (index, line) in lines.iter().enumerate() {
                // SAFETY: the caller vouches for the place.
                unsafe { to.add(lane * stride + index).write(line.0[lane]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane *= other;
        }
        self
    }

    #[inline(always)]
    fn prefetch(_: *const f32) {}

    #[inline(always)]
    fn prefetch_near(_: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_storeu_ps, _mm256_add_ps,
        _mm256_castpd_ps, _mm256_castps_pd, _mm256_castps256_ps128, _mm256_extractf128_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
        _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::{Octet, Vector};

    // SAFETY: every function runs instructions of the type's set and no other.
    unsafe impl Octet for __m256 {
        #[inline(always)]
        unsafe fn store_across(lines: [Self; 4], to: *mut f32, stride: usize) {
            let [a, b, c, d] = lines;
            // SAFETY: the caller vouches for the instruction set and the place.
            unsafe {
                // Lanes 0, 1 and 4, 5 of two lines each; then 2, 3 and 6, 7.
                let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                let low = |x, y| {
                    _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)))
                };
                let high = |x, y| {
                    _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)))
                };
                let pairs =
                    [low(ab, cd), high(ab, cd), low(ab_high, cd_high), high(ab_high, cd_high)];
                for (lane, pair) in pairs.into_iter().enumerate() {
                    _mm_storeu_ps(to.add(lane * stride), _mm256_castps256_ps128(pair));
                    _mm_storeu_ps(to.add((lane + 4) * stride), _mm256_extractf128_ps::<1>(pair));
                }
            }
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { _mm256_mul_ps(self, other) }
        }

        #[inline(always)]
        fn prefetch(place: *const f32) {
            // SAFETY: part of every x86-64, and nothing is read that a program would see.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) }
        }

        #[inline(always)]
        fn prefetch_near(place: *const f32) {
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) }
        }
    }

    macro_rules! vector {
        (
            $type:ty, $lanes:literal,
            $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident
        ) => {
            // SAFETY: every function runs instructions of the type's set and no other.
            unsafe impl Vector for $type {
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { $splat(value) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: the caller vouches for the instruction set and the elements.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: the caller vouches for the instruction set and the place.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { $add(self, other) }
                }

                #[inline(always)]
                unsafe fn fma(self, a: Self, b: Self) -> Self {
                    // SAFETY: the caller vouches for the instruction set.
                    unsafe { $fma(a, b, self) }
                }
            }
        };
    }

    vector!(
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );
    vector!(
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );
}
