//! One row of figures per setting, on the terminal and as a page.

use std::fmt::Write;
use std::time::Duration;

use ditmesh::likeness::{psnr, ssim};
use ditmesh::{GenerateRequest, RgbImage};

use crate::draw::Work;
use crate::settings::Setting;
use crate::{Failure, PROMPTS_DEFAULT};

/// Figures of one setting.
pub(crate) struct Row {
    name: String,
    psnr: Spread,
    ssim: Spread,
    pictures: usize,
    missed: Vec<&'static str>,
    /// Mean over steps and pictures.
    kv_change: Option<f64>,
    /// Share of blocks that were run.
    computed: f64,
    /// Payload bytes of the axes that were to have fewer, over what f32 would have been.
    wire: Option<f64>,
}

/// Median and worst of some figures of which more is better.
struct Spread {
    median: f64,
    worst: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), worst: at(0) }
    }
}

impl Row {
    pub(crate) fn new(
        setting: &Setting,
        work: &Work,
        serial: &Work,
        missed: Vec<&'static str>,
    ) -> Result<Self, Failure> {
        let (pictures, references) = (work.pictures(), serial.pictures());
        let compare = |figure: fn(&RgbImage, &RgbImage) -> Option<f64>| -> Result<Spread, Failure> {
            let pairs = pictures.iter().zip(&references);
            let figures: Option<Vec<f64>> = pairs.map(|(a, b)| figure(a, b)).collect();
            Ok(Spread::of(figures.ok_or("pictures of different sizes")?))
        };
        Ok(Self {
            name: setting.name(),
            psnr: compare(psnr)?,
            ssim: compare(ssim)?,
            pictures: pictures.len(),
            missed,
            kv_change: mean(work.reports().flat_map(|r| r.kv_change.iter().flatten().copied())),
            computed: computed(work),
            wire: mean(work.reports().filter_map(wire)),
        })
    }

    /// For the terminal.
    pub(crate) fn line(&self) -> String {
        let right = self.pictures - self.missed.len();
        format!(
            "{:34} psnr {:5.2} dB (worst {:5.2})  ssim {:.4} (worst {:.4})  recall {right}/{}  \
             kv change {}  blocks run {:.0} %  wire {}  missed {:?}",
            self.name,
            self.psnr.median,
            self.psnr.worst,
            self.ssim.median,
            self.ssim.worst,
            self.pictures,
            self.kv_change.map_or("-".into(), |change| format!("{change:.3}")),
            100.0 * self.computed,
            self.wire.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            self.missed,
        )
    }

    fn cells(&self) -> String {
        let right = self.pictures - self.missed.len();
        let number = |x: f64, digits: usize| match x.is_finite() {
            true => format!("{x:.digits$}"),
            false => "equal".to_owned(),
        };
        format!(
            "| {} | {} | {} | {} | {} | {right} of {} | {} | {:.0} % | {} |",
            self.name,
            number(self.psnr.median, 2),
            number(self.psnr.worst, 2),
            number(self.ssim.median, 4),
            number(self.ssim.worst, 4),
            self.pictures,
            self.kv_change.map_or(String::new(), |change| format!("{change:.3}")),
            100.0 * self.computed,
            self.wire.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)),
        )
    }
}

/// Of one picture: what was sent of what f32 would have been, on axes that saved something.
fn wire(report: &ditmesh::Report) -> Option<f64> {
    let axes = report.traffic.iter().filter(|axis| axis.bytes_saved > 0);
    let (sent, saved) =
        axes.fold((0, 0), |(sent, saved), axis| (sent + axis.bytes_sent, saved + axis.bytes_saved));
    (saved > 0).then(|| sent as f64 / (sent + saved) as f64)
}

/// Share of (pass, block) pairs that were run: of a reused pass only the first block is.
fn computed(work: &Work) -> f64 {
    let of_picture = |report: &ditmesh::Report| {
        let blocks = report.ranks.iter().map(|rank| rank.blocks.1).max().unwrap_or(1);
        let steps = GenerateRequest::default().num_inference_steps;
        let passes = f64::from(steps * report.num_pipeline_patch);
        let decisions = report.ranks.iter().flat_map(|rank| &rank.decisions);
        let reused = decisions.filter(|decision| decision.reuse).count() as f64;
        1.0 - reused / passes * f64::from(blocks - 1) / f64::from(blocks)
    };
    mean(work.reports().map(of_picture)).unwrap_or(1.0)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), x| (sum + x, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The page of `--write`.
pub(crate) fn page(rows: &[Row], left_out: &[String], prompts: usize, took: Duration) -> String {
    let mut text = String::from(HEAD);
    for row in rows {
        let _ = writeln!(text, "{}", row.cells());
    }
    let _ = writeln!(text, "\nMissed (a picture nearer to another glyph than to its own):");
    for row in rows.iter().filter(|row| !row.missed.is_empty()) {
        let _ = writeln!(text, "- {}: {}", row.name, row.missed.join(", "));
    }
    if rows.iter().all(|row| row.missed.is_empty()) {
        let _ = writeln!(text, "- none");
    }
    if !left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out for lack of time: {}.", left_out.join("; "));
    }
    let command: Vec<String> = std::env::args().skip(1).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let _ = writeln!(
        text,
        "\nMade by `cargo run --example quality -- {}` in {:.0} minutes on {cores} cores ({}), {}: \
         {} settings, {prompts} prompts, one seed.",
        command.join(" "),
        took.as_secs_f64() / 60.0,
        processor(),
        date(),
        rows.len(),
    );
    if prompts < PROMPTS_DEFAULT {
        let _ =
            writeln!(text, "A sample: the command draws {PROMPTS_DEFAULT} prompts unless told.");
    }
    text
}

const HEAD: &str = "# What the faster ways cost

Pictures of the model that ships (64 x 64 pixels, 20 steps, guidance 4.5) against those that one device draws step by step without any of this.
`M` is `--num-pipeline-patch`, `w` `--sync-steps`; the result does not depend on the number of stages. PSNR in dB over RGB, SSIM of the luma with a Gaussian window
of 11 x 11 pixels. Recall counts pictures that are nearer to the glyph that was named than to any other of the 160. KV change is the mean over steps of
`||kv_t - kv_(t-1)|| / ||kv_(t-1)||`: how stale what PipeFusion reads is. Blocks run counts transformer blocks that a step cache did not skip.
`on the wire` are two ranks of an axis with `--wire-dtype` (and `--wire-residual`); the last column is what they sent of what f32 would have been.

| setting | PSNR median | PSNR worst | SSIM median | SSIM worst | recall | KV change | blocks run | bytes |
|---|---|---|---|---|---|---|---|---|
";

/// The processor's name, where the system tells it.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or("unknown processor", |name| name.trim_start_matches([' ', '\t', ':'])).to_owned()
}

/// Today in UTC, as `YYYY-MM-DD`.
fn date() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let days = now.map_or(0, |now| now.as_secs() / 86_400) as i64;
    // Howard Hinnant, "chrono-compatible low-level date algorithms": days since 1970 to a date.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
