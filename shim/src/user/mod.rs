//! What people type: `vmbox run`, `check`, `gc`, `rm`.

pub mod args;
mod check;
mod gc;
mod plan;
mod prepare;
mod run;
pub mod signals;
pub mod timing;
mod warden;

use std::path::PathBuf;

use args::Cli;
use args::Verb;

pub(crate) use plan::{PlanError, read_spec};

use crate::oci;

/// Does what a command line asks; the exit code of the process.
pub fn execute(cli: Cli) -> u8 {
    let globals = cli.globals;
    match cli.verb {
        Verb::Oci(verb) => oci::execute(&globals, verb),
        Verb::Run(wanted) => run::run(&globals, *wanted),
        Verb::Check => check::check(),
        Verb::Gc => gc::gc(&globals),
        Verb::Rm { name } => gc::rm(&name),
        Verb::Warden { dir, terminal } => warden::watch(&dir, terminal.as_deref()),
    }
}

/// Says one line to the user.
pub(crate) fn complain(message: &str) {
    use std::io::Write;
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "vmbox: {message}");
}

/// An error and its causes in one line, none of them twice.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

/// Where pods are: `$VMBOX_RUN`, or `/run/vmbox`.
pub(crate) fn run_dir() -> PathBuf {
    absolute_from_environment("VMBOX_RUN", "/run/vmbox")
}

/// Where images are: `$VMBOX_STORE`, or `/var/lib/vmbox`.
pub(crate) fn store_dir() -> PathBuf {
    absolute_from_environment("VMBOX_STORE", "/var/lib/vmbox")
}

fn absolute_from_environment(variable: &str, otherwise: &str) -> PathBuf {
    let named = std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from(otherwise));
    std::path::absolute(&path).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner\nmost"));
        assert_eq!(one_line(&error), "outer: inner most");
    }
}
