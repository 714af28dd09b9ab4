//! A container's processes: their signals, terminals and exit codes, and those that are added.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Engine;

#[test]
fn signals_reach_the_container_by_kill_and_by_its_pid() {
    let engine = Engine::new("oci-signals");
    let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let bundle = engine.bundle(script, |_| {});
    let (pid, output) = engine.create("signals", &bundle);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let mut hear = || lines.next().unwrap().unwrap();
    engine.verb(&["start", "signals"]).exits(0);
    assert_eq!(hear(), "ready");
    engine.verb(&["kill", "signals", "SIGUSR1"]).exits(0);
    assert_eq!(hear(), "usr1");
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(hear(), "term");
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 5));
    engine.verb(&["delete", "signals"]).exits(0);
}

/// Receives a terminal's master on a console socket.
fn console(socket: &std::os::unix::net::UnixListener) -> fs::File {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, FromRawFd};
    let (stream, _) = socket.accept().unwrap();
    let mut name = [0; 64];
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .unwrap();
    let fds = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // SAFETY: just received, owned by nobody else.
    unsafe { fs::File::from_raw_fd(fds.unwrap()[0]) }
}

fn read_until(terminal: &mut fs::File, text: &str) -> String {
    let mut seen = String::new();
    let mut block = [0; 256];
    while !seen.contains(text) {
        match terminal.read(&mut block) {
            Ok(0) | Err(_) => panic!("no {text:?} in {seen:?}"),
            Ok(count) => seen.push_str(&String::from_utf8_lossy(&block[..count])),
        }
    }
    seen
}

#[test]
fn a_terminal_is_sent_over_the_console_socket() {
    use std::io::Write;
    let engine = Engine::new("oci-console");
    let script = "trap 'stty size' WINCH; test -t 0 && echo is-a-terminal; read line; echo got $line; read again || read again";
    let bundle = engine.bundle(script, |config| {
        config["process"]["terminal"] = true.into();
        let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]});
        config["mounts"].as_array_mut().unwrap().push(pts);
    });
    let path = engine.corner.path("console");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let id = ["create", "--bundle", bundle.to_str().unwrap(), "console"];
    engine.verb(&id).refuses(
        1,
        &["cannot allocate tty", "without setting console socket"],
    );
    let pid_file = engine.corner.path("pid");
    let mut create = engine.vmbox(&[
        "create",
        "--console-socket",
        path.to_str().unwrap(),
        "--pid-file",
    ]);
    let create = create
        .arg(&pid_file)
        .args(&id[1..])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let create = create.spawn().unwrap();
    let mut terminal = console(&socket);
    // Which waits for the end of its output, too: the container has none but the terminal.
    assert!(create.wait_with_output().unwrap().status.success());
    engine.verb(&["start", "console"]).exits(0);
    read_until(&mut terminal, "is-a-terminal");
    terminal.write_all(b"words\n").unwrap();
    read_until(&mut terminal, "got words");
    let size = libc::winsize {
        ws_row: 33,
        ws_col: 99,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    let set = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&terminal),
            libc::TIOCSWINSZ,
            &raw const size,
        )
    };
    assert_eq!(set, 0);
    read_until(&mut terminal, "33 99");
    terminal.write_all(b"end\n").unwrap();
    let pid = Pid::from_raw(fs::read_to_string(pid_file).unwrap().parse().unwrap());
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
    engine.verb(&["delete", "console"]).exits(0);
}

#[test]
fn exec_runs_another_process_and_has_its_exit_code() {
    let engine = Engine::new("oci-exec");
    // With a cgroup that may be divided.
    let bundle = engine.bundle("exec sleep 1000", |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        for (kind, at) in [("sysfs", "/sys"), ("cgroup", "/sys/fs/cgroup")] {
            mounts.push(json!({"destination": at, "type": kind, "source": kind}));
        }
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "cgroup"}));
    });
    let (pid, _output) = engine.create("exec", &bundle);
    engine.verb(&["start", "exec"]).exits(0);
    let script = "echo $A; id -u; pwd; exit 9";
    let out = engine
        .verb(&[
            "exec", "--env", "A=b", "--user", "5:6", "--cwd", "/tmp", "exec", "sh", "-c", script,
        ])
        .exits(9);
    assert_eq!(out, "b\n5\n/tmp\n");
    engine
        .verb(&["exec", "exec", "no-such-program"])
        .refuses(255, &["exec failed", "executable file not found in $PATH"]);
    let divide = "mkdir /sys/fs/cgroup/below";
    engine.verb(&["exec", "exec", "sh", "-c", divide]).exits(0);
    let below = [
        "exec",
        "--cgroup",
        "below",
        "exec",
        "cat",
        "/proc/self/cgroup",
    ];
    assert!(engine.verb(&below).exits(0).ends_with("/below\n"));
    engine
        .verb(&["exec", "--cgroup", "nothing", "exec", "true"])
        .refuses(255, &["nothing/cgroup.procs"]);
    let process = engine.corner.path("process.json");
    let object = json!({"args": ["sh", "-c", "exit 4"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                        "env": ["PATH=/usr/bin:/bin"]});
    fs::write(&process, object.to_string()).unwrap();
    let pid_file = engine.corner.path("exec-pid");
    engine
        .verb(&[
            "exec",
            "--detach",
            "--process",
            process.to_str().unwrap(),
            "--pid-file",
            pid_file.to_str().unwrap(),
            "exec",
        ])
        .exits(0);
    let detached = Pid::from_raw(fs::read_to_string(pid_file).unwrap().parse().unwrap());
    assert_eq!(
        waitpid(detached, None).unwrap(),
        WaitStatus::Exited(detached, 4)
    );
    engine.verb(&["delete", "--force", "exec"]).exits(0);
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 137));
    engine
        .verb(&["exec", "exec", "true"])
        .refuses(255, &["exec failed", "container does not exist"]);
}

#[test]
fn a_paused_container_stands_still() {
    let engine = Engine::new("oci-pause");
    let script = "echo ready; while :; do sleep 0.1; done";
    let bundle = engine.bundle(script, |_| {});
    let (pid, _output) = engine.create("pause", &bundle);
    engine.verb(&["start", "pause"]).exits(0);
    engine.verb(&["pause", "pause"]).exits(0);
    assert!(engine.is("pause", "paused"));
    engine
        .verb(&["exec", "pause", "true"])
        .refuses(255, &["cannot exec in a paused container"]);
    engine.verb(&["resume", "pause"]).exits(0);
    assert!(engine.is("pause", "running"));
    engine.verb(&["exec", "pause", "true"]).exits(0);
    let pids: Vec<u32> =
        serde_json::from_str(&engine.verb(&["ps", "--format", "json", "pause"]).exits(0)).unwrap();
    assert_eq!(pids, [u32::try_from(pid.as_raw()).unwrap()]);
    let listed = engine.verb(&["list", "-q"]).exits(0);
    assert_eq!(listed, "pause\n");
    let listed = engine.verb(&["list", "--format", "json"]).exits(0);
    assert_eq!(listed.lines().count(), 1, "a line, for programs");
    let all: Vec<Value> = serde_json::from_str(&listed).unwrap();
    assert_eq!(all[0]["status"], "running");
    let bsd = engine.verb(&["ps", "pause", "-e", "-x"]).exits(0);
    assert!(bsd.contains("COMMAND") && bsd.contains("while :;"), "{bsd}");
    engine.verb(&["delete", "--force", "pause"]).exits(0);
    waitpid(pid, None).unwrap();
}

#[test]
fn a_keeper_costs_less_than_two_mebibytes() {
    let engine = Engine::new("oci-pss");
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let (pid, _output) = engine.create("pss", &bundle);
    engine.verb(&["start", "pss"]).exits(0);
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let pss = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .unwrap();
    let kib: u32 = pss.trim().trim_end_matches(" kB").parse().unwrap();
    println!("a keeper's PSS: {kib} KiB");
    engine.verb(&["delete", "--force", "pss"]).exits(0);
    waitpid(pid, None).unwrap();
    assert!(kib < 2048, "{kib} KiB");
}
