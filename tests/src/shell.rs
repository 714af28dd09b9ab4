//! Running other programs, and installing those that are missing.

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::workspace::say;

/// Runs a command with this terminal's output; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed, without the line end.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// `program` as root: directly, or by sudo.
pub fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// apt's lock is held for as long as it works, and it does not wait for it: one thread of ours at a time.
static APT: Mutex<()> = Mutex::new(());

/// Installs those of the Debian packages that are missing.
pub fn need(packages: &[&str]) -> Result<()> {
    let _turn = APT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing = Vec::new();
    for package in packages {
        if !is_installed(package)? {
            missing.push(*package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    run(as_root("apt-get").args(["update", "-qq"]))?;
    let mut install = as_root("env");
    install.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"]);
    install.args(["-y", "-qq", "--no-install-recommends"]);
    run(install.args(missing).stdout(Stdio::null()))
}

fn is_installed(package: &str) -> Result<bool> {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", package])
        .stderr(Stdio::null())
        .output()
        .context("run dpkg-query: only Debian and its kin are supported")?;
    Ok(query.stdout.ends_with(b"ok installed"))
}
