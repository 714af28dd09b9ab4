//! `vmbox`: the command line.

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use vmbox_shim::user::{
    self,
    args::{Cli, complaint},
};

fn main() -> ExitCode {
    show_warnings();
    match Cli::try_parse() {
        // Not `ExitCode`, which would run destructors of threads that wait for input.
        Ok(cli) => std::process::exit(user::execute(cli.verb).into()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
            _ => {
                eprintln!("vmbox: {}", complaint(&error));
                // As `docker run`: 125 is the runtime's own failure.
                let is_run = std::env::args_os().nth(1).is_some_and(|verb| verb == "run");
                ExitCode::from(if is_run { 125 } else { 1 })
            }
        },
    }
}

/// What is odd but handled is told beside the one line of a failure.
fn show_warnings() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}
