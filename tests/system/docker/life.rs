//! What is done with Docker's containers while they run and afterwards.

use std::fs;

use super::{Docker, IMAGE};
use crate::kit::{PATIENCE, eventually};
use crate::terminal::{self, is_the_containers};

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_container_in_the_background_is_worked_with() {
    let docker = Docker::new("docker-detached");
    let before = docker.corner.inventory();
    let script = "trap 'exit 3' TERM; echo started; while :; do sleep 0.1; done";
    docker
        .run(&["--detach", "--name", "worked"], script)
        .exits(0);
    docker
        .docker(&["exec", "worked", "sh", "-c", "exit 4"])
        .exits(4);
    let logged = || docker.docker(&["logs", "worked"]).exits(0) == "started\n";
    assert!(eventually(PATIENCE, logged));
    let top = docker.docker(&["top", "worked"]).exits(0);
    assert_eq!(top.lines().count(), 2, "{top}");
    let stats = ["stats", "--no-stream", "--format", "{{.PIDs}}", "worked"];
    assert_ne!(docker.docker(&stats).exits(0).trim(), "0");
    docker.docker(&["pause", "worked"]).exits(0);
    assert_eq!(docker.inspect("worked", "{{.State.Status}}"), "paused");
    let exec = docker.docker(&["exec", "worked", "true"]);
    assert!(exec.stderr.contains("is paused"), "{}", exec.stderr);
    docker.docker(&["unpause", "worked"]).exits(0);
    let file = docker.corner.path("file");
    fs::write(&file, "copied\n").unwrap();
    docker
        .docker(&["cp", file.to_str().unwrap(), "worked:/tmp/file"])
        .exits(0);
    assert_eq!(
        docker
            .docker(&["exec", "worked", "cat", "/tmp/file"])
            .exits(0),
        "copied\n"
    );
    let diff = docker.docker(&["diff", "worked"]).exits(0);
    assert!(diff.contains("A /tmp/file"), "{diff}");
    docker
        .docker(&["update", "--pids-limit", "50", "worked"])
        .exits(0);
    let limit = ["exec", "worked", "cat", "/sys/fs/cgroup/pids.max"];
    assert_eq!(docker.docker(&limit).exits(0), "50\n");
    docker.docker(&["stop", "worked"]).exits(0);
    assert_eq!(docker.inspect("worked", "{{.State.ExitCode}}"), "3");
    docker.docker(&["start", "worked"]).exits(0);
    docker.docker(&["kill", "worked"]).exits(0);
    let ended =
        || docker.inspect("worked", "{{.State.Status}} {{.State.ExitCode}}") == "exited 137";
    assert!(eventually(PATIENCE, ended));
    docker.docker(&["rm", "worked"]).exits(0);
    docker.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_container_is_restarted_as_its_policy_says_and_watched_by_its_health_check() {
    let docker = Docker::new("docker-restart");
    let before = docker.corner.inventory();
    docker.docker(&["volume", "create", "runs"]).exits(0);
    let options = [
        "--detach",
        "--name",
        "restarted",
        "--restart",
        "on-failure:1",
        "--health-cmd",
        "test -e /tmp/well",
        "--health-interval",
        "1s",
        "--health-timeout",
        "300s",
        "--health-retries",
        "1",
        "-v",
        "runs:/runs",
    ];
    // Fails, and the second time waits to be well.
    let script = "echo run >> /runs/log; test $(wc -l < /runs/log) -gt 1 || exit 1
        until test -e /tmp/well; do sleep 0.2; done; until test -e /tmp/done; do sleep 0.2; done; exit 1";
    docker.run(&options, script).exits(0);
    let is = |what: &str, expected: &str| {
        let is = || docker.inspect("restarted", what) == expected;
        assert!(
            eventually(PATIENCE, is),
            "{what}: {}",
            docker.inspect("restarted", what)
        );
    };
    is("{{.RestartCount}} {{.State.Status}}", "1 running");
    is("{{.State.Health.Status}}", "unhealthy");
    docker
        .docker(&["exec", "restarted", "touch", "/tmp/well"])
        .exits(0);
    is("{{.State.Health.Status}}", "healthy");
    docker
        .docker(&["exec", "restarted", "touch", "/tmp/done"])
        .exits(0);
    is(
        "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}",
        "1 exited 1",
    );
    let volume = ["volume", "inspect", "--format", "{{.Mountpoint}}", "runs"];
    let volume = docker.docker(&volume).exits(0);
    let log = std::path::Path::new(volume.trim_end()).join("log");
    assert_eq!(fs::read_to_string(log).unwrap(), "run\nrun\n");
    docker.docker(&["rm", "restarted"]).exits(0);
    docker.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_terminal_is_the_containers() {
    let docker = Docker::new("docker-terminal");
    let before = docker.corner.inventory();
    let words = ["run", "--rm", "-it", "--name", "typed", "--network", "none"];
    let mut run = docker.command("docker");
    run.args(words).args([IMAGE, "sh", "-c", terminal::SCRIPT]);
    let mut exec = docker.command("docker");
    exec.args(["exec", "-it", "typed", "sh"]);
    is_the_containers(&run, &exec);
    docker.corner.assert_nothing_left(&before);
}
