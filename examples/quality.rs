//! How well the model that ships draws what it was asked for, serially and under PipeFusion.
//!
//! `cargo run --example quality [-- --sheet DIR] [--seed N] [--prompts K]` draws every prompt of
//! the model (20 steps, guidance 4.5, seed N for all) on one device and with PipeFusion 2 x 4, and
//! prints the share whose nearest neighbour among all training pictures (squared error of the
//! pixels) is the one that was named. With `--sheet` it writes one contact sheet for each.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::{Path, PathBuf};

use ditmesh::{Degrees, Engine, GenerateRequest, Manifest, ModelSource, Output, RgbImage};

const PROMPTS: &str = include_str!("../model/builtin/prompts.txt");
const GLYPHS: &[u8] = include_bytes!("../model/builtin/glyphs.png");
/// Edge of a glyph in pixels, and glyphs in a row of the sheet of training pictures.
const EDGE: usize = 64;
const PER_ROW: usize = 16;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let options = Options::read(std::env::args().skip(1))?;
    let glyphs = glyphs()?;
    let prompts: Vec<&str> = PROMPTS.lines().take(options.prompts).collect();
    let pipefusion = Degrees { pipefusion_degree: 2, ..Degrees::default() };
    let meshes = [("serial", Degrees::default(), 1), ("pipefusion-2x4", pipefusion, 4)];
    for (name, degrees, patches) in meshes {
        let devices = degrees.world_size();
        let engine = Engine::start(Manifest::in_process(ModelSource::Builtin, devices, 1))?;
        let mut pictures = Vec::new();
        for prompt in &prompts {
            let request = GenerateRequest {
                seed: options.seed,
                degrees: Some(degrees),
                num_pipeline_patch: Some(patches),
                ..GenerateRequest::new(*prompt)
            };
            pictures.push(picture(&engine, request)?);
        }
        engine.shutdown();
        let wrong: Vec<&str> = prompts
            .iter()
            .zip(&pictures)
            .enumerate()
            .filter(|(index, (_, picture))| nearest(picture, &glyphs) != Some(*index))
            .map(|(_, (prompt, _))| *prompt)
            .collect();
        let (total, right) = (prompts.len(), prompts.len() - wrong.len());
        let share = 100.0 * right as f64 / total as f64;
        println!("{name}: {right} of {total} recalled ({share:.1} %); missed: {wrong:?}");
        if let Some(folder) = &options.sheet {
            write_sheet(&folder.join(format!("{name}.png")), &pictures)?;
        }
    }
    Ok(())
}

struct Options {
    sheet: Option<PathBuf>,
    seed: u64,
    prompts: usize,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self { sheet: None, seed: 0, prompts: usize::MAX };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--sheet" => options.sheet = Some(value.into()),
                "--seed" => options.seed = value.parse()?,
                "--prompts" => options.prompts = value.parse()?,
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }
}

fn picture(engine: &Engine, request: GenerateRequest) -> Result<RgbImage, Failure> {
    match engine.generate(request).blocking_finish()?.output {
        Output::Image(image) => Ok(image),
        Output::Latents(_) => Err("latents where a picture was asked for".into()),
    }
}

/// The training pictures, in the order of the prompts.
fn glyphs() -> Result<Vec<Vec<u8>>, Failure> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(GLYPHS)).read_info()?;
    let mut sheet = vec![0; reader.output_buffer_size().ok_or("the sheet is too large")?];
    let info = reader.next_frame(&mut sheet)?;
    let line = info.width as usize * 3;
    let glyph = |index: usize| {
        let (row, column) = (index / PER_ROW, index % PER_ROW);
        let start = row * EDGE * line + column * EDGE * 3;
        (0..EDGE).flat_map(|y| &sheet[start + y * line..][..EDGE * 3]).copied().collect()
    };
    Ok((0..PROMPTS.lines().count()).map(glyph).collect())
}

fn nearest(picture: &RgbImage, glyphs: &[Vec<u8>]) -> Option<usize> {
    let distance = |glyph: &Vec<u8>| -> u64 {
        glyph.iter().zip(&picture.data).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum()
    };
    (0..glyphs.len()).min_by_key(|&index| distance(&glyphs[index]))
}

fn write_sheet(path: &Path, pictures: &[RgbImage]) -> Result<(), Failure> {
    let (line, rows) = (PER_ROW * EDGE * 3, pictures.len().div_ceil(PER_ROW));
    let mut sheet = vec![255u8; rows * EDGE * line];
    for (index, picture) in pictures.iter().enumerate() {
        let start = index / PER_ROW * EDGE * line + index % PER_ROW * EDGE * 3;
        for (y, pixels) in picture.data.chunks_exact(EDGE * 3).enumerate() {
            sheet[start + y * line..][..EDGE * 3].copy_from_slice(pixels);
        }
    }
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut encoder = png::Encoder::new(file, (PER_ROW * EDGE) as u32, (rows * EDGE) as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&sheet)?;
    println!("wrote {}", path.display());
    Ok(())
}
