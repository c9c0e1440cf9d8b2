//! `status --watch`: the cluster as it changes, redrawn in place.
//!
//! Owns the loop and the redrawing. On a terminal the last picture is overwritten; elsewhere each
//! change is printed once. A coordinator that is away is waited for. Ends by a signal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use ditmesh::{ClusterClient, ClusterStatus, Manifest};

use super::failure::Failure;
use super::mesh_text;

/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Watches until a signal ends this process or nobody reads any more.
pub(crate) fn run(manifest: &Manifest, json: bool) -> Result<(), Failure> {
    let mut client = Some(ClusterClient::connect(manifest)?);
    let in_place = std::io::stdout().is_terminal() && !json;
    let mut shown = String::new();
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
        if text != shown {
            let drawn = if in_place { redrawn(&shown, &text) } else { text.clone() };
            let mut stdout = std::io::stdout().lock();
            if stdout.write_all(drawn.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                return Ok(());
            }
            shown = text;
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

/// `text` over what is shown: up to its first line, and clear what is below.
fn redrawn(shown: &str, text: &str) -> String {
    match shown.lines().count() {
        0 => text.to_owned(),
        lines => format!("\x1b[{lines}A\x1b[0J{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_goes_over_the_one_before() {
        assert_eq!(redrawn("", "a\n"), "a\n");
        assert_eq!(redrawn("a\nb\n", "c\n"), "\x1b[2A\x1b[0Jc\n");
    }
}
