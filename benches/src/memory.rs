//! What one idle pod of 128 MiB costs the host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::Bench;

const MEMORY_MIB: u64 = 128;

/// Sums over the mappings of one process, in KiB.
#[derive(Default)]
pub struct Usage {
    pub private: u64,
    pub pss: u64,
    guest_pss: u64,
}

/// Starts an idle pod and prints private memory and PSS of its processes.
pub fn report(bench: &Bench) -> anyhow::Result<()> {
    let root = format!("dir:{}", bench.bundle.join("rootfs").display());
    let memory = format!("{MEMORY_MIB}M");
    let mut pod = Command::new(bench.product.join("vmbox"))
        .args([
            "run",
            "--rm",
            "-i",
            "--memory",
            &memory,
            &root,
            "/bin/busybox",
            "sh",
            "-c",
            "echo ready; /bin/busybox cat",
        ])
        .env("VMBOX_BENCH_POD", "idle")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(pod.stdout.take().context("stdout is piped")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    anyhow::ensure!(line.trim() == "ready", "the idle pod said {line:?}");
    let (mut private, mut pss, mut guest) = (0, 0, 0);
    for pid in pod_processes()? {
        let usage = usage(pid)?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let (name, private_kib, pss_kib) = (name.trim(), usage.private, usage.pss);
        println!(
            "idle pod: {name:<20} private {private_kib:>7} KiB  PSS {pss_kib:>7} KiB  guest RAM PSS {:>7} KiB",
            usage.guest_pss
        );
        private += usage.private;
        pss += usage.pss;
        guest += usage.guest_pss;
    }
    println!(
        "idle pod: all processes        private {private:>7} KiB  PSS {pss:>7} KiB  guest RAM PSS {guest:>7} KiB"
    );
    println!(
        "idle pod: everything on the host, guest RAM included: PSS {} KiB",
        pss + guest
    );
    drop(pod.stdin.take());
    pod.wait()?;
    Ok(())
}

/// Every process that has inherited the mark of the idle pod.
fn pod_processes() -> anyhow::Result<Vec<u32>> {
    let mark = b"VMBOX_BENCH_POD=idle";
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == mark)
    };
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(marked).collect())
}

/// Guest RAM (a mapping of at least half its size) is counted apart.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut usage, mut is_guest) = (Usage::default(), false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kib = value.parse::<u64>().unwrap_or(0);
        match key {
            "Size:" => is_guest = kib >= MEMORY_MIB * 1024 / 2,
            "Pss:" if is_guest => usage.guest_pss += kib,
            "Pss:" => usage.pss += kib,
            "Private_Clean:" | "Private_Dirty:" if !is_guest => usage.private += kib,
            _ => {}
        }
    }
    Ok(usage)
}
