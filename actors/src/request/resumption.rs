//! What a lost device, or a better mesh, cost a request: said once while it happens, and in its
//! report.

use serde::{Deserialize, Serialize};

/// A request went on after a loss.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Resumption {
    /// Who was lost: `node b`, `device b/0`, `the coordinator`.
    pub lost: String,
    /// Why, in words.
    pub cause: String,
    /// Whether nothing was lost: a better mesh took over in the middle of the run.
    pub moved: bool,
    /// The step under way then, from 1; 0 before the first one, one past the last while decoding.
    pub lost_at_step: u32,
    /// Steps that the checkpoint held; 0 when there was none and the request began again.
    pub resumed_at_step: u32,
    /// Devices of the mesh that went on.
    pub devices: u32,
    /// Synchronous steps that the run had because of it.
    pub extra_sync_steps: u32,
    /// From the loss to the start of the run that went on, seconds.
    pub seconds: f64,
}

impl Resumption {
    /// Steps that were done already and were done again.
    pub fn steps_redone(&self) -> u32 {
        self.lost_at_step.saturating_sub(1).saturating_sub(self.resumed_at_step)
    }
}

impl std::fmt::Display for Resumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lost, lost_at_step, resumed_at_step, devices, .. } = self;
        match self.moved {
            true => write!(f, "moved to a better mesh at step {lost_at_step}, ")?,
            false => write!(f, "{lost} lost at step {lost_at_step}, ")?,
        }
        match resumed_at_step {
            0 => f.write_str("begun again")?,
            step => write!(f, "resumed at step {step}")?,
        }
        let noun = if *devices == 1 { "device" } else { "devices" };
        write!(f, " on {devices} {noun}")?;
        match self.extra_sync_steps {
            0 => Ok(()),
            1 => f.write_str(", with one synchronous step more"),
            more => write!(f, ", with {more} synchronous steps more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_happened() {
        let mut resumption = Resumption {
            lost: "node b".into(),
            lost_at_step: 11,
            resumed_at_step: 10,
            devices: 3,
            ..Resumption::default()
        };
        let line = "node b lost at step 11, resumed at step 10 on 3 devices";
        assert_eq!(resumption.to_string(), line);
        assert_eq!(resumption.steps_redone(), 0);
        resumption.extra_sync_steps = 1;
        assert_eq!(resumption.to_string(), format!("{line}, with one synchronous step more"));
        let moved = Resumption { moved: true, ..resumption.clone() };
        assert!(
            moved.to_string().starts_with("moved to a better mesh at step 11, resumed at step 10")
        );
        resumption = Resumption { resumed_at_step: 0, devices: 1, lost_at_step: 3, ..resumption };
        assert!(
            resumption.to_string().starts_with("node b lost at step 3, begun again on 1 device,")
        );
        assert_eq!(resumption.steps_redone(), 2);
    }
}
