//! A rank's text: encoding it, and giving it to the partition.
//!
//! Owns the embeddings of all branches, in host memory.

use candle_core::{Device, Tensor};
use ditmesh_model::conditioning::Conditioning;
use ditmesh_model::error::ModelError;
use ditmesh_model::forward::{CacheShape, PartitionRun};

use super::Executor;
use super::error::ExecuteError;
use crate::request::Event;

/// Text of all branches.
#[derive(Default)]
pub(super) struct Text {
    pub(super) embeds: Option<Tensor>,
    pub(super) mask: Option<Tensor>,
}

impl Executor {
    pub(super) fn encode(&mut self) -> Result<(), ExecuteError> {
        let run = &self.plan.run;
        let encoder = self.parts.text_encoder.as_ref();
        let encoder =
            encoder.ok_or(ExecuteError::Order { op: "encoding", missing: "the text encoder" })?;
        let negative = run.images.iter().filter(|_| run.is_guided());
        let negative = negative.map(|image| image.negative_prompt.as_str());
        let prompts = negative.chain(run.images.iter().map(|image| image.prompt.as_str()));
        let prompts: Vec<&str> = prompts.collect();
        let bag = &self.bag;
        let mut proceed =
            || bag.check_abort().map_err(|error| ModelError::Aborted(error.to_string()));
        let text = encoder.encode(&prompts, self.plan.text_tokens(), &mut proceed);
        bag.check_abort()?;
        let text = text?;
        text.warnings.into_iter().for_each(|warning| (self.progress)(Event::Warning(warning)));
        let (embeds, mask) = (text.embeds, text.mask);
        let on_host = |x: Tensor| x.to_device(&Device::Cpu);
        self.text = Text { embeds: Some(on_host(embeds)?), mask: Some(on_host(mask)?) };
        Ok(())
    }

    /// Gives the partition the text of this rank's branches.
    pub(super) fn condition(&mut self) -> Result<(), ExecuteError> {
        let (Some(embeds), Some(mask)) = (&self.text.embeds, &self.text.mask) else {
            return Err(ExecuteError::Order { op: "conditioning", missing: "the text" });
        };
        let batch = self.plan.batch();
        let own = |x: &Tensor| x.narrow(0, self.at.cfg * batch, batch)?.to_device(&self.device);
        let conditioning = Conditioning { embeds: own(embeds)?, mask: own(mask)?, pooled: None };
        let pass = self.parts.transformer.begin(&conditioning, self.plan.grid)?;
        let spec = self.plan.model.clone();
        let cache = self.plan.needs_cache().then(|| CacheShape {
            blocks: self.plan.blocks(self.at.stage),
            batch: self.plan.batch(),
            tokens: self.plan.grid.tokens(),
            heads: self.plan.heads(self.at),
        });
        let mut partition = PartitionRun::new(pass, spec, cache, &self.device, self.wait_limit)?;
        partition.keep_residuals(self.step_cache.is_some());
        self.partition = Some(partition);
        self.report(Event::Encoded);
        Ok(())
    }
}
