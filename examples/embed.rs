//! An engine inside a program: no file, no server, no global state.
//!
//! `cargo run --example embed -- [MODEL_FOLDER]` draws with the model that ships with the project,
//! or with a diffusers pipeline folder, on four devices of this process.

use ditmesh::{Engine, GenerateRequest, Manifest, ModelSource, Output};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(|folder| ModelSource::Folder(folder.into()));
    let manifest = Manifest::in_process(folder.unwrap_or(ModelSource::Builtin), 4, 1);
    let engine = Engine::start(manifest)?;

    let mut picture = engine.generate(GenerateRequest::new("a red apple"));
    while let Some(event) = picture.blocking_next_event() {
        eprintln!("{event:?}"); // queued, encoded, step k of n, decoded
    }
    let drawn = picture.blocking_finish()?;
    if let Output::Image(image) = &drawn.output {
        eprintln!("{} x {} in {:.2} s", image.width, image.height, drawn.report.seconds);
    }

    let unwanted = engine.generate(GenerateRequest::new("a pear"));
    drop(unwanted); // cancels it
    engine.shutdown();
    Ok(())
}
