//! `cargo dev test`: the unit tests here, then the system tests where guests run, for one architecture or for both.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::conformance;
use crate::debian;
use crate::product::{self, Profile, static_cargo};
use crate::shell::run;
use crate::streams::Streams;
use crate::test_host;
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
        kernels.join().map_err(panicked)??;
        let programs = side_by_side(archs, |arch| {
            product::build(workspace, arch, Profile::Release)?;
            system_tests(workspace, arch)
        })?;
        trees.join().map_err(panicked)??;
        anyhow::Ok(programs)
    })?;
    let mut options = vec!["--test-threads=1".to_owned()];
    if tier == Tier::Long {
        options.push("--ignored".into());
    }
    options.extend_from_slice(filter);
    run_system_tests(workspace, archs, &programs, &options)
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

/// Runs the programs of the system tests, each on a host of its architecture.
fn run_system_tests(
    workspace: &Workspace,
    archs: &[Arch],
    programs: &[PathBuf],
    options: &[String],
) -> Result<i32> {
    let on_host = |arch: Arch, program: &Path, streams: &mut Streams| {
        let images = debian::container_images(workspace, arch)?;
        let host = test_host::choose(workspace, arch)?;
        say(&format!("{arch} system tests"));
        let mut argv = vec![program.display().to_string()];
        argv.extend_from_slice(options);
        let environment = [
            ("VMBOX_TEST_PRODUCT", host.product().display().to_string()),
            ("VMBOX_TEST_IMAGES", images.display().to_string()),
        ];
        host.run(&argv, &environment, streams)
    };
    if let ([arch], [program]) = (archs, programs) {
        return on_host(*arch, program, &mut Streams::shown());
    }
    let outcomes = side_by_side(archs, |arch| {
        let program = archs.iter().zip(programs).find(|(of, _)| **of == arch);
        let (_, program) = program.context("an architecture without a program")?;
        let closing = Arc::new(Mutex::new(String::new()));
        let mut streams = Streams::labelled(arch.name(), &closing);
        let ended = on_host(arch, program, &mut streams);
        drop(streams);
        let closing = closing.lock().unwrap_or_else(PoisonError::into_inner);
        // Not an error here, which would hide how the other architecture's tests ended.
        Ok(outcome(ended, &closing))
    })?;
    for (arch, (_, closing)) in archs.iter().zip(&outcomes) {
        println!("{arch:8}| {closing}");
    }
    let codes = outcomes.iter().map(|(code, _)| *code);
    Ok(codes.max().unwrap_or(0))
}

/// The exit code, and the line that says how it came about: the test runner's last, unless it had none.
fn outcome(ended: Result<i32>, closing: &str) -> (i32, String) {
    match ended {
        Ok(code) if !closing.is_empty() => (code, closing.to_owned()),
        Ok(code) => (code.max(1), format!("ended with {code} before its result")),
        Err(error) => (1, format!("error: {error:#}")),
    }
}

/// Does one thing for each architecture at the same time; the outcomes are in the order of `archs`.
fn side_by_side<T: Send>(
    archs: &[Arch],
    work: impl Fn(Arch) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = archs
            .iter()
            .map(|arch| scope.spawn(move || work(*arch)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(panicked)?)
            .collect()
    })
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> anyhow::Error {
    anyhow::anyhow!("a thread of the developer tool panicked")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_whose_tests_did_not_end_has_failed() {
        assert_eq!(outcome(Ok(0), "test result: ok").0, 0);
        assert_eq!(outcome(Ok(101), "test result: FAILED").0, 101);
        assert_ne!(outcome(Ok(0), "").0, 0);
        let (code, line) = outcome(Err(anyhow::anyhow!("no host")), "");
        assert_ne!(code, 0);
        assert!(line.contains("no host"), "{line}");
    }
}
