//! Docker's networks: a bridge with published ports, names by its resolver, and a file of services.

use std::fs;

use serde_json::json;

use super::{Docker, IMAGE};
use crate::engines::try_network;
use crate::kit::{Done, PATIENCE, eventually, get, monitors};

/// By Docker's resolver on 127.0.0.11, which is in the network namespace on the host.
#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn containers_of_a_network_find_each_other_and_are_reached_by_their_ports() {
    let docker = Docker::with("docker-network", &json!({"userland-proxy": false}));
    let engine = |words: &[&str]| docker.docker(words);
    let remove = ["rm", "--force", "web"];
    try_network(&docker.corner, IMAGE, 18081, engine, &remove);
    assert!(monitors(&docker.corner).is_empty());
}

/// One serves what is in a volume, another what it has from the first, and the third reads that.
const SERVICES: &str = "
services:
  store:
    image: busybox
    command: [sh, -c, 'echo hello from the store > /data/index.html; exec httpd -f -p 80 -h /data']
    mem_limit: 64m
    volumes: ['data:/data']
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], interval: 1s, timeout: 300s, retries: 100}
  front:
    image: busybox
    command: [sh, -c, 'wget -q -O /tmp/index.html http://store/ && exec httpd -f -p 80 -h /tmp']
    mem_limit: 64m
    depends_on: {store: {condition: service_healthy}}
    ports: ['18082:80']
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], interval: 1s, timeout: 300s, retries: 100}
  reader:
    image: busybox
    command: [wget, -q, -O, '-', 'http://front/']
    mem_limit: 64m
    depends_on: {front: {condition: service_healthy}}
volumes: {data: {}}
";

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn three_services_of_a_compose_file_work_together() {
    let docker = Docker::with("docker-compose", &json!({"userland-proxy": false}));
    let before = docker.corner.inventory();
    let file = docker.corner.path("compose.yaml");
    fs::write(&file, SERVICES).unwrap();
    let compose = |words: &[&str]| {
        let mut command = docker.command("docker-compose");
        command.args(["--ansi", "never", "--progress", "quiet", "--file"]);
        Done::of(command.arg(&file).args(words).output().unwrap())
    };
    compose(&["up", "--detach"]).exits(0);
    assert!(get(18082).unwrap().contains("hello from the store"));
    let read = || compose(&["logs", "--no-log-prefix", "reader"]).exits(0);
    // Its logs begin with what clears a line of a terminal.
    let heard = || read().ends_with("hello from the store\n");
    assert!(eventually(PATIENCE, heard), "{}", read());
    compose(&["down", "--volumes", "--timeout", "0"]).exits(0);
    assert!(monitors(&docker.corner).is_empty());
    docker.corner.assert_nothing_left(&before);
}
