//! Every end that a container can come to, and what is left of it.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Engine, SOON};
use crate::kit::{Done, PATIENCE, eventually, monitors};

#[test]
fn a_container_dies_with_its_pid_and_its_pod_with_it() {
    let engine = Engine::new("oci-kill9");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let (pid, _output) = engine.create("kill9", &bundle);
    engine.verb(&["start", "kill9"]).exits(0);
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    assert!(eventually(SOON, || monitors(&engine.corner).is_empty()));
    assert!(engine.is("kill9", "stopped"));
    engine.verb(&["gc"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn a_container_ends_with_its_vm() {
    let engine = Engine::new("oci-vm-dies");
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let (pid, _output) = engine.create("vm-dies", &bundle);
    engine.verb(&["start", "vm-dies"]).exits(0);
    for monitor in monitors(&engine.corner) {
        kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    }
    let ended = || engine.is("vm-dies", "stopped");
    assert!(eventually(SOON, ended), "its end is not known in time");
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 137));
    engine.verb(&["delete", "vm-dies"]).exits(0);
}

#[test]
fn a_killed_create_leaves_nothing_after_gc() {
    let engine = Engine::new("oci-create-dies");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let mut command = engine.vmbox(&["create", "--bundle", bundle.to_str().unwrap(), "dies"]);
    let mut child = command.spawn().unwrap();
    assert!(eventually(PATIENCE, || !monitors(&engine.corner).is_empty()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(eventually(SOON, || monitors(&engine.corner).is_empty()));
    engine.verb(&["gc"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn of_two_deletes_one_wins() {
    let engine = Engine::new("oci-two-deletes");
    let bundle = engine.bundle("true", |_| {});
    let (pid, _output) = engine.create("two", &bundle);
    engine.verb(&["start", "two"]).exits(0);
    waitpid(pid, None).unwrap();
    let deletes: Vec<_> = (0..2)
        .map(|_| engine.vmbox(&["delete", "two"]).spawn().unwrap())
        .collect();
    let done = deletes
        .into_iter()
        .map(|child| Done::of(child.wait_with_output().unwrap()));
    let (won, lost): (Vec<_>, Vec<_>) = done.partition(|done| done.code() == 0);
    assert_eq!((won.len(), lost.len()), (1, 1));
    lost.into_iter()
        .for_each(|done| done.refuses(1, &["container does not exist"]));
}
