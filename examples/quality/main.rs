//! How much quality the faster ways cost, on the model that ships.
//!
//! `cargo run --example quality -- [--prompts K] [--seed N] [--jobs J] [--stages N] [--minutes T]
//! [--only TEXT] [--sheet DIR] [--write FILE]` draws K prompts of the model (80 of its 160; 20
//! steps, guidance 4.5, seed N for all) on one device, and with PipeFusion, step caches and mixes
//! of them. For each it prints PSNR and SSIM against the serial pictures, the share of pictures
//! whose nearest neighbour among all training pictures is the one that was named (recall), how
//! stale keys and values were and the share of blocks that were run. `--write` puts the table into
//! a Markdown file, `--only` leaves out settings whose name lacks TEXT, `--sheet` writes contact
//! sheets of the serial pictures and of PipeFusion with 4 patches.
//!
//! What PipeFusion draws depends on patches and sync steps and not on the number of stages, so one
//! stage per mesh is the default: J meshes of one thread each draw side by side. Bounded in time:
//! no setting starts after T minutes, and those left out are named.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

mod draw;
mod glyphs;
mod settings;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use draw::{Studio, Work};
use glyphs::Glyphs;
use settings::Setting;
use table::Row;

const PROMPTS: &str = include_str!("../../model/builtin/prompts.txt");
/// Prompts drawn where nothing else is asked for: every second one, so that all kinds are there.
const PROMPTS_DEFAULT: usize = 80;
/// Minutes after which no setting starts.
const MINUTES_DEFAULT: u64 = 30;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::read(std::env::args().skip(1))?;
    let started = Instant::now();
    let glyphs = Glyphs::read()?;
    let prompts = options.chosen();
    let studio = Studio::open(options.jobs, options.stages)?;
    let mut rows: Vec<Row> = Vec::new();
    let (mut serial, mut left_out) = (None, Vec::new());
    for setting in settings::all().into_iter().filter(|setting| options.wants(setting)) {
        if started.elapsed() > Duration::from_secs(60 * options.minutes) {
            left_out.push(setting.name());
            continue;
        }
        let work = studio.draw(&setting, &prompts, options.seed)?;
        if let Some(folder) = options.sheet.as_ref().filter(|_| setting.on_sheet()) {
            glyphs::write_sheet(&folder.join(format!("{}.png", setting.file())), &work.pictures())?;
        }
        let row = row(&setting, &prompts, &work, serial.as_ref().unwrap_or(&work), &glyphs)?;
        println!("{}", row.line());
        rows.push(row);
        serial.get_or_insert(work);
    }
    studio.close();
    let took = started.elapsed();
    println!("{} settings x {} prompts in {:.1?}", rows.len(), prompts.len(), took);
    if !left_out.is_empty() {
        println!("left out after {} minutes: {}", options.minutes, left_out.join(", "));
    }
    if let Some(path) = &options.write {
        std::fs::write(path, table::page(&rows, &left_out, prompts.len(), took))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn row(
    setting: &Setting,
    prompts: &[(usize, &'static str)],
    work: &Work,
    serial: &Work,
    glyphs: &Glyphs,
) -> Result<Row, Failure> {
    let pictures = work.pictures();
    let wrong = prompts
        .iter()
        .zip(&pictures)
        .filter(|((index, _), picture)| glyphs.nearest(picture) != Some(*index));
    let missed: Vec<&str> = wrong.map(|((_, prompt), _)| *prompt).collect();
    Row::new(setting, work, serial, missed)
}

struct Options {
    sheet: Option<PathBuf>,
    write: Option<PathBuf>,
    seed: u64,
    prompts: usize,
    jobs: usize,
    stages: u32,
    minutes: u64,
    only: String,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            sheet: None,
            write: None,
            seed: 0,
            prompts: PROMPTS_DEFAULT,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            stages: 1,
            minutes: MINUTES_DEFAULT,
            only: String::new(),
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--sheet" => options.sheet = Some(value.into()),
                "--write" => options.write = Some(value.into()),
                "--seed" => options.seed = value.parse()?,
                "--prompts" => options.prompts = value.parse()?,
                "--jobs" => options.jobs = value.parse::<usize>()?.max(1),
                "--stages" => options.stages = value.parse::<u32>()?.max(1),
                "--only" => options.only = value,
                "--minutes" => options.minutes = value.parse()?,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }

    /// The serial pictures are always drawn: the others are compared with them.
    fn wants(&self, setting: &Setting) -> bool {
        setting.is_serial() || setting.name().contains(&self.only)
    }

    /// The prompts with their index in the list, spread over it.
    fn chosen(&self) -> Vec<(usize, &'static str)> {
        let all: Vec<(usize, &str)> = PROMPTS.lines().enumerate().collect();
        let count = self.prompts.clamp(1, all.len());
        (0..count).filter_map(|i| all.get(i * all.len() / count).copied()).collect()
    }
}
