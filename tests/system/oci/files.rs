//! What engines find by a container's pid where they look for its files: the container's, never the host's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::Pid;
use serde_json::json;

use super::Engine;
use crate::kit::Done;

/// `sh -c SCRIPT` in the mount namespace of `pid`, as `podman cp` would work there.
fn within(pid: Pid, script: &str) -> Done {
    let target = pid.to_string();
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--mount", "--target", &target, "sh", "-c", script]);
    Done::of(nsenter.output().unwrap())
}

#[test]
fn the_files_of_the_pid_are_the_containers() {
    let engine = Engine::new("oci-files");
    let before = engine.corner.inventory();
    let volume = engine.corner.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("here"), "host\n").unwrap();
    let bundle = engine.bundle("exec sleep 1000", |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({"destination": "/mnt", "type": "bind", "source": volume, "options": ["rbind"]}),
        );
        mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
        let map = json!([{"containerID": 0, "hostID": 5000, "size": 1}]);
        mounts.push(
            json!({"destination": "/srv", "source": volume, "options": ["bind"],
                           "uidMappings": map, "gidMappings": map}),
        );
    });
    let (pid, _output) = engine.create("files", &bundle);
    engine.verb(&["start", "files"]).exits(0);
    let added = engine.corner.path("added");
    let mut exec = engine.vmbox(&["exec", "--detach", "--pid-file"]);
    exec.arg(&added).args(["files", "sleep", "1000"]);
    assert!(exec.status().unwrap().success());
    let added = fs::read_to_string(added).unwrap().parse().unwrap();
    for pid in [pid, Pid::from_raw(added)] {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        assert!(root.join("etc/debian_version").exists());
        assert!(!root.join("run/vmbox-test").exists());
        assert_eq!(fs::read_to_string(root.join("mnt/here")).unwrap(), "host\n");
        assert_eq!(fs::metadata(root.join("srv/here")).unwrap().uid(), 5000);
        within(pid, "echo $0 > /mnt/there").exits(0);
        // The root is to be read only, and what the guest alone has can't be reached.
        for path in ["/etc/x", "/tmp/x", "/dev/x", "/proc/sys/vm/drop_caches"] {
            let done = within(pid, &format!("echo 1 > {path}"));
            assert!(done.stderr.contains("Read-only"), "{path}: {done:?}");
        }
        within(pid, "test -e /proc/1 -a ! -e /run/vmbox-test").exits(0);
    }
    assert_eq!(fs::read_to_string(volume.join("there")).unwrap(), "sh\n");
    engine.verb(&["delete", "--force", "files"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}
