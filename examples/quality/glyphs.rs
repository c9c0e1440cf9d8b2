//! The training pictures, which of them a picture is nearest to, and contact sheets.

use std::path::Path;

use ditmesh::RgbImage;

use crate::Failure;

const GLYPHS: &[u8] = include_bytes!("../../model/builtin/glyphs.png");
/// Edge of a glyph in pixels, and glyphs in a row of a sheet.
const EDGE: usize = 64;
const PER_ROW: usize = 16;

/// The training pictures in the order of the prompts.
pub(crate) struct Glyphs {
    pictures: Vec<Vec<u8>>,
}

impl Glyphs {
    pub(crate) fn read() -> Result<Self, Failure> {
        let mut reader = png::Decoder::new(std::io::Cursor::new(GLYPHS)).read_info()?;
        let mut sheet = vec![0; reader.output_buffer_size().ok_or("the sheet is too large")?];
        let info = reader.next_frame(&mut sheet)?;
        let line = info.width as usize * 3;
        let glyph = |index: usize| {
            let (row, column) = (index / PER_ROW, index % PER_ROW);
            let start = row * EDGE * line + column * EDGE * 3;
            (0..EDGE).flat_map(|y| &sheet[start + y * line..][..EDGE * 3]).copied().collect()
        };
        let count = crate::PROMPTS.lines().count();
        Ok(Self { pictures: (0..count).map(glyph).collect() })
    }

    /// The glyph of least squared error.
    pub(crate) fn nearest(&self, picture: &RgbImage) -> Option<usize> {
        let distance = |glyph: &Vec<u8>| -> u64 {
            glyph.iter().zip(&picture.data).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum()
        };
        (0..self.pictures.len()).min_by_key(|&index| distance(&self.pictures[index]))
    }
}

pub(crate) fn write_sheet(path: &Path, pictures: &[&RgbImage]) -> Result<(), Failure> {
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
