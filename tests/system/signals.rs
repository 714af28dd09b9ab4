//! Signals to `vmbox` itself: what its parent ignores, and those that come after the container's end.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kit::{Corner, PATIENCE, Running, eventually, image, product};

/// `vmbox run` of a container that exits with 9 when it gets SIGHUP (unhandled it would be lost on the init process of a
/// PID namespace), started by a shell that has set `trap` before.
fn under_shell(corner: &Corner, trap: &str) -> Running {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{trap}; exec \"$@\""), "sh"])
        .arg(product().join("vmbox"))
        .args(["run", "--rm", "-i", &image(), "sh", "-c"])
        .arg("trap 'exit 9' HUP; echo ready; read line; echo heard $line")
        .env("VMBOX_RUN", corner.run_dir())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::start(command)
}

#[test]
fn a_hangup_is_the_containers_unless_our_parent_ignores_it() {
    let corner = Corner::new("hangup");
    let mut plain = under_shell(&corner, ":");
    kill(Pid::from_raw(plain.pid()), Signal::SIGHUP).unwrap();
    // Its stdin stays open until it has ended: at its end the script would go on.
    assert!(eventually(PATIENCE, || {
        plain.child.try_wait().unwrap().is_some()
    }));
    plain.finish().exits(9);

    // As nohup(1) does.
    let mut ignoring = under_shell(&corner, "trap '' HUP");
    kill(Pid::from_raw(ignoring.pid()), Signal::SIGHUP).unwrap();
    ignoring.say("hello");
    assert_eq!(ignoring.hear(), "heard hello");
    ignoring.finish().exits(0);
}

#[test]
fn a_signal_ends_the_wait_for_a_reader_that_does_not_read() {
    let corner = Corner::new("unread");
    let before = corner.inventory();
    // More than a pipe holds and less than is under way, so that the container ends though nobody reads.
    let script = "echo ready; head -c 150000 /dev/zero";
    let mut running = Running::start(corner.vmbox(["run", "--rm", &image(), "sh", "-c", script]));
    let ended = eventually(PATIENCE, || {
        // Forwarded while the container runs, which then ends of it; ours when it has ended.
        let _ = kill(Pid::from_raw(running.pid()), Signal::SIGTERM);
        running.child.try_wait().unwrap().is_some()
    });
    assert!(ended, "it waits for its reader for ever");
    assert_eq!(running.child.wait().unwrap().code(), Some(143));
    corner.assert_nothing_left(&before);
}
