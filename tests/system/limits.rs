//! Limits hold, and only the one who breaks them suffers.

use std::time::Duration;

use crate::kit::{Corner, Running, eventually, image};

/// In one C loop: an eater written in Python would first be slowed down by its own text being evicted again and again.
const EAT: &str = "python3 -c 'b\"x\" * (512 << 20)'";

#[test]
fn a_container_beyond_its_memory_is_killed_and_its_neighbours_live() {
    let corner = Corner::new("memory");
    let mut neighbour = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--name",
        "memory-neighbour",
        "--memory",
        "256M",
        &image(),
        "sh",
        "-c",
        "echo ready; cat",
    ]));
    let script = format!("exec {EAT}");
    corner
        .sh(&["--pod", "memory-neighbour", "--memory", "64M"], &script)
        .exits(137);
    neighbour.say("still here");
    assert_eq!(neighbour.hear(), "still here");
    corner
        .sh(&["--pod", "memory-neighbour"], "echo agent lives")
        .exits(0);
    neighbour.finish().exits(0);
}

#[test]
fn a_container_alone_beyond_its_memory_is_killed_with_137() {
    let corner = Corner::new("memory-alone");
    corner
        .sh(&["--memory", "64M"], &format!("exec {EAT}"))
        .exits(137);
}

#[test]
fn a_fork_bomb_ends_with_eagain_and_the_pod_is_usable() {
    let corner = Corner::new("pids");
    let pod = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--name",
        "pids-pod",
        "--memory",
        "256M",
        &image(),
        "sh",
        "-c",
        "echo ready; cat",
    ]));
    let bomb = "python3 -c '
import os, errno, signal
n = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        n += 1
except OSError as e:
    print(errno.errorcode[e.errno], n, flush=True)
'";
    let out = corner
        .sh(&["--pod", "pids-pod", "--pids-limit", "40"], bomb)
        .exits(0);
    let (code, forks) = out.trim().split_once(' ').unwrap();
    assert_eq!(code, "EAGAIN");
    assert!((30..=40).contains(&forks.parse::<u32>().unwrap()), "{out}");
    corner.sh(&["--pod", "pids-pod"], "exit 0").exits(0);
    pod.finish().exits(0);
}

/// Measured inside, per period of the scheduler in which the container wanted more: time by the clock would also count what
/// the host, itself emulated on a busy machine, did not get.
#[test]
fn half_a_cpu_is_half_a_cpu() {
    let corner = Corner::new("cpu");
    let script = "python3 -c '
import time
def stat():
    with open(\"/sys/fs/cgroup/cpu.stat\") as file:
        return {key: int(value) for key, value in map(str.split, file)}
def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
spin(2)
before = stat()
spin(10)
after = stat()
gained = lambda key: after[key] - before[key]
print(gained(\"usage_usec\") / gained(\"nr_periods\") / 100000, gained(\"nr_throttled\") / gained(\"nr_periods\"))
'";
    let out = corner.sh(&["--cpus", "0.5"], script).exits(0);
    let (share, throttled) = out.trim().split_once(' ').unwrap();
    let share: f64 = share.parse().unwrap();
    let throttled: f64 = throttled.parse().unwrap();
    assert!((0.4..=0.6).contains(&share), "{out}");
    assert!(throttled > 0.5, "{out}");
}

#[test]
fn cpus_and_memory_are_what_was_asked_for() {
    let corner = Corner::new("size");
    let out = corner
        .sh(
            &["--cpus", "2", "--memory", "300M"],
            "nproc; cat /sys/fs/cgroup/memory.max",
        )
        .exits(0);
    assert_eq!(out, format!("2\n{}\n", 300 << 20));
}

#[test]
fn freed_memory_returns_to_the_host() {
    let corner = Corner::new("reporting");
    let script = "python3 -c 'import mmap\nm = mmap.mmap(-1, 100 << 20)\nfor i in range(0, len(m), 4096): m[i] = 1'; echo ready; cat";
    let running = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--memory",
        "300M",
        &image(),
        "sh",
        "-c",
        script,
    ]));
    let monitor = crate::kit::monitors(&corner)[0];
    let rss_mib = || crate::kit::resident_mib(monitor);
    assert!(
        eventually(Duration::from_secs(60), || rss_mib() < 100),
        "the monitor still holds {} MiB",
        rss_mib()
    );
    running.finish().exits(0);
}
