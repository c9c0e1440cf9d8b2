//! Where results go and what is in the files.
//!
//! Owns file names and the checks that can be made before any work: a folder that is missing
//! after a long computation helps nobody.

use std::path::{Path, PathBuf};

use ditmesh::recipe::{ModelFacts, Recipe};
use ditmesh::{AxisTraffic, GenerateRequest, Generation, Output, Report, picture, tensor_file};

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
    // The file is renamed into place, which would take away what is there.
    if path.exists() && !path.is_file() {
        let message = format!("{} is not a file but a device or a pipe", path.display());
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

/// What travelled in fewer bytes, for people; nothing when all travelled as it is.
pub(crate) fn saved(report: &Report) -> Option<String> {
    let axes = report.traffic.iter().filter(|axis| axis.bytes_saved > 0);
    let parts: Vec<String> = axes
        .map(|AxisTraffic { axis, bytes_sent, bytes_saved }| {
            let megabytes = |bytes: &u64| *bytes as f64 / 1e6;
            let (sent, saved) = (megabytes(bytes_sent), megabytes(bytes_saved));
            format!("{} sent {sent:.3} MB and saved {saved:.3} MB", axis.name())
        })
        .collect();
    (!parts.is_empty()).then(|| format!("wire {}: {}", report.wire, parts.join(", ")))
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

    use ditmesh::Axis;

    use super::*;

    #[test]
    fn what_was_saved_is_said_and_nothing_else() {
        let axis = |axis, bytes_sent, bytes_saved| AxisTraffic { axis, bytes_sent, bytes_saved };
        let traffic = vec![axis(Axis::Ulysses, 1_500_000, 4_000_000), axis(Axis::Other, 9, 0)];
        let wire = "ulysses=int8".parse().unwrap();
        let report = Report { wire, traffic, ..Report::default() };
        let text = "wire ulysses=int8: ulysses sent 1.500 MB and saved 4.000 MB";
        assert_eq!(saved(&report).unwrap(), text);
        assert_eq!(saved(&Report::default()), None);
    }

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
