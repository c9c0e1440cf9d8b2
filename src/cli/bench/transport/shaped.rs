//! What a shaped link carries: goodput against TCP's, and heartbeats under bulk load.
//!
//! Owns the rounds and the report. The link is [`ShapedLink`]'s.

use std::path::Path;

use serde::Serialize;

use super::super::shaped_link::{Lost, Shape, ShapedLink};
use super::super::statistics::Spread;
use super::end::Settings;
use super::pair::{At, Pair, Place};
use super::report::{self, Figures, NotMeasured, Round, Way};
use super::subject::Subject;
use super::wire::{Act, Run};
use crate::cli::args::TransportBenchArgs;
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;

/// Between two heartbeats, as in a cluster under test.
const HEARTBEAT_EVERY_MS: u64 = 20;
const HEARTBEAT_BYTES: usize = 64;
/// What is moved per round and way, in seconds at the link's rate.
const STREAM_SECONDS: f64 = 2.0;

/// What was measured.
#[derive(Serialize)]
struct Shaped {
    mbit_per_s: u32,
    mtu: u32,
    loss_ppm: u32,
    queue_ms: u32,
    delay_ms: u32,
    rounds: u32,
    ways: Vec<Way>,
    /// Goodput over that of TCP (Cubic), within rounds.
    over_tcp: Vec<(&'static str, Option<Spread>)>,
    heartbeats: Option<Heartbeats>,
    /// Packets that the link lost by intention, of those that came.
    lost: Option<Lost>,
    not_measured: Vec<NotMeasured>,
}

/// Round trips on the control connection while bulk connections fill the link.
#[derive(Serialize)]
struct Heartbeats {
    count: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// What bulk carried meanwhile.
    bulk_gb_per_s: f64,
}

/// Measures and prints.
pub(super) fn run(args: &TransportBenchArgs, terminal: &Terminal) -> Result<(), Failure> {
    let rate = args.shaped.unwrap_or(1000);
    let shape = Shape {
        mbit_per_s: rate,
        mtu: args.link_mtu,
        loss_ppm: args.loss_ppm,
        queue_ms: args.queue_ms,
        delay_ms: args.delay_ms,
    };
    let link = ShapedLink::set_up(shape)?;
    let identities = super::identities()?;
    let shaped = measure(args, rate, &link, identities.path(), terminal);
    let shaped = shaped.map_err(Failure::failed)?;
    if args.json {
        let json = serde_json::to_string_pretty(&shaped).map_err(Failure::failed)?;
        return terminal.result(&json);
    }
    terminal.result(&shaped.text())
}

fn measure(
    args: &TransportBenchArgs,
    rate: u32,
    link: &ShapedLink,
    identities: &Path,
    terminal: &Terminal,
) -> Result<Shaped, String> {
    let settings = Settings { mtu_bytes: payload_bytes(args.link_mtu), ..Settings::default() };
    let mut pair = Pair::start(&places(link), Some(settings), identities)?;
    let mut not_measured = Vec::new();
    let wanted = [
        Subject::Quic,
        Subject::QuicOne,
        Subject::QuicCubic,
        Subject::QuicBbr,
        Subject::QuicAuto,
        Subject::Tcp,
    ];
    let mut subjects = Vec::new();
    let named = |subject: &Subject| args.only.iter().any(|name| name == subject.name());
    for subject in wanted.into_iter().filter(|one| args.only.is_empty() || named(one)) {
        match pair.join(subject) {
            Ok(()) => subjects.push(subject),
            Err(cause) => not_measured.push(NotMeasured { name: subject.name().to_owned(), cause }),
        }
    }
    pair.join(Subject::Control)?;
    let bytes = 4 << 20;
    let count = (f64::from(rate) * 1e6 / 8.0 * STREAM_SECONDS / bytes as f64).ceil() as u64;
    for subject in &subjects {
        pair.measure(*subject, Act::Stream, bytes, count.div_ceil(4))?;
    }
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        terminal.note(&format!("round {round} of {}", args.rounds));
        let mut figures = Round::new();
        for subject in &subjects {
            let seen = pair.measure(*subject, Act::Stream, bytes, count)?;
            let seconds = seen.first.seen.first().map(|seen| seen.seconds).ok_or("nothing seen")?;
            let gigabytes = bytes as f64 * count as f64 / 1e9;
            let figures_of = Figures {
                gb_per_s: Some(gigabytes / seconds),
                cpu_s_per_gb: Some(seen.cpu_s / gigabytes),
                ..Figures::default()
            };
            figures.insert(subject.name(), figures_of);
        }
        rounds.push(figures);
    }
    let bulk = subjects.iter().find(|subject| **subject != Subject::Tcp);
    let heartbeats = match bulk.filter(|_| args.heartbeats > 0) {
        Some(bulk) => {
            terminal.note("heartbeats under bulk load");
            Some(heartbeats(&mut pair, *bulk, args.heartbeats, rate)?)
        }
        None => None,
    };
    let over_tcp = subjects.iter().filter(|subject| **subject != Subject::Tcp);
    let over_tcp = over_tcp.map(|subject| {
        let each = rounds.iter().filter_map(|round| {
            Some(round.get(subject.name())?.gb_per_s? / round.get("tcp")?.gb_per_s?)
        });
        (subject.name(), Spread::of(each))
    });
    Ok(Shaped {
        mbit_per_s: rate,
        mtu: args.link_mtu,
        loss_ppm: args.loss_ppm,
        queue_ms: args.queue_ms,
        delay_ms: args.delay_ms,
        rounds: args.rounds,
        over_tcp: over_tcp.collect(),
        ways: report::ways(&rounds),
        heartbeats,
        lost: link.lost()?,
        not_measured,
    })
}

fn heartbeats(
    pair: &mut Pair,
    subject: Subject,
    count: u32,
    rate: u32,
) -> Result<Heartbeats, String> {
    let seconds = f64::from(count) * HEARTBEAT_EVERY_MS as f64 / 1e3;
    let bytes = 4 << 20;
    let messages = (f64::from(rate) * 1e6 / 8.0 * seconds / bytes as f64).ceil() as u64;
    let bulk = Run { subject, act: Act::Stream, first: true, bytes, count: messages, every_ms: 0 };
    let beat = Run {
        subject: Subject::Control,
        act: Act::Ping,
        first: true,
        bytes: HEARTBEAT_BYTES,
        count: count.into(),
        every_ms: HEARTBEAT_EVERY_MS,
    };
    let seen = pair.run(&[bulk, beat])?.first.seen;
    let [bulk, beats] = seen.as_slice() else { return Err("two runs were expected".into()) };
    let mut trips: Vec<f64> = beats.trips.iter().map(|seconds| seconds * 1e3).collect();
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((trips.len() as f64 * share).ceil() as usize).saturating_sub(1);
        trips.get(index).copied().ok_or("no heartbeat came back")
    };
    Ok(Heartbeats {
        count: trips.len(),
        p50_ms: at(0.5)?,
        p99_ms: at(0.99)?,
        max_ms: at(1.0)?,
        bulk_gb_per_s: bytes as f64 * messages as f64 / 1e9 / bulk.seconds,
    })
}

fn places(link: &ShapedLink) -> [Place; 2] {
    [0, 1].map(|end| Place {
        ip: link.address(end),
        core: None,
        at: At::Namespace(link.namespace(end).to_owned()),
    })
}

/// The UDP payload that fits a frame of `mtu` bytes over IPv4.
fn payload_bytes(mtu: u32) -> u16 {
    u16::try_from(mtu.saturating_sub(28)).unwrap_or(u16::MAX).clamp(1200, 8972)
}

impl Shaped {
    fn text(&self) -> String {
        let mut lines = vec![format!(
            "{} Mbit/s, frames of {} bytes, {} packets of a million lost, a queue of {} ms, {} ms \
             added to a round trip; {} rounds",
            self.mbit_per_s, self.mtu, self.loss_ppm, self.queue_ms, self.delay_ms, self.rounds
        )];
        for way in &self.ways {
            let shown = |spread: Option<Spread>| spread.map_or("-".to_owned(), |s| s.to_string());
            let (rate, cpu) = (shown(way.gb_per_s), shown(way.cpu_s_per_gb));
            lines.push(format!("{:10} {rate} GB/s, {cpu} CPU s/GB", way.name));
        }
        for (name, spread) in &self.over_tcp {
            if let Some(spread) = spread {
                lines.push(format!("{name} over tcp: {spread}"));
            }
        }
        if let Some(beats) = &self.heartbeats {
            lines.push(format!(
                "{} heartbeats under {:.3} GB/s of bulk: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
                beats.count, beats.bulk_gb_per_s, beats.p50_ms, beats.p99_ms, beats.max_ms
            ));
        }
        if let Some(Lost { lost, of }) = self.lost {
            let ppm = lost as f64 / of.max(1) as f64 * 1e6;
            lines.push(format!("{lost} of {of} packets were lost by intention ({ppm:.0} ppm)"));
        }
        for NotMeasured { name, cause } in &self.not_measured {
            lines.push(format!("{name} is not measured: {cause}"));
        }
        lines.join("\n")
    }
}
