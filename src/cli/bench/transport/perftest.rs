//! `ucx_perftest`, UCX's own benchmark.
//!
//! Owns starting its two ends, each on a core, and reading its figures. Invariant: both end before
//! this returns, or are killed.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::wait::output_within;

/// Longest run of one measurement.
const RUN_MAX: Duration = Duration::from_secs(60);

/// Which transports of UCX it may use, and whether as a program must that outlives its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Tcp,
    /// With endpoints that tell when their peer is gone, as a link has them.
    TcpWithErrors,
    SharedMemory,
}

impl Over {
    fn transports(self) -> &'static str {
        match self {
            Self::Tcp | Self::TcpWithErrors => "tcp",
            Self::SharedMemory => "posix,sysv,cma",
        }
    }
}

/// GB/s of `count` messages of `bytes`.
pub(super) fn stream(
    over: Over,
    cores: [usize; 2],
    bytes: usize,
    count: u64,
) -> Result<f64, String> {
    let arguments = ["-t", "tag_bw", "-w", "2"].map(str::to_owned).into_iter();
    let sized = ["-s".to_owned(), bytes.to_string(), "-n".to_owned(), count.to_string()];
    let figures = run(over, cores, &arguments.chain(sized).collect::<Vec<_>>())?;
    // The columns are iterations, three latencies, two bandwidths in MiB/s, two message rates.
    let mebibytes = figures.get(5).ok_or("ucx_perftest printed no bandwidth")?;
    Ok(mebibytes * f64::from(1 << 20) / 1e9)
}

/// Microseconds of a round trip of 64 bytes.
pub(super) fn round_trip(over: Over, cores: [usize; 2], count: u64) -> Result<f64, String> {
    let arguments = ["-t", "tag_lat", "-s", "64", "-w", "100", "-n"].map(str::to_owned);
    let arguments = arguments.into_iter().chain([count.to_string()]);
    let figures = run(over, cores, &arguments.collect::<Vec<_>>())?;
    // It reports half of a round trip.
    figures.get(3).map(|half| half * 2.0).ok_or("ucx_perftest printed no latency".into())
}

fn run(over: Over, cores: [usize; 2], arguments: &[String]) -> Result<Vec<f64>, String> {
    let port = free_port()?;
    let start = |core: usize, server: Option<&str>| {
        let mut command = Command::new("ucx_perftest");
        command.args(server).args(arguments).arg("-f").args(["-c", &core.to_string()]);
        if over == Over::TcpWithErrors {
            command.arg("-e");
        }
        command.args(["-p", &port.to_string()]).env("UCX_TLS", over.transports());
        command.env("UCX_WARN_UNUSED_ENV_VARS", "n");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let not_there = |error| format!("cannot start ucx_perftest: {error}");
    let server = Ended(start(cores[0], None).map_err(not_there)?);
    let deadline = Instant::now() + RUN_MAX;
    loop {
        let client = start(cores[1], Some("127.0.0.1")).map_err(not_there)?;
        let output = output_within(client, deadline)?;
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(figures) = figures(&text) {
            drop(server);
            return Ok(figures);
        }
        // The server may not listen yet.
        if Instant::now() > deadline || !refused(&output) {
            let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("ucx_perftest printed no figures: {error}"));
        }
        std::thread::yield_now();
    }
}

fn refused(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("connect")
        || String::from_utf8_lossy(&output.stdout).contains("connect")
}

/// The last line that holds nothing but eight numbers or more.
fn figures(text: &str) -> Option<Vec<f64>> {
    let numbers = |line: &str| {
        let words = line.split_whitespace().filter(|word| *word != "Final:");
        words.map(|word| word.parse::<f64>().ok()).collect::<Option<Vec<_>>>()
    };
    text.lines().rev().filter_map(numbers).find(|numbers| numbers.len() >= 8)
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| e.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It ends by itself after the client; this is for when that did not come.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_the_last_row_of_numbers() {
        let text = "+---+\n| header 1 2 |\nFinal:   100   0.0  12.5  12.25  5119.8 5000.5  80 79\n";
        let figures = figures(text).unwrap_or_default();
        assert_eq!((figures.get(3), figures.get(5)), (Some(&12.25), Some(&5000.5)));
        assert!(super::figures("nothing\n1 2 3").is_none());
    }
}
