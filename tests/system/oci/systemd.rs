//! systemd's cgroups: a scope for each container, made and ended by a systemd that is there for the test alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Engine, SOON};
use crate::kit::{Done, PATIENCE, eventually, monitors};

/// The first process of new namespaces: into the cgroup `$1`, which is the root of all that is seen from then on.
const ENTER: &str = "echo 0 > $1/cgroup.procs; exec unshare --cgroup sh -ec \"$2\"";

/// What systemd finds: a /run of its own, but for what the tests have there, and nothing to start but a slice, which stays.
const BOOT: &str = "
    mount --bind /run/vmbox-test /mnt
    mount -t tmpfs tmpfs /run
    mkdir -p /run/vmbox-test /run/systemd/system
    mount --move /mnt /run/vmbox-test
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    printf '[Unit]\\nDefaultDependencies=no\\nWants=vmbox-test.slice\\n' > /run/systemd/system/nothing.target
    echo 0123456789abcdef0123456789abcdef > /run/machine-id
    mount --bind /run/machine-id /etc/machine-id
    mount -t tmpfs tmpfs /usr/lib/systemd/system-generators
    container=vmbox-test exec /usr/lib/systemd/systemd --unit nothing.target
";

/// A systemd, as the first process of namespaces of its own.
pub struct Systemd {
    outer: Child,
    pid: String,
    /// What it takes for the root of all cgroups.
    pub cgroup: PathBuf,
}

impl Systemd {
    /// Starts it, and waits until it answers. The test's corner is there already.
    pub fn boot(name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let cgroup = root.join(name);
        fs::create_dir(&cgroup).unwrap();
        fs::write(
            root.join("cgroup.subtree_control"),
            "+cpu +io +memory +pids",
        )
        .unwrap();
        let mut unshare = Command::new("unshare");
        unshare.args(["--fork", "--kill-child", "--pid", "--mount", "--mount-proc"]);
        unshare.args(["--uts", "sh", "-ec", ENTER, "sh"]);
        let outer = unshare.arg(&cgroup).arg(BOOT).stdin(Stdio::null()).spawn();
        let mut systemd = Self {
            outer: outer.unwrap(),
            pid: String::new(),
            cgroup,
        };
        let is_up = || {
            let ended = systemd.outer.try_wait().unwrap();
            assert!(ended.is_none(), "systemd: {ended:?}");
            let first = systemd.cgroup.join("init.scope/cgroup.procs");
            let first = fs::read_to_string(first).unwrap_or_default();
            systemd.pid = first.lines().next().unwrap_or_default().into();
            let bus = format!("/proc/{}/root/run/systemd/private", systemd.pid);
            Path::new(&bus).exists() && systemd.slice().exists()
        };
        assert!(eventually(PATIENCE, is_up));
        systemd
    }

    fn slice(&self) -> PathBuf {
        self.cgroup.join("vmbox.slice/vmbox-test.slice")
    }

    /// The same command, among its processes.
    pub fn within(&self, command: &Command) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.args([
            "--target", &self.pid, "--pid", "--mount", "--cgroup", "--uts",
        ]);
        nsenter.arg(command.get_program()).args(command.get_args());
        let variables = command.get_envs();
        nsenter.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        nsenter.stdin(Stdio::null());
        nsenter
    }

    /// A command among its processes, to its end.
    fn run(&self, words: &[&str]) -> Done {
        let mut command = Command::new(words[0]);
        let command = command.args(&words[1..]);
        Done::of(self.within(command).output().unwrap())
    }

    /// A verb, to its end.
    fn verb(&self, engine: &Engine, words: &[&str]) -> Done {
        let command = engine.vmbox(&[&["--systemd-cgroup"], words].concat());
        Done::of(self.within(&command).output().unwrap())
    }

    /// Creates a container that nobody listens to; its pid, as systemd knows it.
    fn create(&self, engine: &Engine, id: &str, cgroups_path: Value) -> String {
        let bundle = engine.bundle("exec sleep 1000", |config| {
            config["linux"]["cgroupsPath"] = cgroups_path;
        });
        let pid_file = engine.corner.path("pid");
        let mut create = engine.vmbox(&["--systemd-cgroup", "create", "--pid-file"]);
        create.arg(&pid_file).arg("--bundle").arg(bundle).arg(id);
        let status = self.within(&create).stdout(Stdio::null()).status();
        assert!(status.unwrap().success());
        fs::read_to_string(pid_file).unwrap()
    }
}

impl Drop for Systemd {
    /// All that it has started ends with it.
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        eventually(SOON, || remove_cgroups(&self.cgroup));
    }
}

fn remove_cgroups(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

#[test]
fn a_containers_processes_are_in_its_scope_from_create_to_delete() {
    let engine = Engine::new("oci-systemd");
    let systemd = Systemd::boot("oci-systemd");
    let before = engine.corner.inventory();
    let pid = systemd.create(&engine, "life", json!("vmbox-test.slice:oci:life"));
    let scope = systemd.slice().join("oci-life.scope");
    let own = systemd.run(&["cat", &format!("/proc/{pid}/cgroup")]);
    let expected = "0::/vmbox.slice/vmbox-test.slice/oci-life.scope\n";
    assert_eq!(own.exits(0), expected);
    // The keeper, the monitor, and the network's follower.
    let inside = fs::read_to_string(scope.join("cgroup.procs")).unwrap();
    let monitor = monitors(&engine.corner)[0].to_string();
    assert!(inside.lines().any(|pid| pid == monitor), "{inside}");
    assert_eq!(inside.lines().count(), 3);
    let properties = "--property=ActiveState,Slice,Delegate,MemoryAccounting,Description";
    let shown = systemd.run(&["systemctl", "show", properties, "oci-life.scope"]);
    let shown = shown.exits(0);
    for line in [
        "ActiveState=active",
        "Slice=vmbox-test.slice",
        "Delegate=yes",
        "MemoryAccounting=yes",
        "Description=vmbox container life",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{shown}");
    }
    systemd.verb(&engine, &["start", "life"]).exits(0);
    let state = systemd.verb(&engine, &["state", "life"]).exits(0);
    assert!(state.contains("running"), "{state}");
    systemd
        .verb(&engine, &["delete", "--force", "life"])
        .exits(0);
    assert!(!scope.exists());
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "a minute under emulation: `cargo dev test --tier long`"]
fn a_scope_is_gone_with_its_container_and_can_be_made_again() {
    let engine = Engine::new("oci-systemd-gone");
    let systemd = Systemd::boot("oci-systemd-gone");
    let scope = systemd.cgroup.join("system.slice/vmbox-gone.scope");
    // Made with the first unit in it, and then it stays.
    fs::create_dir(scope.parent().unwrap()).unwrap();
    let before = engine.corner.inventory();
    for _ in 0..2 {
        let pid = systemd.create(&engine, "gone", Value::Null);
        assert!(scope.exists());
        systemd.run(&["kill", "-KILL", &pid]).exits(0);
        assert!(eventually(SOON, || !scope.exists()));
        systemd.verb(&engine, &["gc"]).exits(0);
        engine.corner.assert_nothing_left(&before);
    }
}

/// Without systemd, whether the host has one or not.
const HIDE: &str = "for dir in /run/systemd /run/dbus; do test ! -d $dir || mount -t tmpfs tmpfs $dir; done; exec \"$@\"";

#[test]
fn what_systemd_cant_do_is_told_and_leaves_nothing() {
    let engine = Engine::new("oci-no-systemd");
    let before = engine.corner.inventory();
    let create = |cgroups_path: &str| {
        let bundle = engine.bundle("true", |config| {
            config["linux"]["cgroupsPath"] = json!(cgroups_path);
        });
        let bundle = bundle.to_str().unwrap();
        let words = ["--systemd-cgroup", "create", "--bundle", bundle, "no"];
        let vmbox = engine.vmbox(&words);
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-ec", HIDE, "sh"]);
        unshare.arg(vmbox.get_program()).args(vmbox.get_args());
        unshare.env("VMBOX_RUN", engine.corner.run_dir());
        Done::of(unshare.output().unwrap())
    };
    let form = "expected cgroupsPath to be of format";
    create("/a/b").refuses(1, &[form, "slice:prefix:name", "/a/b"]);
    let hint = "--systemd-cgroup needs systemd";
    create("a.slice:b:c").refuses(1, &[hint, "/run/systemd/private", "No such file"]);
    engine.corner.assert_nothing_left(&before);
}
