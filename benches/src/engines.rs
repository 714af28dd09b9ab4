//! `podman run --rm` and `docker run --rm` with runc and with vmbox: same engine, same image, no network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::Bench;
use crate::peer;
use crate::sample::{Side, in_turns, now, tell};

const IMAGE: &str = "localhost/bench";
const RUNTIMES: [&str; 2] = ["runc", "vmbox"];

/// Prints for each engine how long a container takes from the engine's exec to its exit, runc's first.
pub fn compare(bench: &Bench) -> anyhow::Result<()> {
    let folder = bench.work.join("engines");
    fs::create_dir_all(&folder)?;
    let archive = folder.join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(bench.bundle.join("rootfs"));
    succeed(tar.arg("-cf").arg(&archive).arg("."))?;
    let runtimes = [peer::program("runc")?, bench.product.join("vmbox")];

    peer::program("conmon")?;
    let podman = Podman::new(&folder)?;
    succeed(
        podman
            .command()
            .args(["import", "--quiet"])
            .arg(&archive)
            .arg(IMAGE),
    )?;
    let sides = runtimes.each_ref().map(|runtime| {
        let podman = &podman;
        let measure = move || {
            let mut command = podman.command();
            command.arg("--runtime").arg(runtime);
            time(command.args(run_words(&[])))
        };
        Box::new(measure) as Side<'_, _>
    });
    tell("podman run --rm", &RUNTIMES, in_turns(sides.into())?);

    for program in ["docker", "containerd", "containerd-shim-runc-v2"] {
        peer::program(program)?;
    }
    let docker = Docker::new(&folder, &runtimes[1])?;
    succeed(docker.command().arg("import").arg(&archive).arg(IMAGE))?;
    let sides = RUNTIMES.map(|name| {
        let docker = &docker;
        let measure = move || time(docker.command().args(run_words(&["--runtime", name])));
        Box::new(measure) as Side<'_, _>
    });
    tell("docker run --rm", &RUNTIMES, in_turns(sides.into())?);
    Ok(())
}

fn run_words<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let run = ["run", "--rm", "--network", "none"];
    [&run[..], options, &[IMAGE, "/bin/busybox", "true"]].concat()
}

/// Podman with files of its own, and without systemd.
struct Podman {
    program: PathBuf,
    folder: PathBuf,
}

impl Podman {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            program: peer::program("podman")?,
            folder: folder.join("podman"),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--root").arg(self.folder.join("root"));
        command.arg("--runroot").arg(self.folder.join("runroot"));
        command
    }
}

/// A daemon that ends with this.
struct Docker {
    socket: String,
    daemon: Child,
}

impl Docker {
    fn new(folder: &Path, vmbox: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("docker");
        fs::create_dir_all(&folder)?;
        let socket = format!("unix://{}", folder.join("socket").display());
        let settings = json!({
            "runtimes": {"vmbox": {"path": vmbox}}, "storage-driver": "overlay2", "hosts": [socket],
            "data-root": folder.join("data"), "exec-root": folder.join("exec"), "pidfile": folder.join("pid"),
            "bridge": "none", "iptables": false, "ip6tables": false,
        });
        let file = folder.join("daemon.json");
        fs::write(&file, settings.to_string())?;
        let log = File::create(folder.join("log"))?;
        let daemon = Command::new(peer::program("dockerd")?)
            .arg("--config-file")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut docker = Self { socket, daemon };
        while !docker.answers()? {
            let ended = docker.daemon.try_wait()?;
            anyhow::ensure!(ended.is_none(), "dockerd ended: {ended:?}");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(docker)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &self.socket);
        command
    }

    fn answers(&self) -> anyhow::Result<bool> {
        let mut version = self.command();
        version.arg("version").stdout(Stdio::null());
        Ok(version.stderr(Stdio::null()).status()?.success())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.daemon.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.daemon.wait();
    }
}

fn time(command: &mut Command) -> anyhow::Result<Duration> {
    let start = now()?;
    succeed(command)?;
    Ok(now()? - start)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?} failed");
    Ok(())
}
