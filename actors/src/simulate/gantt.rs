//! A simulation as a picture: one lane per rank, time to the right, as SVG.
//!
//! Owns the drawing only. Text is escaped nowhere because none comes from outside but device
//! names, which are labels of letters, digits and hyphens.

use std::fmt::Write;

use super::{Simulation, SpanKind};

/// Width of the time axis in pixels.
const WIDTH: f64 = 1600.0;
/// Height of a lane in pixels.
const LANE: usize = 18;
/// Room left of the lanes for names.
const MARGIN: usize = 120;
/// Room above the lanes for the axis and the legend.
const TOP: usize = 48;
/// Lanes drawn.
const LANES_MAX: usize = 128;

const KINDS: [(SpanKind, &str, &str); 5] = [
    (SpanKind::Attend, "attention", "#4c78a8"),
    (SpanKind::Linear, "linear layers", "#72b7b2"),
    (SpanKind::Other, "text, scheduler, decode", "#b279a2"),
    (SpanKind::Send, "send", "#f58518"),
    (SpanKind::Wait, "wait", "#e4e4e4"),
];

/// Draws `simulation`, which must have been recorded, with a name for each rank.
pub fn svg(simulation: &Simulation, names: &[String]) -> String {
    let lanes = simulation.ranks.len().min(LANES_MAX);
    let (width, height) = (WIDTH as usize + MARGIN + 20, TOP + lanes * LANE + 10);
    let scale = WIDTH / simulation.seconds.max(f64::MIN_POSITIVE);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    for (index, (_, name, color)) in KINDS.iter().enumerate() {
        let x = MARGIN + index * 170;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"6\" width=\"12\" height=\"12\" fill=\"{color}\"/>\
             <text x=\"{}\" y=\"16\">{name}</text>",
            x + 16
        );
    }
    for tick in 0..=10 {
        let time = simulation.seconds * f64::from(tick) / 10.0;
        let x = MARGIN as f64 + time * scale;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"40\" x2=\"{x:.1}\" y2=\"{height}\" stroke=\"#ccc\"/>\
             <text x=\"{x:.1}\" y=\"36\" text-anchor=\"middle\">{time:.4} s</text>"
        );
    }
    for rank in 0..lanes {
        let name = names.get(rank).map_or("", String::as_str);
        let y = TOP + rank * LANE + 13;
        let _ = writeln!(out, "<text x=\"4\" y=\"{y}\">{rank} {name}</text>");
    }
    for span in simulation.spans.iter().filter(|span| span.rank < lanes) {
        let color = KINDS.iter().find(|(kind, ..)| *kind == span.kind).map_or("", |(.., c)| c);
        let (x, w) = (MARGIN as f64 + span.start * scale, (span.end - span.start) * scale);
        let y = TOP + span.rank * LANE + 1;
        let _ = writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{w:.2}\" height=\"{}\" fill=\"{color}\"/>",
            LANE - 2
        );
    }
    out.push_str("</svg>\n");
    out
}
