//! What the engines' tests have in common; Podman and Docker are told in the same words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::kit::{Corner, Done, PATIENCE, eventually, get, product};

/// Writes the program that an engine is given as its runtime: engines call it in an environment of their own.
pub fn write_runtime(corner: &Corner) -> PathBuf {
    let runtime = corner.path("vmbox");
    let script = format!(
        "#!/bin/sh\nVMBOX_RUN={} exec {}/vmbox \"$@\"\n",
        corner.run_dir().display(),
        product().display()
    );
    fs::write(&runtime, script).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    runtime
}

/// `run --network none OPTIONS… IMAGE sh -c SCRIPT`.
pub fn run_words<'a>(options: &[&'a str], image: &'a str, script: &'a str) -> Vec<&'a str> {
    [
        &["run", "--network", "none"],
        options,
        &[image, "sh", "-c", script],
    ]
    .concat()
}

/// Makes a network, in it a web server that answers on a port of the host, and a container that finds that by its name; then
/// takes the network down. The server is left to be removed by `remove`.
pub fn try_network(
    corner: &Corner,
    image: &str,
    port: u16,
    engine: impl Fn(&[&str]) -> Done,
    remove: &[&str],
) {
    let site = corner.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("index.html"), "hello from a guest\n").unwrap();
    let mount = format!("{}:/site:ro", site.display());
    engine(&["network", "create", "web-net"]).exits(0);
    let published = format!("{port}:80");
    let in_network = ["--network", "web-net"];
    let server = [
        &["run", "--detach", "--name", "web"],
        &in_network[..],
        &["-p", &published, "-v", &mount, image],
        &["httpd", "-f", "-p", "80", "-h", "/site"],
    ];
    engine(&server.concat()).exits(0);
    let mut seen = String::new();
    let answers = || {
        seen = get(port).unwrap_or_else(|error| error.to_string());
        seen.contains("hello from a guest")
    };
    assert!(eventually(PATIENCE, answers), "{seen}");
    let client = [
        &["run", "--rm"],
        &in_network[..],
        &[image, "wget", "-q", "-O", "-", "http://web/"],
    ];
    assert_eq!(engine(&client.concat()).exits(0), "hello from a guest\n");
    engine(remove).exits(0);
    engine(&["network", "rm", "web-net"]).exits(0);
}
