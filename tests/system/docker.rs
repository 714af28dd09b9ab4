//! Docker as Debian has it, with `vmbox` as its runtime.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::busybox;
use crate::kit::{Corner, Done, PATIENCE, eventually, get, monitors, product};

const IMAGE: &str = "busybox";

/// A daemon of this test alone, which ends with it.
struct Docker {
    corner: Corner,
    daemon: Child,
}

impl Docker {
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

    fn docker(&self, args: &[&str]) -> Done {
        let mut command = Command::new("docker");
        let socket = format!("unix://{}", self.corner.path("socket").display());
        command.args(["--host", &socket]).args(args);
        // The builder that the daemon has in itself: the other is a package of its own.
        command.env("DOCKER_BUILDKIT", "0").stdin(Stdio::null());
        Done::of(command.output().unwrap())
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
fn containers_of_a_network_find_each_other_and_are_reached_by_their_ports() {
    let docker = Docker::with("docker-network", &json!({"userland-proxy": false}));
    let site = docker.corner.path("site");
    fs::create_dir(&site).unwrap();
    fs::write(site.join("index.html"), "hello from a guest\n").unwrap();
    let mount = format!("{}:/site:ro", site.display());
    docker.docker(&["network", "create", "web-net"]).exits(0);
    let server = [
        "run",
        "--detach",
        "--name",
        "web",
        "--network",
        "web-net",
        "-p",
        "18081:80",
        "-v",
        &mount,
        IMAGE,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/site",
    ];
    docker.docker(&server).exits(0);
    let mut seen = String::new();
    let answers = || {
        seen = get(18081).unwrap_or_else(|error| error.to_string());
        seen.contains("hello from a guest")
    };
    assert!(eventually(PATIENCE, answers), "{seen}");
    // By Docker's resolver on 127.0.0.11, which is in the network namespace on the host.
    let client = [
        "run",
        "--rm",
        "--network",
        "web-net",
        IMAGE,
        "wget",
        "-q",
        "-O",
        "-",
        "http://web/",
    ];
    assert_eq!(docker.docker(&client).exits(0), "hello from a guest\n");
    docker.docker(&["rm", "--force", "web"]).exits(0);
    docker.docker(&["network", "rm", "web-net"]).exits(0);
    assert!(monitors(&docker.corner).is_empty());
}
