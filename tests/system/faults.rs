//! kill -9 of anything at any time: the others end, the exit is reported within 2 s, nothing is left.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kit::{Corner, Done, Running, eventually, image, monitors};

/// The promise. Counted from the kill to the exit of the one who waits.
const REPORTED_WITHIN: Duration = Duration::from_secs(2);

fn start(corner: &Corner, options: &[&str]) -> Running {
    let image = image();
    let args = [
        &["run", "--rm", "-i", "--name", corner.name],
        options,
        &[&image, "sh", "-c", "echo ready; cat"],
    ]
    .concat();
    Running::start(corner.vmbox(args))
}

#[test]
fn a_killed_monitor_is_reported_and_nothing_is_left() {
    let corner = Corner::new("kill-monitor");
    let before = corner.inventory();
    let mut running = start(&corner, &[]);
    let pid = *monitors(&corner).first().expect("a monitor runs");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    let status = running.child.wait().unwrap();
    let took = killed.elapsed();
    assert_eq!(status.code(), Some(125));
    assert!(took < REPORTED_WITHIN, "{took:?}");
    corner.assert_nothing_left(&before);
}

#[test]
fn after_a_killed_vmbox_nothing_is_left() {
    let corner = Corner::new("kill-vmbox");
    let before = corner.inventory();
    let mut running = start(&corner, &[]);
    assert!(!monitors(&corner).is_empty());
    kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    running.child.wait().unwrap();
    assert!(
        eventually(REPORTED_WITHIN, || monitors(&corner).is_empty()),
        "the monitor outlived vmbox by {:?}",
        killed.elapsed()
    );
    corner.assert_nothing_left(&before);
}

#[test]
fn a_crashed_agent_is_reported_and_nothing_is_left() {
    let corner = Corner::new("kill-agent");
    let before = corner.inventory();
    let mut running = start(&corner, &["--debug-crash-agent-on", "SIGUSR2"]);
    kill(Pid::from_raw(running.pid()), Signal::SIGUSR2).unwrap();
    let crashed = Instant::now();
    let status = running.child.wait().unwrap();
    let took = crashed.elapsed();
    let done = running.finish();
    assert_eq!(status.code(), Some(125), "{}", done.stderr);
    assert!(took < REPORTED_WITHIN, "{took:?}");
    assert!(
        done.stderr.contains("panic"),
        "the cause is not named: {}",
        done.stderr
    );
    corner.assert_nothing_left(&before);
}

#[test]
fn an_orderly_run_leaves_nothing() {
    let corner = Corner::new("orderly");
    let before = corner.inventory();
    corner
        .run(["--rm", "--name", "orderly", &image(), "true"])
        .exits(0);
    corner.assert_nothing_left(&before);
}

#[test]
fn a_name_is_taken_only_once() {
    let corner = Corner::new("twice");
    let first = start(&corner, &[]);
    corner
        .run(["--rm", "--name", "twice", &image(), "true"])
        .refuses(125, &["twice"]);
    first.finish().exits(0);
    corner
        .run(["--rm", "--name", "twice", &image(), "true"])
        .exits(0);
}

#[test]
fn gc_finds_nothing_to_do_after_all_this() {
    let corner = Corner::new("gc");
    Done::of(corner.vmbox(["gc"]).output().unwrap()).exits(0);
}
