//! Where results go and what is in the files.
//!
//! Owns file names and the checks that can be made before any work: a folder that is missing
//! after a long computation helps nobody.

use std::path::{Path, PathBuf};

use ditmesh::recipe::{ModelFacts, Recipe};
use ditmesh::{GenerateRequest, Generation, Output, picture, tensor_file};

use crate::cli::args::{GenerateArgs, OutputTypeArg};
use crate::cli::failure::Failure;

/// The files to write, one per picture.
pub(crate) fn files(args: &GenerateArgs) -> Result<Vec<PathBuf>, Failure> {
    let (default, extension, wrong) = match args.output_type {
        OutputTypeArg::Png => {
            ("ditmesh.png", "png", &["jpg", "jpeg", "webp", "gif", "bmp", "safetensors"][..])
        }
        OutputTypeArg::Latent => {
            ("ditmesh.safetensors", "safetensors", &["png", "jpg", "jpeg"][..])
        }
    };
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(default));
    let found = output.extension().and_then(|found| found.to_str()).unwrap_or_default();
    if wrong.contains(&found.to_lowercase().as_str()) {
        return Err(Failure::usage(format!(
            "--output {} ends in .{found}, and what is written is .{extension}; change its name or \
             --output-type",
            output.display()
        )));
    }
    check(&output)?;
    let count = args.num_images_per_prompt;
    if count == 1 {
        return Ok(vec![output]);
    }
    Ok((0..count).map(|index| numbered(&output, index)).collect())
}

/// Refuses a path that cannot become a file.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    if path.file_name().is_none() || path.is_dir() {
        let message = format!("{} is a folder; write the name of a file in it", path.display());
        return Err(Failure::usage(message));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        let message =
            format!("cannot write {path}: the folder {folder} is not there; make it first");
        return Err(Failure::usage(message));
    }
    Ok(())
}

/// The bytes of the file and the recipe in it.
pub(crate) fn encode(
    request: &GenerateRequest,
    generation: &Generation,
    model: &ModelFacts,
) -> Result<(Vec<u8>, Recipe), Failure> {
    match &generation.output {
        Output::Image(image) => {
            let size = Some((image.height, image.width));
            let recipe = Recipe::new(request, &generation.report, model, size);
            Ok((picture::encode(image, &recipe)?, recipe))
        }
        Output::Latents(latents) => {
            let recipe = Recipe::new(request, &generation.report, model, None);
            Ok((tensor_file::encode_latents(latents, &recipe)?, recipe))
        }
    }
}

/// `apple.png` becomes `apple-0.png`.
fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn several_pictures_are_numbered() {
        assert_eq!(numbered(Path::new("a/apple.png"), 0), Path::new("a/apple-0.png"));
        assert_eq!(numbered(Path::new("apple"), 12), Path::new("apple-12"));
        assert_eq!(numbered(Path::new("a.b.png"), 1), Path::new("a.b-1.png"));
    }

    #[test]
    fn a_path_must_be_able_to_become_a_file() {
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("a.png")).unwrap();
        check(Path::new("a.png")).unwrap();
        let missing = check(&folder.path().join("no/a.png")).unwrap_err();
        assert!(missing.message.contains("is not there; make it first"), "{}", missing.message);
        assert!(check(folder.path()).is_err());
        assert!(check(Path::new("/")).is_err());
    }
}
