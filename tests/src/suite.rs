//! `cargo dev test`: the unit tests here, then the system tests where guests run, for one architecture or for both.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::conformance;
use crate::debian;
use crate::product::{self, Profile, static_cargo};
use crate::shell::run;
use crate::system::{self, Suite, at_once, panicked};
use crate::toolchain::Toolchain;
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
    /// OCI suites that others wrote, beside runc and crun; an extra, not part of `all`.
    Conformance,
}

/// Runs them for each of `archs`; the test runner's closing line is the last. Returns its exit code.
pub fn run_tests(
    workspace: &Workspace,
    archs: &[Arch],
    tier: Tier,
    filter: &[String],
) -> Result<i32> {
    match tier {
        Tier::Fuzz => {
            say("fuzz targets, a minute each");
            let mut fuzz = Command::new(workspace.root.join("tests/fuzz/run"));
            run(fuzz.arg("60").args(filter))?;
            return Ok(0);
        }
        Tier::Conformance => return conformance::run(workspace, archs, filter),
        Tier::Unit => {
            for arch in archs {
                unit_tests(workspace, *arch, filter)?;
            }
            return Ok(0);
        }
        Tier::System | Tier::All | Tier::Long => {}
    }
    let programs = thread::scope(|scope| {
        // What takes long and needs no compiler of Rust's goes on beside what does.
        let trees = scope.spawn(|| trees(workspace, archs));
        let kernels = scope.spawn(|| kernels(workspace, archs));
        if tier == Tier::All {
            for arch in archs {
                unit_tests(workspace, *arch, filter)?;
            }
        }
        let programs = at_once(archs, |arch| {
            let program = system_tests(workspace, *arch)?;
            product::build(workspace, *arch, Profile::Release)?;
            anyhow::Ok(program)
        })?;
        kernels.join().map_err(panicked)??;
        trees.join().map_err(panicked)??;
        anyhow::Ok(programs)
    })?;
    let options: &[&str] = match tier {
        Tier::Long => &["--test-threads=1", "--ignored"],
        _ => &["--test-threads=1"],
    };
    let suites: Vec<_> = archs
        .iter()
        .zip(programs)
        .map(|(arch, program)| Suite {
            arch: *arch,
            program,
        })
        .collect();
    system::run(workspace, &suites, options, filter)
}

/// Those of all crates, static as the system tests are, so that both share their dependencies' build; another
/// architecture's run under QEMU's emulation of one process.
fn unit_tests(workspace: &Workspace, arch: Arch, filter: &[String]) -> Result<()> {
    say(&format!("unit tests for {arch}"));
    let mut cargo = static_cargo(workspace, arch, "test")?;
    if !arch.is_native() {
        Toolchain::cross(workspace, arch)?.emulate(&mut cargo)?;
    }
    cargo.arg("--workspace");
    if !filter.is_empty() {
        cargo.arg("--").args(filter);
    }
    run(&mut cargo)
}

/// The virtual hosts' roots and the containers' images.
fn trees(workspace: &Workspace, archs: &[Arch]) -> Result<()> {
    for arch in archs {
        debian::container_images(workspace, *arch)?;
        debian::host_image(workspace, *arch)?;
    }
    Ok(())
}

fn kernels(workspace: &Workspace, archs: &[Arch]) -> Result<()> {
    for arch in archs {
        product::kernel(workspace, *arch)?;
    }
    Ok(())
}

/// Builds the system tests, static so that they run in any host, and returns their program.
fn system_tests(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    say(&format!("building the {arch} system tests"));
    let mut cargo = static_cargo(workspace, arch, "test")?;
    // The whole workspace, as for the unit tests: otherwise cargo chooses other features for the dependencies.
    cargo.args([
        "--workspace",
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
        bail!("the {arch} system tests don't build");
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
