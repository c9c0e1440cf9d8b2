//! How much memory this process has had at most, as the system tells it.

/// Most bytes resident so far; 0 where the system does not tell.
pub(super) fn peak_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |status| parse(&status))
}

fn parse(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_found_and_what_is_not_there_is_nothing() {
        assert_eq!(parse("VmPeak:\t 9 kB\nVmHWM:\t    24 kB\nVmRSS:\t 8 kB\n"), 24 << 10);
        assert_eq!(parse("VmHWM: lots\n"), 0);
    }
}
