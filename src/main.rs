//! The command line `ditmesh`.
//!
//! Owns the process: arguments, logging, exit code. What the commands do is in the library and
//! the layers below it.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
