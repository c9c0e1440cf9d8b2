//! The commands.
//!
//! Owns reading the arguments, setting up logging, and turning the outcome into one message and
//! an exit code. Each command has its file. Invariants: what was asked for goes to stdout,
//! everything else to stderr; an error is one message with one cause.

mod agent;
mod args;
mod bench;
mod certs;
mod completions;
mod doctor;
mod down;
mod failure;
mod generate;
mod inspect;
mod interrupt;
mod join;
mod leave;
mod log;
mod man;
mod mesh_text;
mod outcome;
mod plan;
mod probe;
mod render;
mod status;
mod supervisor;
mod telemetry;
mod terminal;
mod token;
mod up;
mod watch;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;
use telemetry::Telemetry;
use terminal::Terminal;

/// Runs the command line of this process.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::new(cli.quiet);
    let telemetry = Telemetry::of(&cli.command);
    let done = log::install(cli.log.as_deref(), cli.quiet, &telemetry)
        .and_then(|()| dispatch(cli.command, &terminal));
    telemetry.end();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                terminal.error(&failure.message);
            }
            ExitCode::from(failure.outcome.code())
        }
    }
}

fn dispatch(command: Command, terminal: &Terminal) -> Result<(), Failure> {
    match command {
        Command::Generate(args) => generate::run(&args, terminal),
        Command::Up(args) => up::run(&args, terminal),
        Command::Down(args) => down::run(&args, terminal),
        Command::Status(args) => status::run(&args, terminal),
        Command::Plan(args) => plan::run(&args, terminal),
        Command::Token(args) => token::run(&args, terminal),
        Command::Join(args) => join::run(&args, terminal),
        Command::Leave(args) => leave::run(&args, terminal),
        Command::ForceLeave(args) => leave::force(&args, terminal),
        Command::Inspect(args) => inspect::run(&args, terminal),
        Command::Doctor(args) => doctor::run(&args, terminal),
        Command::Bench(args) => bench::run(&args.command, terminal),
        Command::Certs(args) => certs::run(&args, terminal),
        Command::Completions(args) => completions::run(&args, terminal),
        Command::Man(args) => man::run(&args, terminal),
        Command::Render(args) => render::run(&args.command, terminal),
        Command::Probe(args) => probe::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Worker => worker::run(),
        Command::Measure => worker::measure(),
        Command::BenchEnd => bench::transport::end::run(),
        Command::Supervisor => supervisor::run(),
    }
}
