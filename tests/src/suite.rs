//! `cargo dev test`: the unit tests here, then the system tests where guests run.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::debian;
use crate::product::{self, Profile, static_cargo};
use crate::shell::run;
use crate::test_host;
use crate::workspace::{Workspace, say};

/// Which tests are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tier {
    /// Those that need no guest.
    Unit,
    /// Those that start guests.
    System,
    /// Both.
    All,
    /// The system tests that take long under emulation; an extra, not part of `all`.
    Long,
    /// The fuzz targets, a minute each; an extra, not part of `all`.
    Fuzz,
}

/// Runs them; the test runner's closing line is the last. Returns its exit code.
pub fn run_tests(workspace: &Workspace, tier: Tier, filter: &[String]) -> Result<i32> {
    if tier == Tier::Fuzz {
        say("fuzz targets, a minute each");
        let mut fuzz = std::process::Command::new(workspace.root.join("tests/fuzz/run"));
        run(fuzz.arg("60").args(filter))?;
        return Ok(0);
    }
    if matches!(tier, Tier::Unit | Tier::All) {
        say("unit tests");
        let mut cargo =
            std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(&workspace.root)
            .args(["test", "--quiet", "--workspace"]);
        if !filter.is_empty() {
            cargo.arg("--").args(filter);
        }
        run(&mut cargo)?;
    }
    if tier == Tier::Unit {
        return Ok(0);
    }
    let images = debian::container_images(workspace)?;
    product::build(workspace, Arch::native(), Profile::Release)?;
    let tests = system_tests(workspace)?;
    let host = test_host::choose(workspace)?;
    say("system tests");
    let mut argv = vec![tests.display().to_string(), "--test-threads=1".into()];
    if tier == Tier::Long {
        argv.push("--ignored".into());
    }
    argv.extend_from_slice(filter);
    let environment = [
        ("VMBOX_TEST_PRODUCT", host.product().display().to_string()),
        ("VMBOX_TEST_IMAGES", images.display().to_string()),
    ];
    host.run(&argv, &environment)
}

/// Builds the system tests, static so that they run in any host, and returns their program.
fn system_tests(workspace: &Workspace) -> Result<PathBuf> {
    say("building the system tests");
    let mut cargo = static_cargo(workspace, Arch::native(), "test");
    cargo.args([
        "--package",
        "vmbox-tests",
        "--test",
        "system",
        "--no-run",
        "--message-format=json",
    ]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("the system tests don't build");
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["target"]["name"] == "system"
            && let Some(program) = message["executable"].as_str()
        {
            return Ok(program.into());
        }
    }
    bail!("cargo named no program for the system tests")
}
