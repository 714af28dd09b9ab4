//! Docker's networks: a bridge with published ports, and names by its resolver.

use serde_json::json;

use super::{Docker, IMAGE};
use crate::engines::try_network;
use crate::kit::monitors;

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
