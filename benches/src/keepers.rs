//! What stands on the host for each container and each exec of a pod, beside its VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::Bench;
use crate::memory;
use crate::start::idle_bundle;

/// A pod's two containers, the second in the VM of the first.
const CONTAINERS: [&str; 2] = ["keepers-pod", "keepers-second"];

/// Prints private memory and PSS of the keepers of a pod with two containers and an exec.
pub fn report(bench: &Bench) -> anyhow::Result<()> {
    let bundle = idle_bundle(&bench.bundle, &bench.work.join("keepers"))?;
    let mut pids = Vec::new();
    let made = CONTAINERS.iter().try_for_each(|id| {
        annotate(&bundle.join("config.json"), id)?;
        pids.push(pid_of(
            bench,
            id,
            &["create", "--bundle", &bundle.to_string_lossy()],
            &[],
        )?);
        vmbox(bench, &["start", id])
    });
    let executed = made.and_then(|()| {
        let sleep = ["/bin/busybox", "sleep", "1000"];
        pid_of(bench, CONTAINERS[1], &["exec", "--detach"], &sleep)
    });
    let told = executed.and_then(|exec| {
        pids.push(exec);
        for (name, pid) in ["a pod's first container", "its second container", "an exec"]
            .iter()
            .zip(&pids)
        {
            let memory::Usage { private, pss, .. } = memory::usage(*pid)?;
            println!("keeper of {name:<26} private {private:>7} KiB  PSS {pss:>7} KiB");
        }
        Ok(())
    });
    for id in CONTAINERS.iter().rev() {
        let _ = vmbox(bench, &["delete", "--force", id]);
    }
    told
}

/// Says in config.json what the container is to its pod, as containerd does.
fn annotate(config: &Path, id: &str) -> anyhow::Result<()> {
    let kind = if id == CONTAINERS[0] {
        "sandbox"
    } else {
        "container"
    };
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(config)?)?;
    spec["annotations"] = serde_json::json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": CONTAINERS[0],
    });
    Ok(fs::write(config, spec.to_string())?)
}

/// Runs a verb that writes a pid file, and reads it.
fn pid_of(bench: &Bench, id: &str, verb: &[&str], argv: &[&str]) -> anyhow::Result<u32> {
    let file: PathBuf = bench.work.join("keeper.pid");
    let file_name = file.to_string_lossy();
    vmbox(
        bench,
        &[verb, &["--pid-file", &file_name, id], argv].concat(),
    )?;
    let pid = fs::read_to_string(&file)?;
    pid.trim()
        .parse()
        .with_context(|| format!("the pid file says {pid:?}"))
}

fn vmbox(bench: &Bench, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(bench.product.join("vmbox"));
    let status = command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "vmbox {words:?} failed");
    Ok(())
}
