//! What every system test needs: `vmbox` with directories of its own, and an inventory of what it left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything at all may take, under emulation on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

fn setting(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value
        .unwrap_or_else(|| panic!("{name} is not set: run the system tests by `cargo dev test`"))
        .into()
}

/// Where `vmbox`, `vmbox-vmm`, the guest's kernel and `guest.cpio` are.
pub fn product() -> PathBuf {
    setting("VMBOX_TEST_PRODUCT")
}

/// The Debian test image, as `oci:DIR:TAG`.
pub fn image() -> String {
    format!(
        "oci:{}:debian",
        setting("VMBOX_TEST_IMAGES").join("oci").display()
    )
}

/// The same image as an unpacked directory.
pub fn rootfs() -> PathBuf {
    setting("VMBOX_TEST_IMAGES").join("rootfs")
}

/// One test's own corner of the host: a run directory that no other test uses, and the shared image store.
pub struct Corner {
    pub name: &'static str,
    pub dir: PathBuf,
}

impl Corner {
    pub fn new(name: &'static str) -> Self {
        let dir = PathBuf::from("/run/vmbox-test").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("run")).unwrap();
        Self { name, dir }
    }

    /// A path for this test's own files, outside of what vmbox uses.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn vmbox<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(product().join("vmbox"));
        command
            .args(args)
            .env("VMBOX_RUN", self.run_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `vmbox run --rm OPTIONS… IMAGE sh -c SCRIPT`, to its end.
    pub fn sh(&self, options: &[&str], script: &str) -> Done {
        let image = image();
        self.run([&["--rm"], options, &[&image, "sh", "-c", script]].concat())
    }

    /// `vmbox run ARGS…`, to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        let mut command = self.vmbox(["run"]);
        command.args(args);
        Done::of(command.output().unwrap())
    }

    /// Everything on the host that belongs to this corner: processes, mounts, sockets, cgroups, files.
    pub fn inventory(&self) -> BTreeSet<String> {
        let needle = self.run_dir().display().to_string();
        let (mut found, mut views) = (BTreeSet::new(), BTreeSet::new());
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let dir = process.path();
            let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let has = |file: &str| mentions(&dir.join(file), &needle);
            if pid != std::process::id() && (has("environ") || has("cmdline")) && !is_zombie(&dir) {
                let cmdline = fs::read_to_string(dir.join("cmdline"))
                    .unwrap_or_default()
                    .replace('\0', " ");
                found.insert(format!("process {cmdline}"));
            }
            // Processes of the same namespace and root see the same mounts.
            if !views.insert(["ns/mnt", "root"].map(|link| fs::read_link(dir.join(link)).ok())) {
                continue;
            }
            for line in fs::read_to_string(dir.join("mountinfo"))
                .unwrap_or_default()
                .lines()
            {
                if line.contains(&needle) || line.contains(&format!("/containers/{}", self.name)) {
                    found.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or(line)));
                }
            }
        }
        for line in fs::read_to_string("/proc/net/unix")
            .unwrap()
            .lines()
            .filter(|line| line.contains(&needle))
        {
            found.insert(format!(
                "socket {}",
                line.rsplit(' ').next().unwrap_or_default()
            ));
        }
        let store = PathBuf::from(
            std::env::var_os("VMBOX_STORE").unwrap_or_else(|| "/var/lib/vmbox".into()),
        );
        for dir in [
            self.run_dir(),
            store.join("containers"),
            store.join("tmp"),
            "/sys/fs/cgroup".into(),
        ] {
            files_below(&dir, &mut found);
        }
        found.retain(|entry| {
            !entry.contains("/containers/") || entry.contains(&format!("/containers/{}", self.name))
        });
        found
    }

    /// Waits until the inventory is `before` again; what is left after 5 s is a leak.
    #[track_caller]
    pub fn assert_nothing_left(&self, before: &BTreeSet<String>) {
        let left = || {
            self.inventory()
                .difference(before)
                .cloned()
                .collect::<Vec<_>>()
        };
        if !eventually(Duration::from_secs(5), || left().is_empty()) {
            panic!("left behind:\n  {}", left().join("\n  "));
        }
    }
}

fn mentions(file: &Path, words: &str) -> bool {
    let bytes = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes).contains(words)
}

fn is_zombie(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

fn files_below(dir: &Path, found: &mut BTreeSet<String>) {
    let cgroup = dir.starts_with("/sys/fs/cgroup");
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !cgroup || is_dir {
            found.insert(format!("file {}", entry.path().display()));
        }
        if is_dir && (cgroup || dir.starts_with("/run")) {
            files_below(&entry.path(), found);
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The exit code; a signal n counts as 1000 + n.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 1000 + self.status.signal().unwrap_or(0))
    }

    #[track_caller]
    fn assert_code(&self, code: i32) {
        assert_eq!(
            self.code(),
            code,
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
    }

    /// Asserts the exit code, and returns stdout.
    #[track_caller]
    pub fn exits(self, code: i32) -> String {
        self.assert_code(code);
        self.stdout
    }

    /// Asserts a refusal: this code, and one line on stderr which holds all of `words`.
    #[track_caller]
    pub fn refuses(self, code: i32, words: &[&str]) {
        self.assert_code(code);
        assert_eq!(
            self.stderr.trim_end().lines().count(),
            1,
            "more or less than one line: {}",
            self.stderr
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?} in: {}",
                self.stderr
            );
        }
    }
}

/// A container that says `ready` on its first line of output and goes on.
pub struct Running {
    pub child: Child,
    pub stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it and waits for its `ready` line.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.trim() != "ready" {
            let _ = child.kill();
            let mut stderr = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut stderr);
            panic!("instead of ready: {line:?}, stderr: {stderr}");
        }
        Self { child, stdout }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Closes stdin, reads the rest, waits.
    pub fn finish(mut self) -> Done {
        drop(self.child.stdin.take());
        let mut stdout = String::new();
        let _ = self.stdout.read_to_string(&mut stdout);
        let mut stderr = String::new();
        let _ = self
            .child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr);
        Done {
            status: self.child.wait().unwrap(),
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.pid()),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
    }
}

/// What a process has in memory, in MiB (`VmRSS` of proc_pid_status(5)).
pub fn resident_mib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

/// Between two looks at what nothing tells of.
const LOOK: Duration = Duration::from_millis(20);

/// Whether `holds` became true before the deadline.
pub fn eventually(deadline: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        // What is waited for needs the host's one processor.
        std::thread::sleep(LOOK);
    }
}

/// Pids of the `vmbox-vmm` processes of a corner.
pub fn monitors(corner: &Corner) -> Vec<i32> {
    let needle = corner.run_dir().display().to_string();
    let mut pids = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse() else {
            continue;
        };
        let is_monitor = fs::read_to_string(process.path().join("comm"))
            .is_ok_and(|comm| comm.trim().starts_with("vmbox-vmm"));
        if is_monitor && mentions(&process.path().join("environ"), &needle) {
            pids.push(pid);
        }
    }
    pids
}

/// What a web server on this port of the host answers.
pub fn get(port: u16) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
