//! Bytes in, bytes out, exit codes, signals, terminals.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kit::{Corner, Done, Running, image};
use crate::terminal::Terminal;

#[test]
fn a_container_prints_what_it_is() {
    let corner = Corner::new("prints");
    let out = corner
        .sh(
            &[],
            ". /etc/os-release; echo $ID; uname -r; ls -d /proc/[0-9]* | wc -l",
        )
        .exits(0);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "debian");
    assert!(lines[1].starts_with("6.12."), "{out}");
    assert!(lines[2].trim().parse::<u32>().unwrap() <= 4, "{out}");
}

#[test]
fn exit_code_is_the_containers() {
    let corner = Corner::new("exit-code");
    corner.sh(&[], "exit 42").exits(42);
}

#[test]
fn signal_is_128_and_its_number() {
    let corner = Corner::new("exit-signal");
    corner
        .sh(&[], "(kill -9 $$) ; sh -c 'kill -15 $$'; exit $?")
        .exits(143);
}

#[test]
fn missing_command_is_127_and_directory_is_126() {
    let corner = Corner::new("exit-127");
    let missing = corner.run(["--rm", &image(), "no-such-command"]);
    assert!(
        missing.stderr.contains("no-such-command"),
        "{}",
        missing.stderr
    );
    missing.exits(127);
    corner.run(["--rm", &image(), "/etc"]).exits(126);
}

#[test]
fn stdout_and_stderr_are_separate() {
    let corner = Corner::new("separate");
    let done = corner.sh(&[], "echo out; echo err >&2");
    assert_eq!(
        (done.stdout.as_str(), done.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    let corner = Corner::new("env");
    let out = corner
        .sh(
            &[
                "-e",
                "WORD=two words",
                "-w",
                "/usr/share",
                "--user",
                "1234:99",
            ],
            "echo $WORD; pwd; id -u; id -g",
        )
        .exits(0);
    assert_eq!(out, "two words\n/usr/share\n1234\n99\n");
}

#[test]
fn stdin_arrives_as_the_same_32_mib() {
    stdin_arrives_as_the_same(&Corner::new("bulk"), 32 << 20);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn stdin_arrives_as_the_same_256_mib() {
    stdin_arrives_as_the_same(&Corner::new("bulk-long"), 256 << 20);
}

fn stdin_arrives_as_the_same(corner: &Corner, size: usize) {
    let mut command = corner.vmbox(["run", "--rm", "-i", &image(), "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = thread::spawn(move || {
        let mut random = std::fs::File::open("/dev/urandom").unwrap();
        let (mut digest, mut buffer) = (Digest::new(), vec![0; 1 << 20]);
        for _ in 0..size / buffer.len() {
            random.read_exact(&mut buffer).unwrap();
            digest.update(&buffer);
            stdin.write_all(&buffer).unwrap();
        }
        drop(stdin);
        digest.finish()
    });
    let mut stdout = child.stdout.take().unwrap();
    let (mut digest, mut buffer, mut received) = (Digest::new(), vec![0; 1 << 20], 0);
    loop {
        let n = stdout.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        received += n;
    }
    let stderr = Done::of(child.wait_with_output().unwrap()).stderr;
    assert_eq!(received, size, "stderr: {stderr}");
    assert_eq!(digest.finish(), sent.join().unwrap());
}

/// SHA-256 by the host's own tool, fed as the bytes pass.
struct Digest(std::process::Child);

impl Digest {
    fn new() -> Self {
        Self(
            std::process::Command::new("sha256sum")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn finish(mut self) -> String {
        drop(self.0.stdin.take());
        String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap()
    }
}

/// Containers that print 1,000 lines and exit, one after another in one pod.
fn last_line_is_never_lost(corner: &Corner, runs: u32) {
    let pod = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--name",
        corner.name,
        "--memory",
        "512M",
        &image(),
        "sh",
        "-c",
        "echo ready; cat",
    ]));
    for run in 0..runs {
        let out = corner
            .sh(
                &["--pod", corner.name],
                "i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo line $i; done",
            )
            .exits(0);
        assert_eq!(out.lines().count(), 1000, "run {run}");
        assert_eq!(out.lines().last(), Some("line 1000"), "run {run}");
    }
    pod.finish().exits(0);
}

#[test]
fn last_line_is_never_lost_in_10_runs() {
    last_line_is_never_lost(&Corner::new("last-line"), 10);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn last_line_is_never_lost_in_200_runs() {
    last_line_is_never_lost(&Corner::new("last-line-long"), 200);
}

#[test]
fn sigterm_is_forwarded() {
    let corner = Corner::new("sigterm");
    let script = "trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let running = Running::start(corner.vmbox(["run", "--rm", &image(), "sh", "-c", script]));
    kill(Pid::from_raw(running.pid()), Signal::SIGTERM).unwrap();
    assert_eq!(running.finish().exits(7), "got TERM\n");
}

#[test]
fn closed_stdout_does_not_hang() {
    let corner = Corner::new("epipe");
    let mut command = corner.vmbox([
        "run",
        "--rm",
        &image(),
        "sh",
        "-c",
        "yes | head -c 10000000; exit 3",
    ]);
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().code().is_some());
}

#[test]
fn terminal_works_and_resizes() {
    let corner = Corner::new("terminal");
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done";
    let command = corner.vmbox(["run", "--rm", "-it", &image(), "sh", "-c", script]);
    let mut terminal = Terminal::of(&command, 33, 111);
    terminal.shows("33 111");
    terminal.shows("ready");
    terminal.resize(44, 111);
    terminal.shows("44 111");
    assert_eq!(terminal.exit_code(), Some(5));
}

#[test]
fn timing_names_every_phase() {
    let corner = Corner::new("timing");
    let done = corner.sh(&["--timing"], "echo hello");
    for phase in [
        "monitor",
        "KVM",
        "kernel entry",
        "agent ready",
        "container start",
        "first byte",
    ] {
        assert!(
            done.stderr.to_lowercase().contains(&phase.to_lowercase()),
            "no {phase} in: {}",
            done.stderr
        );
    }
    done.exits(0);
}
