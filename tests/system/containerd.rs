//! containerd as Debian has it, whose shim for runc is given `vmbox`: pods by the annotations of its CRI plugin.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::busybox;
use crate::engines::write_runtime;
use crate::kit::{Corner, Done, PATIENCE, eventually, monitors};

/// A daemon of this test alone, which ends with it.
struct Containerd {
    corner: Corner,
    daemon: Child,
    runtime: String,
    /// Where the runtime has its containers.
    state: String,
    rootfs: String,
}

impl Containerd {
    fn new(name: &'static str) -> Self {
        let corner = Corner::new(name);
        let runtime = write_runtime(&corner);
        // The parent of all containers' cgroups, named by containerd's namespace, which stays.
        fs::create_dir_all("/sys/fs/cgroup/default").unwrap();
        busybox::archive(&corner.dir);
        let config = corner.path("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            corner.path("root"),
            corner.path("state"),
            corner.path("socket")
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(corner.path("log")).unwrap();
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut containerd = Self {
            runtime: runtime.display().to_string(),
            state: corner.path("containers").display().to_string(),
            rootfs: corner.path("busybox").display().to_string(),
            corner,
            daemon,
        };
        let answers = || {
            let ended = containerd.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", containerd.log());
            containerd.ctr(&["version"]).code() == 0
        };
        assert!(eventually(PATIENCE, answers), "{}", containerd.log());
        containerd
    }

    fn log(&self) -> String {
        fs::read_to_string(self.corner.path("log")).unwrap_or_default()
    }

    fn ctr(&self, args: &[&str]) -> Done {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.corner.path("socket"));
        Done::of(command.args(args).stdin(Stdio::null()).output().unwrap())
    }

    /// Starts a container of the pod `pod` in the background, as the CRI plugin would.
    fn start(&self, kind: &str, id: &str, namespaces: &[String], script: &str) {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let mut words = vec!["run", "--detach", "--null-io", "--rootfs"];
        words.extend(["--runtime", "io.containerd.runc.v2"]);
        words.extend(["--runc-binary", &self.runtime, "--runc-root", &self.state]);
        words.extend(["--annotation", &kind]);
        words.extend(["--annotation", "io.kubernetes.cri.sandbox-id=pod"]);
        for namespace in namespaces {
            words.extend(["--with-ns", namespace]);
        }
        words.extend([&self.rootfs, id, "sh", "-c", script]);
        self.ctr(&words).exits(0);
    }

    /// What `script` prints in a container.
    fn exec(&self, id: &str, script: &str) -> String {
        let words = ["task", "exec", "--exec-id", "x", id, "sh", "-c", script];
        self.ctr(&words).exits(0)
    }

    /// The process id on the host of a container's task, and its status.
    fn task(&self, id: &str) -> Option<(String, String)> {
        let list = self.ctr(&["task", "list"]).exits(0);
        let mut rows = list.lines().map(|line| line.split_whitespace());
        rows.find_map(|mut row| (row.next() == Some(id)).then(|| row.map(str::to_owned)))
            .and_then(|mut row| Some((row.next()?, row.next()?)))
    }

    fn kill(&self, id: &str) {
        self.ctr(&["task", "kill", "--signal", "KILL", id]).exits(0);
        let ended = || self.task(id).is_none_or(|(_, status)| status == "STOPPED");
        assert!(eventually(PATIENCE, ended), "{:?}", self.task(id));
    }

    fn remove(&self, id: &str) {
        self.ctr(&["container", "rm", id]).exits(0);
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}

#[test]
fn the_containers_of_a_pod_share_its_vm() {
    let containerd = Containerd::new("containerd");
    let before = containerd.corner.inventory();
    containerd.start("sandbox", "pod", &[], "exec sleep 100000");
    let (sandbox, _) = containerd.task("pod").unwrap();
    let shared = ["network", "ipc", "uts"].map(|kind| {
        let file = if kind == "network" { "net" } else { kind };
        format!("{kind}:/proc/{sandbox}/ns/{file}")
    });
    containerd.start("container", "web", &shared, "exec sleep 100000");
    assert_eq!(monitors(&containerd.corner).len(), 1);
    let boot = "cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/ipc";
    assert_eq!(containerd.exec("web", boot), containerd.exec("pod", boot));
    // Its processes are its own.
    let sleepers = containerd.exec("web", "ps -o comm | grep -c '^sleep$'");
    assert_eq!(sleepers.trim(), "1");
    containerd.ctr(&["task", "pause", "web"]).exits(0);
    assert_eq!(containerd.task("web").unwrap().1, "PAUSED");
    containerd.ctr(&["task", "resume", "web"]).exits(0);
    let metrics = containerd.ctr(&["task", "metrics", "web"]).exits(0);
    assert!(metrics.contains("memory.usage"), "{metrics}");
    containerd.kill("web");
    containerd.remove("web");
    // The sandbox goes on, and takes another.
    containerd.start("container", "again", &shared, "exec sleep 100000");
    assert_eq!(
        containerd.exec("again", "hostname"),
        containerd.exec("pod", "hostname")
    );
    for id in ["again", "pod"] {
        containerd.kill(id);
        containerd.remove(id);
    }
    containerd.corner.assert_nothing_left(&before);
}
