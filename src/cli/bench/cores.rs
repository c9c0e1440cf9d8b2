//! Which two cores the ranks are pinned to.
//!
//! Owns the choice: cores this process may use, and of those two that share no execution units.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::cli::failure::Failure;

/// Two cores: as given, or two that this process may use.
pub(crate) fn two(given: Option<&[usize]>) -> Result<[usize; 2], Failure> {
    let allowed = allowed()?;
    match given {
        Some(&[a, b]) if a != b && allowed.contains(&a) && allowed.contains(&b) => Ok([a, b]),
        Some(given) => Err(Failure::usage(format!(
            "--cores {given:?} are not two of the cores this process may use: {allowed:?}"
        ))),
        None => choose(&allowed, siblings).ok_or_else(|| {
            Failure::failed(format!(
                "two ranks need two cores, and this process may use {allowed:?}"
            ))
        }),
    }
}

fn allowed() -> Result<Vec<usize>, Failure> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|error| Failure::failed(format!("cannot read the cores: {error}")))?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// The first core and the first that is no hyperthread of it; any other where there is none such.
fn choose(allowed: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> Option<[usize; 2]> {
    let (&first, others) = allowed.split_first()?;
    let near = siblings(first);
    let apart = others.iter().find(|core| !near.contains(core));
    Some([first, *apart.or(others.first())?])
}

/// The hyperthreads of `core`, itself included, as far as the system tells.
fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    std::fs::read_to_string(path).map_or(Vec::new(), |text| parse_list(text.trim()))
}

/// `0-1,8` as numbers; what is no list is empty.
fn parse_list(text: &str) -> Vec<usize> {
    let ranges = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().take(CpuSet::count()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyperthreads_of_one_core_are_avoided_where_that_can_be() {
        let pairs = |core: usize| vec![core / 2 * 2, core / 2 * 2 + 1];
        assert_eq!(choose(&[0, 1, 2, 3], pairs), Some([0, 2]));
        assert_eq!(choose(&[0, 1], pairs), Some([0, 1]));
        assert_eq!(choose(&[3], pairs), None);
        assert_eq!(parse_list("0-1,8"), [0, 1, 8]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
    }
}
