//! Podman's networks: a bridge of netavark's, published ports, and names by aardvark-dns.

use std::fs;

use super::{Engine, IMAGE};
use crate::kit::{PATIENCE, eventually, get};

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_port_is_published_and_a_container_is_found_by_its_name() {
    let engine = Engine::new("podman-network");
    let before = engine.corner.inventory();
    let site = engine.corner.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("index.html"), "hello from a guest\n").unwrap();
    let mount = format!("{}:/site:ro", site.display());
    engine.podman(&["network", "create", "web-net"]).exits(0);
    let server = [
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        "web-net",
        "-p",
        "18080:80",
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
    engine.podman(&server).exits(0);
    let mut seen = String::new();
    let answers = || {
        seen = get(18080).unwrap_or_else(|error| error.to_string());
        seen.contains("hello from a guest")
    };
    assert!(eventually(PATIENCE, answers), "{seen}");
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
    assert_eq!(engine.podman(&client).exits(0), "hello from a guest\n");
    engine
        .podman(&["rm", "--force", "--time", "0", "web"])
        .exits(0);
    engine.podman(&["network", "rm", "web-net"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}
