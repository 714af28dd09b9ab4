//! What is done with Docker's containers while they run and afterwards.

use std::fs;

use super::Docker;
use crate::kit::{PATIENCE, eventually};

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
