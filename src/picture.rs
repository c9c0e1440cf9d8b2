//! PNG files that carry their recipe.
//!
//! Owns which chunks there are: `parameters` (text, as web UIs write it) and `ditmesh` (UTF-8
//! JSON). Does not own what they say, see [`crate::recipe`].

use std::io::Cursor;

use ditmesh_actors::request::RgbImage;
use png::{BitDepth, ColorType, Decoder, Encoder, Info};
use thiserror::Error;

use crate::recipe::{PARAMETERS_KEYWORD, RECIPE_KEYWORD, Recipe};

/// First bytes of every PNG file.
pub const PNG_SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Bytes that reading a picture's chunks may take.
const DECODE_BYTES_MAX: usize = 256 << 20;

/// Why a PNG could not be written or read.
#[derive(Debug, Error)]
pub enum PictureError {
    /// Size and number of bytes disagree.
    #[error("a {width}x{height} rgb picture has {expected} bytes, and {found} were given")]
    Size {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// Bytes of such a picture.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// The encoder failed.
    #[error("cannot encode the picture: {0}")]
    Encode(#[from] png::EncodingError),
    /// The recipe has no JSON.
    #[error("cannot write the recipe: {0}")]
    Recipe(#[from] serde_json::Error),
    /// The file is no PNG, or a broken one.
    #[error("not a readable png: {0}")]
    Decode(#[from] png::DecodingError),
}

/// What a PNG says about how it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipeTexts {
    /// JSON under `ditmesh`.
    pub recipe: Option<String>,
    /// Text under `parameters`.
    pub parameters: Option<String>,
}

/// The picture as the bytes of a PNG file, with its recipe.
///
/// # Errors
/// When the image's size and data disagree.
pub fn encode(image: &RgbImage, recipe: &Recipe) -> Result<Vec<u8>, PictureError> {
    let (width, height, found) = (image.width, image.height, image.data.len() as u64);
    let expected = u64::from(width) * u64::from(height) * 3;
    if expected != found {
        return Err(PictureError::Size { width, height, expected, found });
    }
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let parameters = recipe.to_parameters();
    if parameters.chars().all(|c| u32::from(c) < 256) {
        encoder.add_text_chunk(PARAMETERS_KEYWORD.to_owned(), parameters)?;
    } else {
        encoder.add_itxt_chunk(PARAMETERS_KEYWORD.to_owned(), parameters)?;
    }
    encoder.add_itxt_chunk(RECIPE_KEYWORD.to_owned(), recipe.to_json()?)?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.data)?;
    writer.finish()?;
    Ok(bytes)
}

/// The recipe texts of a PNG file, wherever in it they stand.
///
/// # Errors
/// When it is no PNG, or broken.
pub fn read_texts(bytes: &[u8]) -> Result<RecipeTexts, PictureError> {
    let limits = png::Limits { bytes: DECODE_BYTES_MAX };
    let mut reader = Decoder::new_with_limits(Cursor::new(bytes), limits).read_info()?;
    let texts = texts(reader.info());
    if texts.recipe.is_some() {
        return Ok(texts);
    }
    // Other programs may have moved the texts behind the picture.
    reader.finish()?;
    Ok(self::texts(reader.info()))
}

fn texts(info: &Info<'_>) -> RecipeTexts {
    let find = |keyword: &str| {
        let utf8 = info.utf8_text.iter().filter(|chunk| chunk.keyword == keyword);
        let plain = info.uncompressed_latin1_text.iter().filter(|chunk| chunk.keyword == keyword);
        let packed = info.compressed_latin1_text.iter().filter(|chunk| chunk.keyword == keyword);
        let utf8 = utf8.filter_map(|chunk| chunk.get_text().ok());
        utf8.chain(plain.map(|chunk| chunk.text.clone()))
            .chain(packed.filter_map(|chunk| chunk.get_text().ok()))
            .next()
    };
    RecipeTexts { recipe: find(RECIPE_KEYWORD), parameters: find(PARAMETERS_KEYWORD) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::recipe::tests::example;

    fn image() -> RgbImage {
        RgbImage { width: 2, height: 1, data: vec![0, 1, 2, 253, 254, 255] }
    }

    #[test]
    fn pixels_and_recipe_come_back() {
        let bytes = encode(&image(), &example()).unwrap();
        let mut reader = Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        let mut pixels = vec![0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, image().data);
        let texts = read_texts(&bytes).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&texts.recipe.unwrap()).unwrap(), example());
        assert_eq!(texts.parameters.unwrap(), example().to_parameters());
    }

    #[test]
    fn prompts_of_any_script_come_back() {
        for prompt in ["caf\u{e9}", "\u{8d64}\u{3044}\u{308a}\u{3093}\u{3054} \u{1f34e}", ""] {
            let recipe = Recipe { prompt: prompt.into(), ..example() };
            let texts = read_texts(&encode(&image(), &recipe).unwrap()).unwrap();
            assert_eq!(texts.parameters.unwrap(), recipe.to_parameters());
            assert_eq!(texts.recipe.unwrap(), recipe.to_json().unwrap());
        }
    }

    #[test]
    fn texts_behind_the_picture_are_found() {
        let mut bytes = Vec::new();
        let encoder = Encoder::new(&mut bytes, 1, 1);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0]).unwrap();
        let chunk = png::text_metadata::TEXtChunk::new(PARAMETERS_KEYWORD, "an apple\nSteps: 1");
        writer.write_text_chunk(&chunk).unwrap();
        writer.finish().unwrap();
        let texts = read_texts(&bytes).unwrap();
        assert_eq!(texts.parameters.as_deref(), Some("an apple\nSteps: 1"));
        assert_eq!(texts.recipe, None);
    }

    #[test]
    fn what_is_no_png_is_refused() {
        let whole = encode(&image(), &example()).unwrap();
        for bytes in [&b""[..], b"not a png", &whole[..20], &whole[..9]] {
            assert!(matches!(read_texts(bytes), Err(PictureError::Decode(_))));
        }
        let short = RgbImage { data: vec![0; 5], ..image() };
        assert!(matches!(encode(&short, &example()), Err(PictureError::Size { .. })));
    }
}
