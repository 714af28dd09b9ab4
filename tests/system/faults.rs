//! kill -9 of anything at any time: the others end, the exit is reported within 2 s, nothing is left.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kit::{Corner, Done, PATIENCE, Running, eventually, image, monitors};

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
fn a_container_that_never_ran_leaves_its_name_free() {
    let corner = Corner::new("never-ran");
    let before = corner.inventory();
    corner
        .run(["--name", "never-ran", &image(), "/no/such/command"])
        .exits(127);
    corner.assert_nothing_left(&before);
}

#[test]
fn a_monitor_that_ends_while_the_image_is_unpacked_is_reported_at_once() {
    let corner = Corner::new("ends-early");
    let (store, kernel) = (corner.path("store"), corner.path("kernel"));
    fs::create_dir_all(store.join("layers")).unwrap();
    fs::write(&kernel, "this is no kernel").unwrap();
    // Nobody can unpack while this is locked.
    let mut locker = Command::new("flock");
    locker
        .arg(store.join("layers"))
        .args(["sh", "-c", "echo ready; cat"]);
    let locker = Running::start(piped(locker));
    let before = corner.inventory();
    let kernel = kernel.to_str().unwrap();
    let mut command = corner.vmbox(["run", "--rm", "--kernel", kernel, &image(), "true"]);
    let mut child = command.env("VMBOX_STORE", &store).spawn().unwrap();
    let ended = eventually(Duration::from_secs(120), || {
        child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    let done = Done::of(child.wait_with_output().unwrap());
    assert!(ended, "it waits for the image: {}", done.stderr);
    done.refuses(125, &["kernel"]);
    corner.assert_nothing_left(&before);
    locker.finish().exits(0);
}

fn piped(mut command: Command) -> Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Names of the sockets on which a pod's streams are waited for.
fn stream_sockets(pod: &Path) -> usize {
    let entries = fs::read_dir(pod).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("vsock_")).count()
}

#[test]
fn a_member_that_is_killed_while_it_is_made_leaves_its_pod_as_it_was() {
    let corner = Corner::new("kill-member");
    let first = start(&corner, &[]);
    let pod = corner.run_dir().join(corner.name);
    let image = image();
    let member = [
        "run",
        "--rm",
        "--name",
        "member",
        "--pod",
        corner.name,
        &image,
        "true",
    ];
    let before = corner.inventory();
    for round in 0..3 {
        let listening = stream_sockets(&pod);
        let mut child = corner.vmbox(member).spawn().unwrap();
        // Just before it calls Create.
        let calls = eventually(PATIENCE, || stream_sockets(&pod) > listening);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(calls, "round {round}: the member never got so far");
        let again = || Done::of(corner.vmbox(member).output().unwrap());
        // Until its warden has cleaned up, the name is taken.
        let mut last = again();
        eventually(Duration::from_secs(60), || {
            if last.code() != 0 {
                last = again();
            }
            last.code() == 0
        });
        last.exits(0);
    }
    corner.assert_nothing_left(&before);
    first.finish().exits(0);
}

#[test]
fn gc_finds_nothing_to_do_after_all_this() {
    let corner = Corner::new("gc");
    let mut gc = corner.vmbox(["gc"]);
    // The other tests' images are to stay.
    gc.env("VMBOX_STORE", corner.path("store"));
    Done::of(gc.output().unwrap()).exits(0);
}

#[test]
fn gc_removes_the_layers_that_no_container_uses() {
    let corner = Corner::new("gc-layers");
    let store = corner.path("store");
    let layers = || fs::read_dir(store.join("layers")).unwrap().count();
    let with_store = |mut command: Command| {
        command.env("VMBOX_STORE", &store);
        command
    };
    let image = image();
    let script = "echo ready; cat; ls /usr/bin/env";
    let run = ["run", "--rm", "-i", &image, "sh", "-c", script];
    let running = Running::start(with_store(corner.vmbox(run)));
    let gc = || Done::of(with_store(corner.vmbox(["gc"])).output().unwrap());
    gc().exits(0);
    assert!(layers() > 0, "the layers of a running container went");
    assert_eq!(running.finish().exits(0), "/usr/bin/env\n");
    let told = gc().exits(0);
    assert!(told.contains("layer "), "{told}");
    assert_eq!(layers(), 0);
}
