//! Dealing a request for several pictures into one request per picture.
//!
//! Owns the rule that picture `i` has the seed `seed + i`, so that a picture is the same wherever
//! and beside whatever it runs. Pure.

use super::{FloatTensor, GenerateRequest};
use crate::plan::PlanError;

/// Pictures of one request, at most.
pub const IMAGES_PER_PROMPT_MAX: u32 = 10_000;

impl GenerateRequest {
    /// One request per picture, in the order of their seeds. Given latents of as many rows as there
    /// are pictures are dealt out too; those of one row are given to each.
    ///
    /// # Errors
    /// When there are no pictures or more than [`IMAGES_PER_PROMPT_MAX`], or no seeds are left.
    pub fn images(&self) -> Result<Vec<Self>, PlanError> {
        let (count, seed) = (self.num_images_per_prompt, self.seed);
        if !(1..=IMAGES_PER_PROMPT_MAX).contains(&count) {
            return Err(PlanError::Value(format!(
                "num_images_per_prompt {count} is outside 1..={IMAGES_PER_PROMPT_MAX}"
            )));
        }
        let image = |index: u32| {
            let seed = seed.checked_add(u64::from(index)).ok_or_else(|| {
                PlanError::Value(format!("seed {seed} leaves no seeds for {count} pictures"))
            })?;
            let latents = self.latents.as_ref().map(|latents| row(latents, index, count));
            Ok(Self { seed, num_images_per_prompt: 1, latents, ..self.without_latents() })
        };
        (0..count).map(image).collect()
    }

    fn without_latents(&self) -> Self {
        Self {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_embeds: self.prompt_embeds.clone(),
            step_cache: self.step_cache.clone(),
            traceparent: self.traceparent.clone(),
            latents: None,
            ..*self
        }
    }
}

/// Row `index` of latents that have `count` rows; all of others.
fn row(latents: &FloatTensor, index: u32, count: u32) -> FloatTensor {
    let mut rows = latents.data.chunks_exact((latents.data.len() / count as usize).max(1));
    match (latents.shape.split_first(), rows.nth(index as usize)) {
        (Some((&first, rest)), Some(data)) if first == count as usize && count > 1 => {
            let shape = [&[1], rest].concat();
            FloatTensor { shape, data: data.to_vec() }
        }
        _ => latents.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_seeds_in_sequence_and_rows_of_their_own() {
        let latents = FloatTensor { shape: vec![3, 1, 1, 2], data: vec![0., 1., 2., 3., 4., 5.] };
        let request = GenerateRequest {
            seed: 7,
            num_images_per_prompt: 3,
            latents: Some(latents),
            ..GenerateRequest::new("apple")
        };
        let images = request.images().expect("three");
        let seeds: Vec<u64> = images.iter().map(|image| image.seed).collect();
        assert_eq!(seeds, [7, 8, 9]);
        let last = images[2].latents.as_ref().expect("its row");
        assert_eq!(
            (last.shape.as_slice(), last.data.as_slice()),
            (&[1, 1, 1, 2][..], &[4., 5.][..])
        );
        assert!(images.iter().all(|image| image.num_images_per_prompt == 1));
        let one = images[2].images().expect("itself");
        assert_eq!(one, images[2..]);
    }

    #[test]
    fn none_too_many_and_no_seeds_left_are_refused() {
        let of = |seed, num_images_per_prompt| {
            GenerateRequest { seed, num_images_per_prompt, ..GenerateRequest::default() }.images()
        };
        assert!(of(0, 0).is_err() && of(0, IMAGES_PER_PROMPT_MAX + 1).is_err());
        assert!(of(u64::MAX, 2).is_err_and(|error| error.to_string().contains("no seeds")));
        assert!(of(u64::MAX, 1).is_ok());
    }
}
