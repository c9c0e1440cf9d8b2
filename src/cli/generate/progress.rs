//! A bar on a terminal, nothing elsewhere.

use ditmesh::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::terminal::Terminal;

/// The progress of one picture.
pub(crate) struct Progress<'t> {
    bar: ProgressBar,
    terminal: &'t Terminal,
}

impl<'t> Progress<'t> {
    /// For picture `index` of `of`.
    pub(crate) fn new(terminal: &'t Terminal, index: usize, of: usize) -> Self {
        let target = match terminal.shows_progress() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template = "{prefix}{bar:30} {pos}/{len} {msg} [{elapsed}]";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if of > 1 {
            bar.set_prefix(format!("{}/{of} ", index + 1));
        }
        bar.set_message("starting");
        Self { bar, terminal }
    }

    /// Shows what happened.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::Queued { ahead: 0 } => self.bar.set_message("waiting for the mesh"),
            Event::Queued { ahead } => self.bar.set_message(format!("behind {ahead} requests")),
            Event::Warning(text) => {
                self.bar.suspend(|| self.terminal.note(&format!("warning: {text}")));
            }
            Event::Resumed(resumption) => {
                self.bar.suspend(|| self.terminal.note(&resumption.to_string()));
            }
            Event::Encoded => self.bar.set_message("prompt encoded"),
            Event::Step { step, of } => {
                self.bar.set_length(u64::from(*of));
                self.bar.set_position(u64::from(*step));
                self.bar.set_message("steps");
            }
            Event::Decoded => self.bar.set_message("decoded"),
            // For a file, not for people.
            Event::Timeline(_) => {}
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
