//! `vmbox`: the command line.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, error::ErrorKind};
use vmbox_shim::{
    network, oci,
    user::{
        self,
        args::{Cli, complaint},
    },
};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some(oci::KEEPER) => std::process::exit(oci::keeper(words).into()),
        Some(network::follower::VERB) => std::process::exit(network::follower::main(words).into()),
        _ => {}
    }
    show_warnings();
    match Cli::try_parse() {
        // Not `ExitCode`, which would run destructors of threads that wait for input.
        Ok(cli) => std::process::exit(user::execute(cli).into()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
            _ => {
                eprintln!("vmbox: {}", complaint(&error));
                let words: Vec<_> = std::env::args_os().skip(1).collect();
                ExitCode::from(code_of_misuse(&words))
            }
        },
    }
}

/// As `docker run`, whose own failures are 125; or as runc, which knows only 1.
fn code_of_misuse(words: &[OsString]) -> u8 {
    let is_run = words.first().is_some_and(|verb| verb == "run");
    let is_bundle = |word: &OsString| {
        let word = word.to_string_lossy();
        word == "-b" || word == "--bundle" || word.starts_with("--bundle=")
    };
    if is_run && !words.iter().any(is_bundle) {
        125
    } else {
        1
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misuse_has_dockers_code_or_runcs() {
        let code = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            code_of_misuse(&words)
        };
        assert_eq!(code("run --nonsense image"), 125);
        assert_eq!(code("run --bundle dir --nonsense id"), 1);
        assert_eq!(code("run --bundle=dir --nonsense id"), 1);
        assert_eq!(code("gc --nonsense"), 1);
    }
}
