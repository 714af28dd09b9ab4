//! Podman as Debian has it, with `vmbox` in place of its runtime.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::busybox;
use crate::engines::{run_words, write_runtime};
use crate::kit::{Corner, Done};

mod life;
mod network;
mod systemd;

/// Podman's own files, the same for all tests: an image is imported once.
fn storage() -> &'static PathBuf {
    static STORAGE: OnceLock<PathBuf> = OnceLock::new();
    STORAGE.get_or_init(|| {
        let dir = PathBuf::from("/run/vmbox-test/podman-storage");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        // Podman's own for all containers' cgroups and their monitors, which stay.
        fs::create_dir_all("/sys/fs/cgroup/libpod_parent/conmon").unwrap();
        let archive = busybox::archive(&dir);
        let mut import = podman(&dir);
        import.args(["import", "--quiet", archive.to_str().unwrap(), IMAGE]);
        Done::of(import.output().unwrap()).exits(0);
        dir
    })
}

const IMAGE: &str = "localhost/busybox";

/// Podman without systemd, which does not run in the virtual host.
fn podman(storage: &std::path::Path) -> Command {
    let mut command = Command::new("podman");
    command.args(["--log-level", "error", "--cgroup-manager", "cgroupfs"]);
    command.args(["--events-backend", "file"]);
    command.arg("--root").arg(storage.join("root"));
    command.arg("--runroot").arg(storage.join("runroot"));
    command.stdin(Stdio::null());
    command
}

/// One test's containers.
struct Engine {
    corner: Corner,
    runtime: PathBuf,
}

impl Engine {
    fn new(name: &'static str) -> Self {
        let corner = Corner::new(name);
        let runtime = write_runtime(&corner);
        storage();
        Self { corner, runtime }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = podman(storage());
        command.arg("--runtime").arg(&self.runtime).args(args);
        command
    }

    fn podman(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// `podman run --network none OPTIONS… IMAGE sh -c SCRIPT`.
    fn run(&self, options: &[&str], script: &str) -> Done {
        self.podman(&run_words(options, IMAGE, script))
    }

    fn exec(&self, container: &str, script: &str) -> String {
        self.podman(&["exec", container, "sh", "-c", script])
            .exits(0)
    }

    fn inspect(&self, container: &str, what: &str) -> String {
        let text = self
            .podman(&["inspect", "--format", what, container])
            .exits(0);
        text.trim_end().to_owned()
    }
}

#[test]
fn run_has_the_containers_streams_and_exit_code() {
    let engine = Engine::new("podman-run");
    let before = engine.corner.inventory();
    let script = "cat; echo err >&2; exit 5";
    let mut run = engine.command(&[
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        IMAGE,
        "sh",
        "-c",
        script,
    ]);
    run.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"words\n").unwrap();
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!(
        (done.code(), &*done.stdout, &*done.stderr),
        (5, "words\n", "err\n")
    );
    let missing = engine.podman(&["run", "--rm", "--network", "none", IMAGE, "/no/such"]);
    assert_eq!(missing.code(), 127, "{}", missing.stderr);
    let terminal = format!(
        "{:?} run --rm -it --network none {IMAGE} sh -c 'test -t 0 && echo is-a-terminal'",
        podman(storage()).arg("--runtime").arg(&engine.runtime)
    );
    let typed = Command::new("script")
        .args(["--quiet", "--return", "--command", &terminal, "/dev/null"])
        .stdin(Stdio::null())
        .output();
    let text = Done::of(typed.unwrap()).exits(0);
    assert!(text.contains("is-a-terminal"), "{text}");
    let host = engine.podman(&["run", "--rm", "--network", "host", IMAGE, "true"]);
    assert!(host.stderr.contains("host network"), "{}", host.stderr);
    assert_eq!(host.code(), 126);
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn options_are_the_containers() {
    let engine = Engine::new("podman-options");
    let volume = engine.corner.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("here"), "host\n").unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let mount = format!("{}:/v", volume.display());
    let options = [
        "--rm",
        "--memory",
        "64m",
        "--cpus",
        "2",
        "--read-only",
        "--tmpfs",
        "/scratch:mode=777",
        "--user",
        "5:6",
        "--cap-drop",
        "ALL",
        "--pids-limit",
        "77",
        "--ulimit",
        "nofile=99:99",
        "--init",
        "--hostname",
        "web",
        "--env",
        "A=b",
        "--workdir",
        "/tmp",
        "-v",
        &mount,
    ];
    let script = "id -u; id -g; hostname; echo $A; pwd; nproc; cat /v/here; echo guest > /v/there; echo x > /scratch/x;
        echo x 2>/dev/null > /x || echo read-only; grep CapEff /proc/self/status; cat /sys/fs/cgroup/memory.max;
        cat /sys/fs/cgroup/pids.max; ulimit -n; cat /proc/1/comm";
    let seen = engine.run(&options, script).exits(0);
    let lines: Vec<&str> = seen.lines().collect();
    let expected = [
        "5",
        "6",
        "web",
        "b",
        "/tmp",
        "2",
        "host",
        "read-only",
        "CapEff:\t0000000000000000",
        "67108864",
        "77",
        "99",
        "podman-init",
    ];
    assert_eq!(lines, expected);
    assert_eq!(fs::read_to_string(volume.join("there")).unwrap(), "guest\n");
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn copying_with_a_running_container_leaves_the_hosts_own_files_alone() {
    let engine = Engine::new("podman-cp");
    let before = engine.corner.inventory();
    let options = ["--detach", "--name", "copied", "--tmpfs", "/scratch"];
    let script = "echo guest > /tmp/of-guest; while :; do sleep 0.1; done";
    engine.run(&options, script).exits(0);
    let file = engine.corner.path("of-host");
    fs::write(&file, "host\n").unwrap();
    let host = file.to_str().unwrap();
    let copy = |from: &str, to: &str| engine.podman(&["cp", from, to]);
    // Not what an earlier run, without this, has left on the host.
    let target = format!("/tmp/of-host-{}", std::process::id());
    copy(host, &format!("copied:{target}")).exits(0);
    assert!(
        !std::path::Path::new(&target).exists(),
        "{target} of the host"
    );
    assert_eq!(engine.exec("copied", &format!("cat {target}")), "host\n");
    // What only the guest has can't be copied to, and the host's own paths are not there to be copied from.
    assert_ne!(copy(host, "copied:/scratch/of-host").code(), 0);
    assert_ne!(copy(&format!("copied:{host}"), host).code(), 0);
    copy("copied:/tmp/of-guest", host).exits(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "guest\n");
    engine
        .podman(&["rm", "--force", "--time", "0", "copied"])
        .exits(0);
    engine.corner.assert_nothing_left(&before);
}
