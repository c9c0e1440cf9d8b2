//! `status --watch`: the cluster as it changes, redrawn in place.
//!
//! Owns the loop and the redrawing. On a terminal the last picture is overwritten; elsewhere each
//! change is printed once. A coordinator that is away is waited for. Ends by a signal.
//!
//! Invariant: what is redrawn has as many rows on the terminal as it has lines, and all of them are
//! in sight: longer lines and further ones are cut off.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use ditmesh::{ClusterClient, ClusterStatus, Manifest};
use terminal_size::{Height, Width, terminal_size};

use super::failure::Failure;
use super::mesh_text;

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Watches until a signal ends this process or nobody reads any more.
pub(crate) fn run(manifest: &Manifest, json: bool) -> Result<(), Failure> {
    let mut client = Some(ClusterClient::connect(manifest)?);
    let in_place = std::io::stdout().is_terminal() && !json;
    let mut screen = Screen::default();
    loop {
        let text = match &client {
            Some(there) => match there.blocking_status() {
                Ok(status) => picture(&status, json)?,
                Err(error) => {
                    client = None;
                    format!("{error}\n")
                }
            },
            None => match ClusterClient::connect(manifest) {
                Ok(there) => {
                    client = Some(there);
                    continue;
                }
                Err(error) => format!("{error}\n"),
            },
        };
        let size = in_place.then(size);
        if let Some(drawn) = screen.show(text, size) {
            let mut stdout = std::io::stdout().lock();
            if stdout.write_all(drawn.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                return Ok(());
            }
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

fn picture(status: &ClusterStatus, json: bool) -> Result<String, Failure> {
    if json {
        let line = serde_json::to_string(status).map_err(Failure::failed)?;
        return Ok(format!("{line}\n"));
    }
    Ok(mesh_text::describe(status))
}

/// Of a terminal that does not say.
const SIZE: Size = Size { columns: 80, rows: 24 };

/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How many characters a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    columns: usize,
    rows: usize,
}

fn size() -> Size {
    let said = terminal_size();
    said.map_or(SIZE, |(Width(columns), Height(rows))| Size {
        columns: columns.max(1).into(),
        rows: rows.max(2).into(),
    })
}

/// What was shown last.
#[derive(Default)]
struct Screen {
    text: String,
    /// Of the terminal; `None` where everything is printed.
    size: Option<Size>,
    /// Lines to go up for the next picture.
    lines: usize,
}

impl Screen {
    /// What to write to show `text`, if it is news; over what is shown, up to its first line, on a
    /// terminal of `size`.
    fn show(&mut self, text: String, size: Option<Size>) -> Option<String> {
        if text == self.text && size == self.size {
            return None;
        }
        let drawn = size.map_or_else(|| text.clone(), |size| fitted(&text, size));
        let over = match (size, self.lines) {
            (None, _) | (_, 0) => String::new(),
            (_, lines) if size == self.size => format!("\x1b[{lines}A\x1b[0J"),
            // What is shown is wrapped anew, nobody knows how.
            _ => CLEAR.to_owned(),
        };
        (self.text, self.size, self.lines) = (text, size, drawn.lines().count());
        Some(over + &drawn)
    }
}

/// `text` in one row for each line, with the cursor in the one after the last; of more than that
/// the beginning, and how many lines are missing.
fn fitted(text: &str, size: Size) -> String {
    let (room, lines) = (size.rows - 1, text.lines().count());
    let kept = if lines > room { room - 1 } else { lines };
    let mut fitted = String::new();
    for line in text.lines().take(kept) {
        fitted.extend(line.chars().take(size.columns).chain(['\n']));
    }
    if lines > room {
        let missing = format!("({} more lines)", lines - kept);
        fitted.extend(missing.chars().take(size.columns).chain(['\n']));
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { columns: 16, rows: 4 };

    #[test]
    fn a_picture_goes_over_the_one_before() {
        let mut screen = Screen::default();
        let mut show = |text: &str| screen.show(text.to_owned(), Some(SMALL));
        assert_eq!(show("a\nb\n").as_deref(), Some("a\nb\n"));
        assert_eq!(show("a\nb\n"), None, "nothing has changed");
        assert_eq!(show("c\n").as_deref(), Some("\x1b[2A\x1b[0Jc\n"));
        assert_eq!(show("d\n").as_deref(), Some("\x1b[1A\x1b[0Jd\n"));
    }

    #[test]
    fn what_is_wider_or_taller_than_the_terminal_is_cut_so_that_nothing_wraps_or_scrolls_away() {
        let mut screen = Screen::default();
        let mut show = |text: &str, size| screen.show(text.to_owned(), Some(size));
        let wide = "äöü4567890123456789\nb\n";
        assert_eq!(show(wide, SMALL).as_deref(), Some("äöü4567890123456\nb\n"));
        let tall = "1\n2\n3\n4\n5\n";
        let drawn = show(tall, SMALL);
        assert_eq!(drawn.as_deref(), Some("\x1b[2A\x1b[0J1\n2\n(3 more lines)\n"));
        assert_eq!(show("1\n2\n3\n", SMALL).as_deref(), Some("\x1b[3A\x1b[0J1\n2\n3\n"));
        let narrow = Size { columns: 3, rows: 2 };
        assert_eq!(show(tall, narrow).as_deref(), Some("\x1b[H\x1b[2J(5 \n"), "another size");
    }

    #[test]
    fn elsewhere_each_change_is_printed_as_it_is() {
        let mut screen = Screen::default();
        let text = "one long line after another\n".repeat(100);
        assert_eq!(screen.show(text.clone(), None).as_deref(), Some(text.as_str()));
        assert_eq!(screen.show(text, None), None);
        assert_eq!(screen.show("b\n".into(), None).as_deref(), Some("b\n"));
    }
}
