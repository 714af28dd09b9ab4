//! The network of a container that an engine creates: that of its network namespace, whenever it comes.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::Engine;
use crate::network::{Netns, ip};

/// Says which addresses there are, and what the host says.
const SCRIPT: &str = "ip -o -4 addr show eth0; bash -c 'cat < /dev/tcp/10.77.120.1/4012'";

/// Starts a container with [`SCRIPT`] and tells it `hello` when it dials.
fn start_and_greet(engine: &Engine, id: &str, pid: Pid, mut output: impl Read) {
    let listener = TcpListener::bind("10.77.120.1:4012").unwrap();
    let greeter = thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello\n"));
    engine.verb(&["start", id]).exits(0);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    let heard = text.contains("10.77.120.2/24") && text.ends_with("hello\n");
    assert!(heard, "{text}");
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
    greeter.join().unwrap().unwrap();
}

#[test]
fn a_namespace_named_by_the_bundle_is_the_guests_and_stays_as_it_was() {
    let (engine, netns) = (Engine::new("oci-netns"), Netns::new("vmbox-oci", 12));
    let (before, inside) = (engine.corner.inventory(), netns.inventory());
    let bundle = engine.bundle(SCRIPT, |config| {
        let path = format!("/run/netns/{}", netns.name);
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    });
    let (pid, output) = engine.create("netns", &bundle);
    start_and_greet(&engine, "netns", pid, output);
    engine.verb(&["delete", "netns"]).exits(0);
    netns.assert_as(&inside);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn what_an_engine_attaches_between_create_and_start_is_there_at_the_first_instruction() {
    let engine = Engine::new("oci-late");
    let before = engine.corner.inventory();
    let bundle = engine.bundle(SCRIPT, |_| {});
    let (pid, output) = engine.create("late", &bundle);
    // As Docker does it, by the pid.
    ip(&format!(
        "link add vt12x0 type veth peer name eth0 netns {pid}"
    ));
    ip("addr add 10.77.120.1/24 dev vt12x0");
    ip("link set vt12x0 up");
    let words = format!("--net=/proc/{pid}/ns/net ip -b -");
    let batch = "link set lo up\naddr add 10.77.120.2/24 dev eth0\nlink set eth0 up\n";
    let nsenter = format!("echo '{batch}' | nsenter {words}");
    let status = Command::new("sh").args(["-c", &nsenter]).status();
    assert!(status.unwrap().success());
    start_and_greet(&engine, "late", pid, output);
    engine.verb(&["delete", "late"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}
