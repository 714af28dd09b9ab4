//! From the exec of a runtime to the first byte of its container's output: crun, runc, vmbox, same bundle.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::Bench;
use crate::peer;
use crate::sample::{Series, Side, in_turns, now};

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

/// Prints a series for each runtime, the cheapest first, and its median in proportion to that.
pub fn compare(bench: &Bench) -> anyhow::Result<()> {
    let vmbox = bench.product.join("vmbox");
    let (crun, runc) = (peer::program("crun")?, peer::program("runc")?);
    let runtimes = [
        ("crun", crun.as_path()),
        ("runc", runc.as_path()),
        ("vmbox", vmbox.as_path()),
    ];
    let sides = runtimes.map(|(name, program)| {
        let mut round = 0;
        let measure = move || {
            round += 1;
            first_byte(program, &bench.bundle, &format!("{name}-{round}"))
        };
        Box::new(measure) as Side<'_, _>
    });
    let mut cheapest = None;
    for ((name, _), times) in runtimes.into_iter().zip(in_turns(sides.into())?) {
        let series = Series::times(&format!("{name} run: exec → first byte"), times);
        let median = series.median();
        let ratio = median / *cheapest.get_or_insert(median);
        println!("{series}  ({ratio:.2} x crun)");
    }
    Ok(())
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
