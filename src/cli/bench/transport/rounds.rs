//! The rounds over one link.
//!
//! Owns which ways take part and their order. A way that cannot be joined is left out with its
//! cause; one that fails later ends the measurement.

use ditmesh_transport::ucx;
use tempfile::TempDir;

use super::super::statistics::{Spread, median};
use super::end::Settings;
use super::frame_cost;
use super::gloo::Gloo;
use super::pair::{At, Pair, Place};
use super::perftest::{self, Over};
use super::report::{self, Exchange, Figures, NotMeasured, Report, Round, Size};
use super::subject::Subject;
use super::wire::Act;
use crate::cli::args::{AgainstArg, TransportBenchArgs};
use crate::cli::terminal::Terminal;

/// Round trips per round and way.
const PINGS: u64 = 300;
const PING_BYTES: usize = 64;
/// Sizes of the table, in bytes, up to what was asked for.
const SIZES: [usize; 10] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
];
/// What is moved for one row of the table, in bytes and messages.
/// At most, and of the messages compared by not more than these.
const SIZE_TOTAL_BYTES_MAX: usize = 512 << 20;
const SIZE_COMPARED_MAX: usize = 8;
const SIZE_MESSAGES_MAX: usize = 8192;
const SIZE_ROUNDS: usize = 3;
const AHEAD: u64 = 64;

/// Everything asked for, over one link.
pub(super) fn measure(
    args: &TransportBenchArgs,
    link: [String; 2],
    places: &[Place; 2],
    settings: Option<Settings>,
    identities: &TempDir,
    terminal: &Terminal,
) -> Result<Report, String> {
    let mut not_measured = Vec::new();
    let mut pair = Pair::start(places, settings, identities.path())?;
    let mut subjects = Vec::new();
    for subject in wanted(args, places) {
        match pair.join(subject) {
            Ok(()) => subjects.push(subject),
            Err(cause) => not_measured.push(NotMeasured { name: subject.name().to_owned(), cause }),
        }
    }
    let mut others = Others::start(args, places, &mut not_measured);
    let bytes = (args.message_mib as usize) << 20;
    let count = u64::from(args.messages);
    // The packet size is found, pools are filled and congestion windows opened by this.
    for subject in subjects.iter().filter(|subject| subject.carries_bulk()) {
        pair.measure(*subject, Act::Stream, bytes, count)?;
    }
    let mut rounds = Vec::new();
    let mut frame_us = Vec::new();
    for round in 1..=args.rounds {
        terminal.note(&format!("round {round} of {}", args.rounds));
        let mut figures = Round::new();
        for subject in &subjects {
            figures.insert(subject.name(), of_subject(&mut pair, *subject, bytes, count)?);
        }
        others.measure(&mut figures, bytes, count, &mut not_measured);
        rounds.push(figures);
        frame_us.push(frame_cost::measure()?);
    }
    terminal.note("sizes of messages");
    let product = [Subject::Quic, Subject::UcxShm, Subject::UcxTcp, Subject::UcxGpu];
    let tabled: Vec<_> = subjects.iter().copied().filter(|s| product.contains(s)).collect();
    let (sizes, exchange) = tables(&mut pair, &tabled, args, bytes)?;
    let ratio_spreads = report::ratios(&rounds);
    Ok(Report {
        link,
        message_bytes: bytes,
        messages: args.messages,
        rounds: args.rounds,
        ways: report::ways(&rounds),
        sizes,
        exchange,
        ratios: report::promised(&ratio_spreads),
        ratio_spreads,
        frame_us: Spread::of(frame_us).ok_or("no round")?,
        not_measured,
    })
}

/// Every way, or those that `--only` names.
fn wanted(args: &TransportBenchArgs, places: &[Place; 2]) -> Vec<Subject> {
    let mut subjects = all(args);
    // Where the two count as one host there is memory to share.
    let one_host = places[0].ip == places[1].ip;
    subjects.retain(|subject| one_host || *subject != Subject::UcxShm);
    let named = |subject: &Subject| args.only.iter().any(|name| name == subject.name());
    subjects.retain(|subject| args.only.is_empty() || named(subject));
    subjects
}

fn all(args: &TransportBenchArgs) -> Vec<Subject> {
    let mut subjects = vec![Subject::Quic];
    if ucx::version().is_ok() {
        subjects.extend([Subject::UcxShm, Subject::UcxTcp]);
        if cfg!(feature = "cuda") {
            subjects.push(Subject::UcxGpu);
        }
    }
    if args.against.is_empty() {
        return subjects;
    }
    subjects.extend([
        Subject::QuicOne,
        Subject::Quic1500,
        Subject::QuicOne1500,
        Subject::QuinnDefault,
        Subject::QuinnOneThread,
    ]);
    for against in &args.against {
        match against {
            AgainstArg::Tcp => subjects.extend([Subject::Tcp, Subject::Udp]),
            AgainstArg::Tls => subjects.push(Subject::Tls),
            AgainstArg::UcxPerftest | AgainstArg::Gloo => {}
        }
    }
    subjects
}

fn of_subject(
    pair: &mut Pair,
    subject: Subject,
    bytes: usize,
    count: u64,
) -> Result<Figures, String> {
    let mut figures = Figures::default();
    if subject.carries_bulk() {
        let gigabytes = bytes as f64 * count as f64 / 1e9;
        let stream = pair.measure(subject, Act::Stream, bytes, count)?;
        let seconds = stream.first.seen.first().map(|seen| seen.seconds);
        figures.gb_per_s = seconds.map(|seconds| gigabytes / seconds);
        figures.cpu_s_per_gb = Some(stream.cpu_s / gigabytes);
    }
    let pings = pair.measure(subject, Act::Ping, PING_BYTES, PINGS)?;
    let trips = pings.first.seen.first().and_then(|seen| median(seen.trips.iter().copied()));
    figures.round_trip_us = trips.map(|seconds| seconds * 1e6);
    figures.switches = Some(pings.switches as f64 / PINGS as f64);
    Ok(figures)
}

fn tables(
    pair: &mut Pair,
    subjects: &[Subject],
    args: &TransportBenchArgs,
    exchanged: usize,
) -> Result<(Vec<Size>, Vec<Exchange>), String> {
    let total = SIZE_TOTAL_BYTES_MAX.min(SIZE_COMPARED_MAX * exchanged);
    let largest = (args.largest_mib as usize) << 20;
    let mut rates = std::collections::BTreeMap::<_, Vec<f64>>::new();
    let mut exchange_rates = std::collections::BTreeMap::<_, Vec<f64>>::new();
    for _ in 0..SIZE_ROUNDS {
        for subject in subjects {
            for bytes in SIZES.into_iter().filter(|bytes| *bytes <= largest) {
                let count = (total / bytes).clamp(1, SIZE_MESSAGES_MAX) as u64;
                // Pools and payloads of this size are touched before they are timed.
                pair.measure(*subject, Act::Stream, bytes, count.min(AHEAD))?;
                let rate = rate(pair, *subject, Act::Stream, bytes, count)?;
                rates.entry((subject.name(), bytes)).or_default().push(rate);
            }
            let count = (total / exchanged).max(1) as u64;
            let rate = rate(pair, *subject, Act::Exchange, exchanged, count)?;
            exchange_rates.entry(subject.name()).or_default().push(rate);
        }
    }
    let sizes = rates.into_iter().filter_map(|((name, bytes), rates)| {
        Some(Size { name, bytes, gb_per_s: Spread::of(rates)? })
    });
    let exchange = exchange_rates.into_iter().filter_map(|(name, rates)| {
        Some(Exchange { name, bytes: exchanged, gb_per_s: Spread::of(rates)? })
    });
    Ok((sizes.collect(), exchange.collect()))
}

fn rate(
    pair: &mut Pair,
    subject: Subject,
    act: Act,
    bytes: usize,
    count: u64,
) -> Result<f64, String> {
    let measured = pair.measure(subject, act, bytes, count)?;
    let seconds = measured.first.seen.first().map(|seen| seen.seconds).ok_or("nothing was seen")?;
    Ok(bytes as f64 * count as f64 / 1e9 / seconds)
}

/// Programs of others.
struct Others {
    cores: [usize; 2],
    perftest: Vec<(&'static str, Over)>,
    gloo: Option<Gloo>,
}

impl Others {
    fn start(
        args: &TransportBenchArgs,
        places: &[Place; 2],
        not_measured: &mut Vec<NotMeasured>,
    ) -> Self {
        let cores = [places[0].core.unwrap_or(0), places[1].core.unwrap_or(0)];
        let remote = places.iter().any(|place| matches!(place.at, At::Remote(_)));
        let wanted = |against| args.against.contains(&against) && !remote;
        for (against, name) in
            [(AgainstArg::UcxPerftest, "ucx_perftest"), (AgainstArg::Gloo, "gloo")]
        {
            if remote && args.against.contains(&against) {
                let cause = "programs of others are measured within this host only".to_owned();
                not_measured.push(NotMeasured { name: name.to_owned(), cause });
            }
        }
        let perftest = match wanted(AgainstArg::UcxPerftest) {
            true => vec![
                ("perftest-tcp", Over::Tcp),
                ("perftest-tcp-errors", Over::TcpWithErrors),
                ("perftest-shm", Over::SharedMemory),
            ],
            false => Vec::new(),
        };
        let gloo = wanted(AgainstArg::Gloo).then(|| Gloo::start(&args.python, cores));
        let gloo = gloo.and_then(|started| match started {
            Ok(gloo) => Some(gloo),
            Err(cause) => {
                not_measured.push(NotMeasured { name: "gloo".to_owned(), cause });
                None
            }
        });
        Self { cores, perftest, gloo }
    }

    /// What fails once is not tried again.
    fn measure(
        &mut self,
        round: &mut Round,
        bytes: usize,
        count: u64,
        not_measured: &mut Vec<NotMeasured>,
    ) {
        let cores = self.cores;
        self.perftest.retain(|&(name, over)| {
            let figures = perftest::stream(over, cores, bytes, count)
                .and_then(|rate| Ok((rate, perftest::round_trip(over, cores, PINGS * 10)?)));
            keep(name, figures, round, not_measured)
        });
        if let Some(gloo) = &mut self.gloo {
            let figures =
                gloo.stream(bytes, count).and_then(|rate| Ok((rate, gloo.round_trip(PINGS)?)));
            if !keep("gloo", figures, round, not_measured) {
                self.gloo = None;
            }
        }
    }
}

fn keep(
    name: &'static str,
    figures: Result<(f64, f64), String>,
    round: &mut Round,
    not_measured: &mut Vec<NotMeasured>,
) -> bool {
    match figures {
        Ok((rate, trip)) => {
            let figures =
                Figures { gb_per_s: Some(rate), round_trip_us: Some(trip), ..Figures::default() };
            round.insert(name, figures);
            true
        }
        Err(cause) => {
            not_measured.push(NotMeasured { name: name.to_owned(), cause });
            false
        }
    }
}
