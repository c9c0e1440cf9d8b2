//! Meshes that draw side by side, and what they made of one setting.

use std::sync::Mutex;

use ditmesh::{Degrees, Engine, Generation, Manifest, ModelSource, Output, Report, RgbImage};

use crate::Failure;
use crate::settings::Setting;

/// Some meshes of one thread per device.
pub(crate) struct Studio {
    engines: Vec<Engine>,
    degrees: Degrees,
}

/// Pictures and reports of one setting, in the order of the prompts.
pub(crate) struct Work {
    drawn: Vec<(RgbImage, Report)>,
}

impl Studio {
    pub(crate) fn open(jobs: usize, stages: u32) -> Result<Self, Failure> {
        let degrees = Degrees { pipefusion_degree: stages, ..Degrees::default() };
        let engine = |_| {
            let devices = degrees.world_size().max(2);
            let manifest = Manifest::in_process(ModelSource::Builtin, devices, 1);
            Ok::<_, Failure>(Engine::start(manifest)?)
        };
        Ok(Self { engines: (0..jobs).map(engine).collect::<Result<_, _>>()?, degrees })
    }

    /// Draws every prompt; each mesh takes the next one that nobody has.
    pub(crate) fn draw(
        &self,
        setting: &Setting,
        prompts: &[(usize, &'static str)],
        seed: u64,
    ) -> Result<Work, Failure> {
        let queue = Mutex::new(prompts.iter().enumerate());
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        let draw_some = |engine: &Engine| -> Result<Vec<(usize, Generation)>, Failure> {
            let mut drawn = Vec::new();
            while let Some((place, (_, prompt))) = next() {
                let mut request = setting.request(prompt, seed);
                request.degrees = Some(setting.degrees(self.degrees));
                drawn.push((place, engine.generate(request).blocking_finish()?));
            }
            Ok(drawn)
        };
        let parts: Vec<Result<_, Failure>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.engines.iter().map(|engine| scope.spawn(|| draw_some(engine))).collect();
            let gone = |_| Err("a drawing thread panicked".into());
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
        });
        let mut all: Vec<(usize, Generation)> = Vec::new();
        for part in parts {
            all.extend(part?);
        }
        all.sort_by_key(|(place, _)| *place);
        let drawn: Result<_, Failure> = all.into_iter().map(|(_, one)| picture(one)).collect();
        Ok(Work { drawn: drawn? })
    }

    pub(crate) fn close(self) {
        self.engines.into_iter().for_each(Engine::shutdown);
    }
}

fn picture(generation: Generation) -> Result<(RgbImage, Report), Failure> {
    match generation.output {
        Output::Image(image) => Ok((image, generation.report)),
        Output::Latents(_) => Err("latents where a picture was asked for".into()),
    }
}

impl Work {
    pub(crate) fn pictures(&self) -> Vec<&RgbImage> {
        self.drawn.iter().map(|(picture, _)| picture).collect()
    }

    pub(crate) fn reports(&self) -> impl Iterator<Item = &Report> {
        self.drawn.iter().map(|(_, report)| report)
    }
}
