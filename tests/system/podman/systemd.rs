//! Podman on a host with systemd, which makes the cgroups there.

use super::{Engine, IMAGE};
use crate::kit::{Done, eventually};
use crate::oci::{SOON, Systemd};

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_container_is_in_podmans_scope() {
    let engine = Engine::new("podman-systemd");
    let systemd = Systemd::boot("podman-systemd");
    let before = engine.corner.inventory();
    let podman = |words: &[&str]| {
        let words = [&["--cgroup-manager", "systemd"], words].concat();
        let command = engine.command(&words);
        Done::of(systemd.within(&command).output().unwrap())
    };
    let run = ["run", "--network", "none", "--detach", "--name", "scoped"];
    let id = podman(&[&run[..], &[IMAGE, "sleep", "1000"]].concat()).exits(0);
    let place = format!("machine.slice/libpod-{}.scope", id.trim());
    let inspect = ["inspect", "--format", "{{.State.CgroupPath}}", "scoped"];
    assert_eq!(podman(&inspect).exits(0).trim(), format!("/{place}"));
    let scope = systemd.cgroup.join(place);
    let inside = std::fs::read_to_string(scope.join("cgroup.procs")).unwrap();
    assert_eq!(inside.lines().count(), 3, "{inside}");
    podman(&["exec", "scoped", "true"]).exits(0);
    podman(&["rm", "--force", "--time", "0", "scoped"]).exits(0);
    assert!(eventually(SOON, || !scope.exists()));
    let left = engine.corner.inventory();
    let ours = |entry: &&String| entry.contains("vmbox-vmm") || entry.contains("/pod-");
    let left: Vec<_> = left.difference(&before).filter(ours).collect();
    assert!(left.is_empty(), "{left:?}");
}
