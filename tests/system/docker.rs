//! Docker as Debian has it, with `vmbox` as its runtime.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::busybox;
use crate::engines::{run_words, write_runtime};
use crate::kit::{Corner, Done, PATIENCE, eventually};

mod life;
mod network;

const IMAGE: &str = "busybox";

/// A daemon of this test alone, which ends with it.
struct Docker {
    corner: Corner,
    daemon: Child,
}

impl Docker {
    /// Without networks of its own, which take it long to make.
    fn new(name: &'static str) -> Self {
        Self::with(
            name,
            &json!({"bridge": "none", "iptables": false, "ip6tables": false}),
        )
    }

    fn with(name: &'static str, more: &Value) -> Self {
        let corner = Corner::new(name);
        // The parent of all containers' cgroups, which stays.
        fs::create_dir_all("/sys/fs/cgroup/docker").unwrap();
        let runtime = write_runtime(&corner);
        let mut settings = json!({
            "runtimes": {"vmbox": {"path": runtime}}, "default-runtime": "vmbox", "storage-driver": "overlay2", "data-root": corner.path("data"),
            "exec-root": corner.path("exec"), "pidfile": corner.path("pid"),
            "hosts": [format!("unix://{}", corner.path("socket").display())],
        });
        for (name, value) in more.as_object().unwrap() {
            settings[name] = value.clone();
        }
        let file = corner.path("daemon.json");
        fs::write(&file, settings.to_string()).unwrap();
        let log = fs::File::create(corner.path("log")).unwrap();
        let daemon = Command::new("dockerd")
            .arg("--config-file")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut docker = Self { corner, daemon };
        let answers = || {
            let ended = docker.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd: {ended:?}: {}", docker.log());
            docker.docker(&["version"]).code() == 0
        };
        assert!(eventually(PATIENCE, answers), "{}", docker.log());
        let archive = busybox::archive(&docker.corner.dir);
        docker
            .docker(&["import", archive.to_str().unwrap(), IMAGE])
            .exits(0);
        docker
    }

    fn log(&self) -> String {
        fs::read_to_string(self.corner.path("log")).unwrap_or_default()
    }

    /// `docker` or `docker-compose`, for this daemon.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let socket = format!("unix://{}", self.corner.path("socket").display());
        // The builder that the daemon has in itself: the other is a package of its own.
        command
            .env("DOCKER_HOST", socket)
            .env("DOCKER_BUILDKIT", "0");
        command.stdin(Stdio::null());
        command
    }

    fn docker(&self, args: &[&str]) -> Done {
        Done::of(self.command("docker").args(args).output().unwrap())
    }

    /// `docker run --network none OPTIONS… IMAGE sh -c SCRIPT`.
    fn run(&self, options: &[&str], script: &str) -> Done {
        self.docker(&run_words(options, IMAGE, script))
    }

    fn inspect(&self, container: &str, what: &str) -> String {
        let text = self
            .docker(&["inspect", "--format", what, container])
            .exits(0);
        text.trim_end().to_owned()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_container_has_its_options_streams_and_exit_code() {
    let docker = Docker::new("docker-run");
    let before = docker.corner.inventory();
    let volume = docker.corner.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("here"), "host\n").unwrap();
    let mount = format!("{}:/v:ro", volume.display());
    let options = [
        "--rm",
        "--memory",
        "64m",
        "--cpus",
        "1",
        "--pids-limit",
        "77",
        "--ulimit",
        "nofile=99:99",
        "--read-only",
        "--tmpfs",
        "/scratch:mode=777",
        "--user",
        "5:6",
        "--cap-drop",
        "ALL",
        "--init",
        "--hostname",
        "web",
        "-v",
        &mount,
    ];
    let script = "id -u; id -g; hostname; nproc; cat /v/here; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; ulimit -n
        echo x > /scratch/x; echo x 2>/dev/null > /x || echo read-only
        grep -E '^(CapEff|Seccomp):' /proc/self/status; cat /proc/1/comm; echo err >&2; exit 5";
    let done = docker.run(&options, script);
    // Docker's client warns before that of a host without swap accounting at its root.
    assert!(done.stderr.ends_with("err\n"), "{}", done.stderr);
    let seen = done.exits(5);
    let lines: Vec<&str> = seen.lines().collect();
    let expected = [
        "5",
        "6",
        "web",
        "1",
        "host",
        "67108864",
        "77",
        "99",
        "read-only",
        "CapEff:\t0000000000000000",
        "Seccomp:\t2",
        "docker-init",
    ];
    assert_eq!(lines, expected);
    let missing = docker.docker(&["run", "--rm", "--network", "none", IMAGE, "/no/such"]);
    assert_eq!(missing.code(), 127, "{}", missing.stderr);
    let host = docker.docker(&["run", "--rm", "--network", "host", IMAGE, "true"]);
    assert!(host.stderr.contains("host network"), "{}", host.stderr);
    assert_eq!(host.code(), 125);
    // What Docker shows of its runtime.
    let info = docker.docker(&["info"]).exits(0);
    assert!(!docker.log().contains("unknown output format"), "{info}");
    docker.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn the_steps_of_a_build_run_in_vms() {
    let docker = Docker::new("docker-build");
    let context = docker.corner.path("context");
    fs::create_dir(&context).unwrap();
    let steps = format!("FROM {IMAGE}\nRUN uname -r > /kernel\n");
    fs::write(context.join("Dockerfile"), steps).unwrap();
    let build = ["build", "--network", "none", "--tag", "built"];
    docker
        .docker(&[&build, &[context.to_str().unwrap()][..]].concat())
        .exits(0);
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "built",
        "cat",
        "/kernel",
    ];
    assert!(docker.docker(&run).exits(0).contains("vmbox"));
}
