//! From the exec of a runtime to the first byte of its container's output, and the commands of a container's life: crun,
//! runc, vmbox, same bundle.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::Bench;
use crate::peer;
use crate::sample::{Side, in_turns, now, tell};

/// A bundle that prints one word: busybox and nothing else, `runc spec`'s own configuration.
pub fn make_bundle(work: &Path) -> anyhow::Result<PathBuf> {
    let bundle = work.join("bundle");
    for dir in ["bin", "dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir_all(bundle.join("rootfs").join(dir))?;
    }
    fs::copy("/usr/bin/busybox", bundle.join("rootfs/bin/busybox"))
        .context("busybox-static is not installed")?;
    std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin/sh"))?;
    let made = Command::new("runc")
        .arg("spec")
        .current_dir(&bundle)
        .status()?;
    anyhow::ensure!(made.success(), "runc spec failed");
    let file = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/bin/busybox", "echo", "hello"]);
    fs::write(&file, serde_json::to_string(&config)?)?;
    Ok(bundle)
}

/// What the commands of one container took, each from its exec to its exit.
struct Life {
    create: Duration,
    start: Duration,
    delete: Duration,
}

/// One figure of a container's life.
type Figure = fn(&Life) -> Duration;

const FIGURES: [(&str, Figure); 4] = [
    ("create", |life| life.create),
    ("start", |life| life.start),
    ("delete --force", |life| life.delete),
    ("create + start + delete", |life| {
        life.create + life.start + life.delete
    }),
];

/// Prints each figure of all runtimes, crun's first and the others in proportion to it.
pub fn compare(bench: &Bench) -> anyhow::Result<()> {
    let (crun, runc) = (peer::program("crun")?, peer::program("runc")?);
    let vmbox = bench.product.join("vmbox");
    let runtimes = [("crun", &crun), ("runc", &runc), ("vmbox", &vmbox)];
    let names = runtimes.map(|(name, _)| name);

    let sides = runtimes.map(|(name, program)| {
        let mut round = 0;
        let measure = move || {
            round += 1;
            first_byte(program, &bench.bundle, &format!("{name}-{round}"))
        };
        Box::new(measure) as Side<'_, _>
    });
    tell("run: exec → first byte", &names, in_turns(sides.into())?);

    let idle = idle_bundle(&bench.bundle, &bench.work.join("idle"))?;
    let sides = runtimes.map(|(name, program)| {
        let (idle, mut round) = (&idle, 0);
        let measure = move || {
            round += 1;
            life(program, idle, &format!("{name}-life-{round}"))
        };
        Box::new(measure) as Side<'_, _>
    });
    let lives = in_turns(sides.into())?;
    for (what, figure) in FIGURES {
        let times = lives.iter().map(|side| side.iter().map(figure).collect());
        tell(what, &names, times.collect());
    }
    Ok(())
}

/// The same root file system under a process that waits.
pub fn idle_bundle(bundle: &Path, new: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(new)?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    config["process"]["args"] = serde_json::json!(["/bin/busybox", "sleep", "1000"]);
    config["root"]["path"] = serde_json::json!(bundle.join("rootfs"));
    fs::write(new.join("config.json"), serde_json::to_string(&config)?)?;
    Ok(new.to_owned())
}

fn life(program: &Path, bundle: &Path, id: &str) -> anyhow::Result<Life> {
    let bundle = bundle.to_string_lossy();
    Ok(Life {
        create: command(program, &["create", "--bundle", &bundle, id])?,
        start: command(program, &["start", id])?,
        delete: command(program, &["delete", "--force", id])?,
    })
}

fn command(program: &Path, words: &[&str]) -> anyhow::Result<Duration> {
    let start = now()?;
    let status = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| program.display().to_string())?;
    let elapsed = now()? - start;
    anyhow::ensure!(status.success(), "{} {words:?} failed", program.display());
    Ok(elapsed)
}

fn first_byte(program: &Path, bundle: &Path, id: &str) -> anyhow::Result<Duration> {
    let start = now()?;
    let mut child = Command::new(program)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| program.display().to_string())?;
    let mut stdout = child.stdout.take().context("stdout is piped")?;
    let mut byte = [0];
    stdout
        .read_exact(&mut byte)
        .with_context(|| format!("{} said nothing", program.display()))?;
    let elapsed = now()? - start;
    std::io::copy(&mut stdout, &mut std::io::sink())?;
    anyhow::ensure!(child.wait()?.success(), "{} failed", program.display());
    Ok(elapsed)
}
