//! `cargo dev test`: the unit tests here, then the system tests where guests run, for one architecture or for both.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::conformance;
use crate::debian;
use crate::host::{Host, Model};
use crate::product::{self, Profile, static_cargo};
use crate::shell::run;
use crate::streams::Streams;
use crate::system::{self, Suite, at_once, panicked};
use crate::test_host::TestHost;
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
        // Beside one another, so that no processor stands idle: each has stretches of one processor's work.
        let trees = scope.spawn(|| trees(workspace, archs));
        let products = scope.spawn(|| products(workspace, archs));
        let programs = at_once(archs, |arch| {
            if tier == Tier::All {
                unit_tests(workspace, *arch, filter)?;
            }
            system_tests(workspace, *arch)
        })?;
        products.join().map_err(panicked)??;
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

/// Those of all crates, static as the system tests are, so that both share their dependencies' build.
fn unit_tests(workspace: &Workspace, arch: Arch, filter: &[String]) -> Result<()> {
    say(&format!("unit tests for {arch}"));
    if !arch.is_native() {
        return foreign_unit_tests(workspace, arch, filter);
    }
    let mut cargo = static_cargo(workspace, arch, "test")?;
    cargo.arg("--workspace");
    if !filter.is_empty() {
        cargo.arg("--").args(filter);
    }
    run(&mut cargo)
}

/// Another architecture's run in its virtual host. QEMU's emulation of one process lacks too much of Linux: openat2(2), the
/// calls for mounts, filters of system calls.
fn foreign_unit_tests(workspace: &Workspace, arch: Arch, filter: &[String]) -> Result<()> {
    let programs = test_programs(workspace, arch, &[])?;
    let host = TestHost::Emulated(Host::up(workspace, Model::fast(arch), false)?);
    let mut failed = Vec::new();
    let environment = [("PROPTEST_CASES", FOREIGN_CASES.to_string())];
    // This tool, its system tests among it, is not for another architecture: it has cargo and git at hand, and that host none.
    let tool = workspace.root.join("tests");
    for test in programs.iter().filter(|test| test.folder != tool) {
        say(&format!("{arch} unit tests of {}", test.name));
        let folder = test.folder.display().to_string();
        let program = test.program.display().to_string();
        let start = ["sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"].map(str::to_owned);
        // More threads than its one processor: many tests wait.
        let options = ["--quiet", "--test-threads=4"].map(str::to_owned);
        let argv = [&start, &[folder, program][..], &options, filter].concat();
        if host.run(&argv, &environment, &mut Streams::shown())? != 0 {
            failed.push(&*test.name);
        }
    }
    if !failed.is_empty() {
        bail!("{arch} unit tests of {} failed", failed.join(", "));
    }
    Ok(())
}

/// Of each property, in a host that takes ten times as long for one; this machine's own run tries them all.
const FOREIGN_CASES: u32 = 32;

/// The virtual hosts' roots and the containers' images.
fn trees(workspace: &Workspace, archs: &[Arch]) -> Result<()> {
    for arch in archs {
        debian::container_images(workspace, *arch)?;
        debian::host_image(workspace, *arch)?;
    }
    Ok(())
}

fn products(workspace: &Workspace, archs: &[Arch]) -> Result<()> {
    for arch in archs {
        product::build(workspace, *arch, Profile::Release)?;
    }
    Ok(())
}

/// Builds the system tests, static so that they run in any host, and returns their program.
fn system_tests(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    say(&format!("building the {arch} system tests"));
    let programs = test_programs(workspace, arch, &["--test", SYSTEM])?;
    let system = programs.into_iter().find(|test| test.name == SYSTEM);
    Ok(system
        .context("cargo named no program for the system tests")?
        .program)
}

/// The target of the system tests.
const SYSTEM: &str = "system";

/// A test runner.
struct TestProgram {
    /// Of its target.
    name: String,
    program: PathBuf,
    /// Where cargo would run it: its package's.
    folder: PathBuf,
}

/// Builds test runners, static: all of them, or those that `options` choose.
fn test_programs(workspace: &Workspace, arch: Arch, options: &[&str]) -> Result<Vec<TestProgram>> {
    let mut cargo = static_cargo(workspace, arch, "test")?;
    // The whole workspace, whichever are wanted: otherwise cargo chooses other features for the dependencies.
    cargo
        .args(["--workspace", "--no-run", "--message-format=json"])
        .args(options);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("the {arch} tests don't build");
    }
    let mut programs = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        if message["profile"]["test"] == true
            && let Some(program) = text(&message["executable"])
            && let Some(name) = text(&message["target"]["name"])
            && let Some(manifest) = text(&message["manifest_path"])
        {
            let folder = PathBuf::from(manifest).parent().map(PathBuf::from);
            programs.push(TestProgram {
                name,
                program: program.into(),
                folder: folder.context("a manifest has a folder")?,
            });
        }
    }
    Ok(programs)
}
