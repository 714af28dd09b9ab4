//! `vmbox` as an OCI runtime: runc's verbs one by one, as an engine calls them.

mod ends;
mod files;
mod network;
mod processes;
mod resources;
mod sandbox;
mod storm;
mod systemd;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::kit::{Corner, Done, monitors, rootfs};

pub use systemd::Systemd;

/// How soon the end of anything must be known: 2 s, and what an emulated host on a busy machine takes beyond that.
pub const SOON: Duration = Duration::from_secs(20);

/// A corner with bundles, whose containers are re-parented to this process as to an engine's monitor.
pub struct Engine {
    pub corner: Corner,
}

impl Engine {
    pub fn new(name: &'static str) -> Self {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        Self {
            corner: Corner::new(name),
        }
    }

    pub fn vmbox(&self, args: &[&str]) -> Command {
        self.corner.vmbox(args)
    }

    /// A verb, to its end.
    pub fn verb(&self, args: &[&str]) -> Done {
        Done::of(self.vmbox(args).output().unwrap())
    }

    /// A bundle that runs a script, after `change`.
    pub fn bundle(&self, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let dir = self.corner.path("bundle");
        fs::create_dir_all(&dir).unwrap();
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["sh", "-c", script], "user": {"uid": 0, "gid": 0},
                        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "root": {"path": rootfs(), "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}],
            "annotations": {"org.example.a": "b"},
            "linux": {"cgroupsPath": format!("/{}", self.corner.name), "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                                     {"type": "network"}]},
        });
        change(&mut config);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    }

    /// Creates a container; its pid, which is our child now, and its output.
    pub fn create(&self, id: &str, bundle: &std::path::Path) -> (Pid, std::io::PipeReader) {
        let pid_file = self.corner.path("pid");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = self.vmbox(&["create", "--pid-file"]);
        command.arg(&pid_file).arg("--bundle").arg(bundle).arg(id);
        let status = command
            .stdout(writer.try_clone().unwrap())
            .stderr(Stdio::inherit())
            .status()
            .unwrap();
        drop((command, writer));
        assert!(status.success(), "create: {status}");
        let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
        (Pid::from_raw(pid), reader)
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.verb(&["state", id]).exits(0)).unwrap()
    }

    pub fn is(&self, id: &str, status: &str) -> bool {
        self.state(id)["status"] == status
    }
}

#[test]
fn a_container_lives_from_create_to_delete() {
    let engine = Engine::new("oci-life");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("echo hello; exit 7", |_| {});
    let (pid, mut output) = engine.create("life", &bundle);
    let state = engine.state("life");
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], pid.as_raw());
    assert_eq!(state["bundle"], bundle.to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.a"], "b");
    let cgroup = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup(pid.as_raw()), "0::/oci-life\n");
    let monitor = monitors(&engine.corner);
    assert_eq!(cgroup(monitor[0]), "0::/oci-life\n");
    engine.verb(&["start", "life"]).exits(0);
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 7));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    assert_eq!(engine.state("life")["status"], "stopped");
    assert_eq!(engine.state("life")["pid"], 0);
    engine.verb(&["delete", "life"]).exits(0);
    engine
        .verb(&["state", "life"])
        .refuses(1, &["container does not exist"]);
    engine.corner.assert_nothing_left(&before);
}

/// Fails unless `document` is as a schema of the runtime specification has it (schema/, Debian's package of it).
fn assert_valid(engine: &Engine, schema: &str, document: &str) {
    let schemas = "/usr/share/gocode/src/github.com/opencontainers/runtime-spec/schema";
    let file = engine.corner.path("document.json");
    fs::write(&file, document).unwrap();
    let mut validator = Command::new("python3");
    validator.args(["-W", "ignore", "-m", "jsonschema", "--base-uri"]);
    validator
        .arg(format!("file://{schemas}/"))
        .arg("-i")
        .arg(file);
    let said = validator.arg(format!("{schemas}/{schema}")).output();
    let done = Done::of(said.unwrap());
    assert_eq!(done.code(), 0, "{document}\n{}", done.stderr);
}

#[test]
fn what_is_told_is_as_the_specifications_schemas_have_it() {
    let engine = Engine::new("oci-schema");
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let (pid, _output) = engine.create("schema", &bundle);
    let is_valid = |status: &str| {
        let state = engine.verb(&["state", "schema"]).exits(0);
        assert!(state.contains(status), "{state}");
        assert_valid(&engine, "state-schema.json", &state);
    };
    is_valid("created");
    engine.verb(&["start", "schema"]).exits(0);
    is_valid("running");
    engine.verb(&["kill", "schema", "KILL"]).exits(0);
    waitpid(pid, None).unwrap();
    is_valid("stopped");
    engine.verb(&["delete", "schema"]).exits(0);
    let features = engine.verb(&["features"]).exits(0);
    assert_valid(&engine, "features-schema.json", &features);
}

#[test]
fn a_wrong_order_is_refused_as_runc_does() {
    let engine = Engine::new("oci-order");
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let (pid, _output) = engine.create("order", &bundle);
    let again = ["create", "--bundle", bundle.to_str().unwrap(), "order"];
    engine
        .verb(&again)
        .refuses(1, &["container with given ID already exists"]);
    engine
        .verb(&["resume", "order"])
        .refuses(1, &["container not paused"]);
    engine.verb(&["start", "order"]).exits(0);
    engine
        .verb(&["start", "order"])
        .refuses(1, &["cannot start an already running container"]);
    engine.verb(&["delete", "order"]).refuses(
        1,
        &["cannot delete container order that is not stopped: running"],
    );
    let log = engine.corner.path("log");
    let logged = [
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "start",
        "order",
    ];
    engine
        .verb(&logged)
        .refuses(1, &["cannot start an already running"]);
    let line: Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "cannot start an already running container");
    engine.verb(&["kill", "order", "KILL"]).exits(0);
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 137));
    engine
        .verb(&["kill", "order", "TERM"])
        .refuses(1, &["container not running"]);
    engine.verb(&["kill", "--all", "order", "0"]).exits(0);
    // Only the heading.
    assert_eq!(engine.verb(&["ps", "order"]).exits(0).lines().count(), 1);
    engine
        .verb(&["start", "order"])
        .refuses(1, &["cannot start a container that has stopped"]);
    engine
        .verb(&["pause", "order"])
        .refuses(1, &["container not running"]);
    let told = engine.corner.path("told");
    let verbose = [
        "--debug",
        "--log",
        told.to_str().unwrap(),
        "delete",
        "order",
    ];
    assert_eq!(engine.verb(&verbose).exits(0), "");
    let told = fs::read_to_string(told).unwrap();
    assert!(
        told.contains("level=debug msg=\"container order: removed\""),
        "{told}"
    );
    engine
        .verb(&["delete", "order"])
        .refuses(1, &["container does not exist"]);
    engine.verb(&["delete", "--force", "order"]).exits(0);
    engine
        .verb(&["kill", "no/id"])
        .refuses(1, &["invalid container ID format"]);
}

#[test]
fn the_hosts_network_is_refused_before_anything_is_touched() {
    let engine = Engine::new("oci-host-network");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("true", |config| {
        config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    });
    engine
        .verb(&["create", "--bundle", bundle.to_str().unwrap(), "host"])
        .refuses(1, &["host network"]);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn hooks_of_the_host_get_the_state() {
    let engine = Engine::new("oci-hooks");
    let log = engine.corner.path("hooks");
    let hook = |name: &str| {
        let script = format!("echo {name} $(cat) >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = engine.bundle("exit 0", |config| {
        config["hooks"] = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
                                 "poststart": hook("poststart"), "poststop": hook("poststop")});
    });
    let (pid, _output) = engine.create("hooks", &bundle);
    engine.verb(&["start", "hooks"]).exits(0);
    waitpid(pid, None).unwrap();
    engine.verb(&["delete", "hooks"]).exits(0);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<(&str, Value)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, state)| (name, serde_json::from_str(state).unwrap()))
        .collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        ["prestart", "createRuntime", "poststart", "poststop"]
    );
    for (name, state) in &lines {
        assert_eq!(state["id"], "hooks", "{name}");
    }
    assert_eq!(lines[0].1["pid"], pid.as_raw());
    assert_eq!(lines[3].1["status"], "stopped");
}

#[test]
fn a_failing_hook_leaves_nothing() {
    let engine = Engine::new("oci-bad-hook");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exit 0", |config| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no; exit 1"]}]});
    });
    engine
        .verb(&["create", "--bundle", bundle.to_str().unwrap(), "bad-hook"])
        .refuses(1, &["createRuntime hook #0", "no"]);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn run_is_create_start_wait_and_delete() {
    let engine = Engine::new("oci-run");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("echo out; echo err >&2; exit 3", |_| {});
    let done = engine.verb(&["run", "--bundle", bundle.to_str().unwrap(), "run"]);
    assert_eq!(
        (done.code(), done.stdout.as_str(), done.stderr.as_str()),
        (3, "out\n", "err\n")
    );
    let missing = engine.bundle("", |config| config["process"]["args"] = json!(["/no/such"]));
    engine
        .verb(&["run", "--bundle", missing.to_str().unwrap(), "run"])
        .refuses(1, &["/no/such", "no such file or directory"]);
    engine.corner.assert_nothing_left(&before);
}
