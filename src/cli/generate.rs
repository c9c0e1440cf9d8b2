//! `generate`: from a prompt to a file.
//!
//! Owns the order of things: everything that can be refused is looked at before anything starts;
//! then all pictures are asked for, a few ahead of the one that is waited for, so that free
//! replicas have work; each is written, in order, as soon as it is there.
//! Does not own how a picture is computed.

mod mesh;
mod model_facts;
mod output;
mod progress;
mod request;
mod trace;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use ditmesh::recipe::ModelFacts;
use ditmesh::trace_file::RunTimeline;
use ditmesh::{Event, GenerateRequest, Generation, GenerationHandle};
use serde_json::{Value, json};

use super::args::GenerateArgs;
use super::failure::Failure;
use super::interrupt::Interrupt;
use super::terminal::Terminal;
use mesh::Mesh;
use progress::Progress;

/// Pictures that are asked for at a time; a client may have twice as many.
const PICTURES_AHEAD_MAX: usize = 32;

/// Draws the pictures and prints where they are.
pub(crate) fn run(args: &GenerateArgs, terminal: &Terminal) -> Result<(), Failure> {
    let files = output::files(args)?;
    if let Some(report) = &args.report {
        output::check(report)?;
    }
    if let Some(trace) = &args.trace {
        trace::check(trace, files.len())?;
    }
    let requests = request::requests(args)?;
    let manifest = request::manifest(args)?;
    let mut interrupt = Interrupt::new()?;
    let model = model_facts::of(&manifest);
    let mesh = Mesh::open(manifest, args, &mut interrupt, terminal)?;
    let (entries, timelines) = (Vec::new(), Vec::new());
    let mut work = Work { mesh: &mesh, model, interrupt, terminal, entries, timelines };
    let drawn = work.draw_all(requests, &files);
    let written = match (&drawn, &args.report) {
        (Ok(()), Some(path)) => write_report(path, work.entries),
        _ => Ok(()),
    };
    let traced = match (&drawn, &args.trace) {
        (Ok(()), Some(path)) => trace::write(path, work.timelines, terminal),
        _ => Ok(()),
    };
    let closed = mesh.close(terminal);
    drawn.and(written).and(traced).and(closed)
}

struct Work<'a> {
    mesh: &'a Mesh,
    model: ModelFacts,
    interrupt: Interrupt,
    terminal: &'a Terminal,
    entries: Vec<Value>,
    timelines: Vec<RunTimeline>,
}

impl Work<'_> {
    fn draw_all(
        &mut self,
        requests: Vec<GenerateRequest>,
        files: &[PathBuf],
    ) -> Result<(), Failure> {
        let mut coming = requests.into_iter().zip(files).enumerate();
        let mut asked = VecDeque::new();
        loop {
            let ahead = PICTURES_AHEAD_MAX - asked.len();
            asked.extend(coming.by_ref().take(ahead).map(|(index, (request, file))| {
                let steps = i64::from(request.num_inference_steps);
                let seed = request.seed.cast_signed();
                let span = tracing::info_span!("generate", steps, seed);
                let handle = span.in_scope(|| self.mesh.generate(request.clone()));
                (index, file, handle, request, span)
            }));
            let Some((index, file, handle, request, _span)) = asked.pop_front() else {
                return Ok(());
            };
            let generation = self.draw(handle, Progress::new(self.terminal, index, files.len()))?;
            self.write(&request, generation, file)?;
        }
    }

    fn draw(
        &mut self,
        mut handle: GenerationHandle,
        mut progress: Progress<'_>,
    ) -> Result<Generation, Failure> {
        let mut timeline = RunTimeline::default();
        let result = self.interrupt.guard(async {
            while let Some(event) = handle.next_event().await {
                match event {
                    Event::Timeline(chunk) => timeline.add(chunk),
                    event => progress.event(&event),
                }
            }
            handle.finish().await
        });
        // Dropping the handle, as an interrupt does, cancels the request.
        let generation = result??;
        timeline.place(&generation.report);
        self.timelines.push(timeline);
        Ok(generation)
    }

    fn write(
        &mut self,
        request: &GenerateRequest,
        generation: Generation,
        file: &Path,
    ) -> Result<(), Failure> {
        let (bytes, recipe) = output::encode(request, &generation, &self.model)?;
        ditmesh::atomic_file::write(file, &bytes).map_err(|error| Failure::write(file, &error))?;
        let Generation { report, .. } = generation;
        if let Some(saved) = output::saved(&report) {
            self.terminal.note(&saved);
        }
        self.entries.push(json!({ "file": file, "recipe": recipe, "report": report }));
        self.terminal.result(&file.display().to_string())
    }
}

fn write_report(path: &Path, pictures: Vec<Value>) -> Result<(), Failure> {
    let version = concat!("ditmesh ", env!("CARGO_PKG_VERSION"));
    let report = json!({ "version": version, "pictures": pictures });
    let mut text = serde_json::to_string_pretty(&report).map_err(Failure::failed)?;
    text.push('\n');
    ditmesh::atomic_file::write(path, text.as_bytes()).map_err(|error| Failure::write(path, &error))
}
