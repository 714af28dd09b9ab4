//! Docker's networks: a bridge with published ports, and names by its resolver.

use std::fs;

use serde_json::json;

use super::{Docker, IMAGE};
use crate::kit::{PATIENCE, eventually, get, monitors};

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn containers_of_a_network_find_each_other_and_are_reached_by_their_ports() {
    let docker = Docker::with("docker-network", &json!({"userland-proxy": false}));
    let site = docker.corner.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("index.html"), "hello from a guest\n").unwrap();
    let mount = format!("{}:/site:ro", site.display());
    docker.docker(&["network", "create", "web-net"]).exits(0);
    let server = [
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        "web-net",
        "-p",
        "18081:80",
        "-v",
        &mount,
        IMAGE,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/site",
    ];
    docker.docker(&server).exits(0);
    let mut seen = String::new();
    let answers = || {
        seen = get(18081).unwrap_or_else(|error| error.to_string());
        seen.contains("hello from a guest")
    };
    assert!(eventually(PATIENCE, answers), "{seen}");
    // By Docker's resolver on 127.0.0.11, which is in the network namespace on the host.
    let client = [
        "run",
        "--rm",
        "--network",
        "web-net",
        IMAGE,
        "wget",
        "-q",
        "-O",
        "-",
        "http://web/",
    ];
    assert_eq!(docker.docker(&client).exits(0), "hello from a guest\n");
    docker.docker(&["rm", "--force", "web"]).exits(0);
    docker.docker(&["network", "rm", "web-net"]).exits(0);
    assert!(monitors(&docker.corner).is_empty());
}
