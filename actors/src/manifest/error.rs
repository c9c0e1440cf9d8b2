//! What is wrong with a manifest, and where.
//!
//! Owns the error of reading and checking a manifest and how it is shown. Does not own any rule.
//! Invariant: one error has one cause; a cause that came from a file has a line and a column.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Why a manifest cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The file could not be read.
    #[error("cannot read the manifest {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is far larger than a manifest.
    #[error("{}: {found} bytes are no manifest, which holds at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// Its content is wrong.
    #[error(transparent)]
    Invalid(Box<Problem>),
}

/// One thing that is wrong with the content of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do about it, when that can be said.
    pub advice: Option<String>,
    /// Where it is, when the manifest came from text.
    pub place: Option<Place>,
}

/// A place in the text of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The whole line.
    pub text: String,
    /// Characters to underline, at least 1.
    pub width: usize,
}

impl From<Problem> for ManifestError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(Box::new(problem))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(place) = &self.place {
            write!(f, " at {}:{}:{}", place.file, place.line, place.column)?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        self.place.as_ref().map_or(Ok(()), |place| place.show_line(f))
    }
}

impl Place {
    /// The place of the bytes `start..end` of `text`.
    pub(super) fn of(file: &str, text: &str, start: usize, end: usize) -> Self {
        let start = floor_char(text, start.min(text.len()));
        let end = floor_char(text, end.clamp(start, text.len()));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        Self {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].trim_end().to_owned(),
            width: text[start..end.min(line_end)].trim_end().chars().count().max(1),
        }
    }

    /// The line under a margin with its number, the place underlined.
    fn show_line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let blank = |c: char| if c == '\t' { '\t' } else { ' ' };
        let before: String = self.text.chars().take(self.column - 1).map(blank).collect();
        let under = "^".repeat(self.width);
        write!(f, "\n{margin} |\n{number} | {}\n{margin} | {before}{under}", self.text)
    }
}

/// The nearest start of a character at or before `at`.
fn floor_char(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Likeness, 0 to 1, from which a name is offered as what was meant.
const LIKENESS_MIN: f64 = 0.5;

/// Advice for a `name` that is none of `valid`: the nearest one, or all of them.
pub(super) fn nearest<'v>(name: &str, valid: impl IntoIterator<Item = &'v str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    let likeness = |known: &str| {
        strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase())
            .max(if known.contains(name) || name.contains(known) { LIKENESS_MIN } else { 0.0 })
    };
    let best =
        valid.iter().map(|known| (likeness(known), *known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((score, known)) if score >= LIKENESS_MIN => format!("did you mean `{known}`?"),
        Some(_) => format!("known here: `{}`", valid.join("`, `")),
        None => "nothing is known here".to_owned(),
    }
}
