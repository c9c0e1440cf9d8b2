//! What a multistep solver remembers of one strip of rows.

use candle_core::Tensor;

use crate::error::ModelError;

/// History of one strip: earlier model outputs as the solver keeps them, and how far it has come.
///
/// Cloning is cheap (tensors are shared). [`SolverState::tensors`] and
/// [`SolverState::from_parts`] take it apart for a checkpoint and put it together again.
#[derive(Clone, Debug, Default)]
pub struct SolverState {
    history: Vec<Tensor>,
    lower_order_nums: usize,
    last_step: Option<usize>,
}

impl SolverState {
    /// A state as it was when its parts were taken.
    pub fn from_parts(
        tensors: Vec<Tensor>,
        lower_order_nums: usize,
        last_step: Option<usize>,
    ) -> Self {
        Self { history: tensors, lower_order_nums, last_step }
    }

    /// The state after `step`, from the outputs it held then ([`Self::tensors`]).
    pub fn after(step: usize, history: Vec<Tensor>) -> Self {
        // Solvers without a history count one step; the others count what they hold.
        Self { lower_order_nums: history.len().max(1), history, last_step: Some(step) }
    }

    /// Earlier model outputs, oldest first, each f32 of the strip's shape.
    pub fn tensors(&self) -> &[Tensor] {
        &self.history
    }

    /// Steps done, counted up to the solver's order (diffusers' `lower_order_nums`).
    pub fn lower_order_nums(&self) -> usize {
        self.lower_order_nums
    }

    /// The last step done.
    pub fn last_step(&self) -> Option<usize> {
        self.last_step
    }

    /// Checks that `step` of `steps` is the next one.
    pub(super) fn expect(&self, step: usize, steps: usize) -> Result<(), ModelError> {
        let next = self.last_step.map_or(0, |last| last + 1);
        if step == next && step < steps {
            return Ok(());
        }
        Err(ModelError::Invalid(format!(
            "solver was asked for step {step}, expected step {next} of {steps}"
        )))
    }

    /// Appends an output and keeps the newest `order`.
    pub(super) fn push(&mut self, output: Tensor, order: usize) {
        self.history.push(output);
        let surplus = self.history.len().saturating_sub(order);
        self.history.drain(..surplus);
    }

    /// Notes that `step` is done by a solver of `order`.
    pub(super) fn done(&mut self, step: usize, order: usize) {
        self.lower_order_nums = (self.lower_order_nums + 1).min(order);
        self.last_step = Some(step);
    }
}
