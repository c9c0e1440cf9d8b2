//! Splitting work over the current rayon pool.
//!
//! Owns the rule when work is split and the creation of output buffers row by row. Invariant: no
//! function here makes the global pool come into being.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Threads that work may be split over: the size of the rayon pool this thread belongs to, or 1
/// when it belongs to none.
pub fn threads() -> usize {
    match rayon::current_thread_index() {
        Some(_) => rayon::current_num_threads(),
        None => 1,
    }
}

/// Calls `task` for each of `0..count`, each thread with a scratch value of its own from `init`.
pub(super) fn for_each_with<S>(
    count: usize,
    init: impl Fn() -> S + Send + Sync,
    task: impl Fn(&mut S, usize) + Send + Sync,
) {
    if threads() == 1 || count <= 1 {
        let mut scratch = init();
        (0..count).for_each(|index| task(&mut scratch, index));
    } else {
        (0..count).into_par_iter().for_each_init(init, task);
    }
}

/// Changes `data` in place, row by row of `width` elements; `task` gets the row's index.
pub(super) fn rows_in_place(
    data: &mut [f32],
    width: usize,
    at_least: usize,
    task: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if width == 0 {
        return;
    }
    if threads() == 1 || data.len() <= width * at_least {
        data.chunks_exact_mut(width).enumerate().for_each(|(index, row)| task(index, row));
    } else {
        let rows = data.par_chunks_exact_mut(width).enumerate().with_min_len(at_least);
        rows.for_each(|(index, row)| task(index, row));
    }
}

/// A new buffer of `count` rows of `width` elements, each filled by `task`, which sees zeros.
///
/// A row is cleared right before it is filled, while it is in the first-level cache, instead of
/// the whole buffer beforehand.
pub(super) fn new_rows(
    count: usize,
    width: usize,
    at_least: usize,
    task: impl Fn(usize, &mut [f32]) + Send + Sync,
) -> Vec<f32> {
    let len = count * width;
    let mut buffer: Vec<f32> = Vec::with_capacity(len);
    if len == 0 {
        return buffer;
    }
    let fill = |index: usize, row: &mut [MaybeUninit<f32>]| {
        row.fill(MaybeUninit::new(0.0));
        // SAFETY: every element of the row was just initialised, and the layouts are the same.
        let row = unsafe { &mut *(std::ptr::from_mut(row) as *mut [f32]) };
        task(index, row);
    };
    let spare = &mut buffer.spare_capacity_mut()[..len];
    if threads() == 1 || count <= at_least {
        spare.chunks_exact_mut(width).enumerate().for_each(|(index, row)| fill(index, row));
    } else {
        let rows = spare.par_chunks_exact_mut(width).enumerate().with_min_len(at_least);
        rows.for_each(|(index, row)| fill(index, row));
    }
    // SAFETY: `len` is within the capacity and all `count` rows of `width` were initialised above.
    unsafe { buffer.set_len(len) };
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_a_pool_there_is_one_thread() {
        assert_eq!(threads(), 1);
    }

    #[test]
    fn the_installed_pool_counts() {
        for size in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(size).build().expect("pool");
            assert_eq!(pool.install(threads), size);
            let rows = pool.install(|| new_rows(7, 2, 1, |index, row| row.fill(index as f32)));
            assert_eq!(rows.len(), 14);
            assert!(rows.chunks(2).enumerate().all(|(index, row)| row == [index as f32; 2]));
        }
    }
}
