//! `man`: the manual, made from the definition of the command line.

use clap::CommandFactory;
use clap_mangen::Man;

use super::args::{Cli, ManArgs};
use super::failure::Failure;
use super::terminal::Terminal;

/// Prints ditmesh(1), or writes one page per command into a folder.
pub(crate) fn run(args: &ManArgs, terminal: &Terminal) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page).map_err(Failure::failed)?;
        return terminal.bytes(&page);
    };
    std::fs::create_dir_all(dir).map_err(|error| Failure::write(dir, &error))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| Failure::write(dir, &error))?;
    terminal.result(&format!("{}", dir.display()))
}
