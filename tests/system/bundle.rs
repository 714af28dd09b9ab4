//! A bundle to try config.json with: the Debian image as a writable root, and a spec that a test changes.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::kit::{Corner, Done, rootfs};

/// A bundle directory in a test's corner.
pub struct Bundle {
    corner: Corner,
    dir: PathBuf,
    /// The whole config.json; its process runs a shell script.
    pub spec: Value,
}

impl Bundle {
    pub fn new(name: &'static str) -> Self {
        let corner = Corner::new(name);
        let dir = corner.path("bundle");
        for part in ["rootfs", "overlay"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        // A disk of its own, as an overlay can't have another overlay's for what is written.
        let overlay = dir.join("overlay");
        let none = None::<&str>;
        mount(
            Some("tmpfs"),
            &overlay,
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        for part in ["upper", "work"] {
            fs::create_dir(overlay.join(part)).unwrap();
        }
        let layers = format!(
            "lowerdir={},upperdir={overlay}/upper,workdir={overlay}/work",
            rootfs().display(),
            overlay = overlay.display()
        );
        let options = Some(layers.as_str());
        let root = dir.join("rootfs");
        mount(
            Some("overlay"),
            &root,
            Some("overlay"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        Self {
            corner,
            dir,
            spec: spec(),
        }
    }

    /// A path on the host, of something in the container's root file system.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.dir.join("rootfs").join(path.trim_start_matches('/'))
    }

    /// A path on the host, for what is to be bound into the container.
    pub fn host(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn mount(&mut self, value: Value) {
        self.spec["mounts"].as_array_mut().unwrap().push(value);
    }

    pub fn capabilities(&mut self, names: &[&str]) {
        for set in ["bounding", "effective", "permitted"] {
            self.spec["process"]["capabilities"][set] = json!(names);
        }
    }

    /// Gives the container a user namespace, whose ids 0 and on are 100,000 and on outside, and its own root directory.
    pub fn user_namespace(&mut self) {
        let linux = &mut self.spec["linux"];
        let namespaces = linux["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
        chown(self.inside("/"), Some(100_000), Some(100_000)).unwrap();
    }

    /// `vmbox run --bundle DIR NAME` with a shell script for its process, to its end.
    pub fn sh(&self, script: &str) -> Done {
        let mut spec = self.spec.clone();
        spec["process"]["args"] = json!(["sh", "-c", script]);
        fs::write(self.dir.join("config.json"), spec.to_string()).unwrap();
        let dir = self.dir.to_str().unwrap();
        self.corner.run(["--bundle", dir, self.corner.name])
    }

    /// The lines that a script prints.
    #[track_caller]
    pub fn lines(&self, script: &str) -> Vec<String> {
        let done = self.sh(&format!("set -e\n{script}"));
        let stdout = done.exits(0);
        stdout.lines().map(str::to_owned).collect()
    }

    /// Asserts that it is not run, and that the message names what can't be had.
    #[track_caller]
    pub fn refuses(&self, words: &[&str]) {
        let done = self.sh("echo ran");
        assert_eq!(done.stdout, "", "it ran");
        assert_ne!(done.code(), 0);
        for word in words {
            assert!(
                done.stderr.contains(word),
                "no {word:?} in: {}",
                done.stderr
            );
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for part in ["rootfs", "overlay"] {
            let _ = umount2(&self.dir.join(part), MntFlags::MNT_DETACH);
        }
    }
}

/// What `runc spec` writes, without its limits and restrictions.
fn spec() -> Value {
    let mount = |kind: &str, destination: &str, options: &[&str]| json!({ "type": kind, "source": kind, "destination": destination, "options": options });
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": [],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {},
        },
        "mounts": [
            mount("proc", "/proc", &[]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }],
        },
    })
}
