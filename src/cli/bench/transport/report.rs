//! What was measured, as JSON and as a table.
//!
//! Owns the names of the figures and the ratios. Invariant: a ratio is formed within a round, where
//! both sides saw the same machine, and is null where one side was not measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::super::statistics::Spread;
use crate::cli::mesh_text::table;

/// What one way did in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) gb_per_s: Option<f64>,
    pub(super) cpu_s_per_gb: Option<f64>,
    pub(super) round_trip_us: Option<f64>,
    /// Switches between threads in a round trip, of both ends together.
    pub(super) switches: Option<f64>,
}

/// One round: a way's name and its figures.
pub(super) type Round = BTreeMap<&'static str, Figures>;

/// One way over all rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) gb_per_s: Option<Spread>,
    pub(super) cpu_s_per_gb: Option<Spread>,
    pub(super) round_trip_us: Option<Spread>,
    /// Switches between threads in a round trip, of both ends together.
    pub(super) switches: Option<Spread>,
}

/// Goodput by size.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Size {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    pub(super) gb_per_s: Spread,
}

/// Both ends sending and receiving at once: a ring exchange, and an all-to-all, of two.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Exchange {
    pub(super) name: &'static str,
    pub(super) bytes: usize,
    /// In each direction.
    pub(super) gb_per_s: Spread,
}

/// What could not be measured, and why.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NotMeasured {
    pub(super) name: String,
    pub(super) cause: String,
}

/// One link.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Who is at its ends.
    pub(super) link: [String; 2],
    pub(super) message_bytes: usize,
    pub(super) messages: u32,
    pub(super) rounds: u32,
    pub(super) ways: Vec<Way>,
    pub(super) sizes: Vec<Size>,
    pub(super) exchange: Vec<Exchange>,
    /// Medians of the ratios of single rounds.
    pub(super) ratios: BTreeMap<&'static str, Option<f64>>,
    /// The same with what else is compared, and with spreads.
    pub(super) ratio_spreads: BTreeMap<&'static str, Option<Spread>>,
    /// Microseconds of header and metadata of a frame, both ends together.
    pub(super) frame_us: Spread,
    pub(super) not_measured: Vec<NotMeasured>,
}

#[derive(Clone, Copy)]
enum Of {
    Goodput,
    Cpu,
    RoundTrip,
}

/// The ratios that the project promises: name, what, of which, over which.
const RATIOS: [(&str, Of, &str, &str); 7] = [
    ("quic_jumbo_over_tls", Of::Goodput, "quic", "tls"),
    ("quic_1500_over_tls", Of::Goodput, "quic-1500", "tls"),
    ("quic_over_quinn_default", Of::Goodput, "quic", "quinn-default"),
    ("ucx_tcp_over_perftest", Of::Goodput, "ucx-tcp", "perftest-tcp"),
    ("ucx_shm_over_perftest", Of::Goodput, "ucx-shm", "perftest-shm"),
    ("ucx_tcp_over_gloo", Of::Goodput, "ucx-tcp", "gloo"),
    ("quic_rtt_over_tcp", Of::RoundTrip, "quic", "tcp"),
];

/// The product's ways over several links, a line for each.
pub(super) fn beside(links: &[Report]) -> String {
    let head = ["link", "way", "GB/s", "CPU s/GB", "round trip us"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    let spread = |spread: Option<Spread>| spread.map_or("-".to_owned(), |it| it.to_string());
    for report in links {
        let link = format!("{} - {}", report.link[0], report.link[1]);
        rows.extend(report.ways.iter().map(|way| {
            let (rate, cpu, trip) = (way.gb_per_s, way.cpu_s_per_gb, way.round_trip_us);
            vec![link.clone(), way.name.to_owned(), spread(rate), spread(cpu), spread(trip)]
        }));
    }
    table(&rows)
}

/// What else is worth comparing.
const MORE_RATIOS: [(&str, Of, &str, &str); 12] = [
    ("ucx_tcp_over_perftest_errors", Of::Goodput, "ucx-tcp", "perftest-tcp-errors"),
    ("ucx_tcp_rtt_over_perftest_errors", Of::RoundTrip, "ucx-tcp", "perftest-tcp-errors"),
    ("quic_one_rtt_over_tcp", Of::RoundTrip, "quic-one", "tcp"),
    ("quinn_1_thread_rtt_over_tcp", Of::RoundTrip, "quinn-1-thread", "tcp"),
    ("quic_one_jumbo_over_tls", Of::Goodput, "quic-one", "tls"),
    ("quic_one_1500_over_tls", Of::Goodput, "quic-one-1500", "tls"),
    ("quic_cpu_over_tls", Of::Cpu, "quic", "tls"),
    ("quic_one_cpu_over_tls", Of::Cpu, "quic-one", "tls"),
    ("quic_jumbo_over_tcp", Of::Goodput, "quic", "tcp"),
    ("quic_bbr_over_tcp", Of::Goodput, "quic-bbr", "tcp"),
    ("ucx_tcp_rtt_over_perftest", Of::RoundTrip, "ucx-tcp", "perftest-tcp"),
    ("ucx_shm_rtt_over_perftest", Of::RoundTrip, "ucx-shm", "perftest-shm"),
];

/// Every ratio over all rounds.
pub(super) fn ratios(rounds: &[Round]) -> BTreeMap<&'static str, Option<Spread>> {
    let all = RATIOS.iter().chain(&MORE_RATIOS);
    all.map(|&(name, of, above, below)| {
        let each = rounds.iter().filter_map(|round| {
            let (above, below) = (round.get(above)?.of(of)?, round.get(below)?.of(of)?);
            Some(above / below)
        });
        (name, Spread::of(each))
    })
    .collect()
}

/// The medians of the promised ones.
pub(super) fn promised(
    spreads: &BTreeMap<&'static str, Option<Spread>>,
) -> BTreeMap<&'static str, Option<f64>> {
    let median = |name| spreads.get(name).copied().flatten().map(|spread| spread.median);
    RATIOS.iter().map(|(name, ..)| (*name, median(*name))).collect()
}

/// Every way over all rounds.
pub(super) fn ways(rounds: &[Round]) -> Vec<Way> {
    let mut names: Vec<_> = rounds.iter().flat_map(|round| round.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let spread = |name, of: fn(&Figures) -> Option<f64>| {
        Spread::of(rounds.iter().filter_map(|round| of(round.get(name)?)))
    };
    let way = |name| Way {
        name,
        gb_per_s: spread(name, |figures| figures.gb_per_s),
        cpu_s_per_gb: spread(name, |figures| figures.cpu_s_per_gb),
        round_trip_us: spread(name, |figures| figures.round_trip_us),
        switches: spread(name, |figures| figures.switches),
    };
    names.into_iter().map(way).collect()
}

impl Figures {
    fn of(self, of: Of) -> Option<f64> {
        match of {
            Of::Goodput => self.gb_per_s,
            Of::Cpu => self.cpu_s_per_gb,
            Of::RoundTrip => self.round_trip_us,
        }
    }
}

impl Report {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        let [one, other] = &self.link;
        let (mebibytes, rounds) = (self.message_bytes >> 20, self.rounds);
        writeln!(
            text,
            "{one} -> {other}: {} messages of {mebibytes} MiB a round, {rounds} rounds",
            self.messages
        )?;
        writeln!(text, "median [least..greatest]; GB are 1e9 bytes, CPU is that of both ends\n")?;
        let heads = ["GB/s", "CPU s/GB", "64-byte round trip, us"];
        let [rate, cpu, trip] = heads;
        writeln!(text, "{:14} {rate:22} {cpu:22} {trip:22} switches in it", "")?;
        let shown = |spread: &Option<Spread>| spread.map_or("-".to_owned(), |s| s.to_string());
        for way in &self.ways {
            let round_trip = way.round_trip_us.map_or("-".to_owned(), |spread| {
                let Spread { median, min, max } = spread;
                format!("{median:.0} [{min:.0}..{max:.0}]")
            });
            let (rate, cpu) = (shown(&way.gb_per_s), shown(&way.cpu_s_per_gb));
            let switches = way.switches.map_or("-".to_owned(), |spread| {
                let Spread { median, min, max } = spread;
                format!("{median:.1} [{min:.1}..{max:.1}]")
            });
            writeln!(text, "{:14} {rate:22} {cpu:22} {round_trip:22} {switches}", way.name)?;
        }
        if !self.sizes.is_empty() {
            writeln!(text, "\nby size of message, GB/s")?;
        }
        for size in &self.sizes {
            let bytes = size_name(size.bytes);
            writeln!(text, "{:14} {bytes:>8}  {}", size.name, size.gb_per_s)?;
        }
        for exchange in &self.exchange {
            let bytes = size_name(exchange.bytes);
            let rate = exchange.gb_per_s;
            writeln!(text, "{:14} {bytes:>8}  {rate} each way at once", exchange.name)?;
        }
        writeln!(text, "\nheader and metadata of a frame: {} us", self.frame_us)?;
        if self.ratio_spreads.values().any(Option::is_some) {
            writeln!(text, "\nratios within rounds")?;
        }
        for (name, spread) in &self.ratio_spreads {
            if let Some(spread) = spread {
                writeln!(text, "{name:28} {spread}")?;
            }
        }
        for NotMeasured { name, cause } in &self.not_measured {
            writeln!(text, "{name} is not measured: {cause}")?;
        }
        Ok(())
    }
}

fn size_name(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(quic: f64, tls: Option<f64>) -> Round {
        let figures = |gb_per_s| Figures { gb_per_s: Some(gb_per_s), ..Figures::default() };
        let tls = tls.map(|rate| ("tls", figures(rate)));
        [("quic", figures(quic))].into_iter().chain(tls).collect()
    }

    #[test]
    fn a_ratio_is_formed_within_a_round_and_null_without_its_other_side() {
        // The machine is twice as fast in the second round; the ratio does not care.
        let rounds = [round(1.5, Some(1.0)), round(3.0, Some(2.0)), round(9.0, None)];
        let ratios = ratios(&rounds);
        let jumbo = ratios["quic_jumbo_over_tls"].map(|spread| (spread.min, spread.max));
        assert_eq!(jumbo, Some((1.5, 1.5)));
        let promised = promised(&ratios);
        assert_eq!(promised.len(), RATIOS.len());
        assert_eq!(promised["quic_jumbo_over_tls"], Some(1.5));
        assert_eq!(promised["ucx_tcp_over_gloo"], None);
    }
}
