//! What is done with Podman's containers while they run and afterwards.

use std::fs;

use super::{Engine, IMAGE};
use crate::kit::{PATIENCE, eventually, monitors};
use crate::terminal::{self, is_the_containers};

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_container_in_the_background_is_worked_with() {
    let engine = Engine::new("podman-detached");
    let before = engine.corner.inventory();
    let script = "trap 'exit 3' TERM; echo started; while :; do sleep 0.1; done";
    let options = [
        "--detach",
        "--name",
        "worked",
        "--health-cmd",
        "test -e /tmp/file",
        // Whenever it is asked for: its timers are systemd's.
        "--health-interval",
        "disable",
    ];
    engine.run(&options, script).exits(0);
    assert_eq!(engine.inspect("worked", "{{.State.Status}}"), "running");
    engine
        .podman(&[
            "exec",
            "--user",
            "5",
            "--env",
            "A=b",
            "worked",
            "sh",
            "-c",
            "test $(id -u)$A = 5b && exit 4",
        ])
        .exits(4);
    let logged = || engine.podman(&["logs", "worked"]).exits(0) == "started\n";
    assert!(eventually(PATIENCE, logged));
    engine.podman(&["pause", "worked"]).exits(0);
    assert_eq!(engine.inspect("worked", "{{.State.Status}}"), "paused");
    engine.podman(&["unpause", "worked"]).exits(0);
    let stats = engine
        .podman(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.PIDs}} {{.MemUsage}}",
            "worked",
        ])
        .exits(0);
    assert!(!stats.starts_with("0 "), "{stats}");
    // The keeper on the host, in both of its forms: the second runs the host's ps(1) in the keeper's PID namespace.
    for words in [&["top", "worked"][..], &["top", "worked", "-ef"]] {
        let top = engine.podman(words).exits(0);
        assert_eq!(top.lines().count(), 2, "{top}");
    }
    let ps = engine.exec("worked", "ps");
    assert!(ps.contains("trap 'exit 3' TERM"), "{ps}");
    let health = ["healthcheck", "run", "worked"];
    engine.podman(&health).exits(1);
    let file = engine.corner.path("file");
    fs::write(&file, "copied\n").unwrap();
    engine
        .podman(&["cp", file.to_str().unwrap(), "worked:/tmp/file"])
        .exits(0);
    assert_eq!(
        engine.exec("worked", "cat /tmp/file; echo back > /tmp/back"),
        "copied\n"
    );
    engine.podman(&health).exits(0);
    engine
        .podman(&["cp", "worked:/tmp/back", file.to_str().unwrap()])
        .exits(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "back\n");
    engine
        .podman(&["commit", "--quiet", "worked", "localhost/worked"])
        .exits(0);
    engine.podman(&["stop", "worked"]).exits(0);
    assert_eq!(
        engine.inspect("worked", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 3"
    );
    engine.podman(&["start", "worked"]).exits(0);
    engine.podman(&["kill", "worked"]).exits(0);
    let ended =
        || engine.inspect("worked", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137";
    assert!(eventually(PATIENCE, ended));
    engine.podman(&["rm", "worked"]).exits(0);
    let committed = [
        "run",
        "--rm",
        "--network",
        "none",
        "localhost/worked",
        "cat",
        "/tmp/file",
    ];
    assert_eq!(engine.podman(&committed).exits(0), "copied\n");
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn containers_of_a_pod_share_a_vm() {
    let engine = Engine::new("podman-pod");
    let before = engine.corner.inventory();
    engine
        .podman(&[
            "pod",
            "create",
            "--network",
            "none",
            "--infra-image",
            IMAGE,
            "--infra-command",
            "sleep 100000",
            "pod",
        ])
        .exits(0);
    engine
        .podman(&[
            "run", "--detach", "--pod", "pod", "--name", "one", IMAGE, "sleep", "100000",
        ])
        .exits(0);
    let other = [
        "run",
        "--rm",
        "--pod",
        "pod",
        IMAGE,
        "cat",
        "/proc/sys/kernel/random/boot_id",
    ];
    let boot = engine.podman(&other).exits(0);
    assert_eq!(
        engine.exec("one", "cat /proc/sys/kernel/random/boot_id"),
        boot
    );
    assert_eq!(monitors(&engine.corner).len(), 1);
    engine
        .podman(&["pod", "rm", "--force", "--time", "0", "pod"])
        .exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_failed_container_is_restarted_as_its_policy_says() {
    let engine = Engine::new("podman-restart");
    let before = engine.corner.inventory();
    let runs = engine.corner.path("runs");
    fs::create_dir(&runs).unwrap();
    let mount = format!("{}:/runs", runs.display());
    let options = [
        "--detach",
        "--name",
        "restarted",
        "--restart",
        "on-failure:1",
        "-v",
        &mount,
    ];
    engine
        .run(&options, "echo run >> /runs/log; exit 1")
        .exits(0);
    let ended = || engine.inspect("restarted", "{{.RestartCount}} {{.State.Status}}") == "1 exited";
    assert!(eventually(PATIENCE, ended));
    assert_eq!(fs::read_to_string(runs.join("log")).unwrap(), "run\nrun\n");
    engine.podman(&["rm", "restarted"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_terminal_is_the_containers() {
    let engine = Engine::new("podman-terminal");
    let before = engine.corner.inventory();
    let run = [
        "run",
        "--rm",
        "-it",
        "--name",
        "typed",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        terminal::SCRIPT,
    ];
    let exec = engine.command(&["exec", "-it", "typed", "sh"]);
    is_the_containers(&engine.command(&run), &exec);
    engine.corner.assert_nothing_left(&before);
}
