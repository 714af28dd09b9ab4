//! Docker as Debian has it, with `vmbox` as its runtime.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::busybox;
use crate::engines::run_words;
use crate::kit::{Corner, Done, PATIENCE, eventually, product};

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
        let runtime = corner.path("vmbox");
        let script = format!(
            "#!/bin/sh\nVMBOX_RUN={} exec {}/vmbox \"$@\"\n",
            corner.run_dir().display(),
            product().display()
        );
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
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
        let docker = Self { corner, daemon };
        let answers = || docker.docker(&["version"]).code() == 0;
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
