//! Podman's networks: a bridge of netavark's, published ports, and names by aardvark-dns.

use super::{Engine, IMAGE};
use crate::engines::try_network;

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_port_is_published_and_a_container_is_found_by_its_name() {
    let engine = Engine::new("podman-network");
    let before = engine.corner.inventory();
    let podman = |words: &[&str]| engine.podman(words);
    let remove = ["rm", "--force", "--time", "0", "web"];
    try_network(&engine.corner, IMAGE, 18080, podman, &remove);
    engine.corner.assert_nothing_left(&before);
}
