//! Sandboxes, as CRI plugins make them: a pod's first container, whose process only keeps namespaces.

use std::io::{BufRead, BufReader, PipeReader};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Engine;

const SANDBOX: &str = "pod";
/// What a test finds among the processes of the guest, if it is there.
const PAUSE: &str = "exec sleep 31337";
/// Each process' command line but for the kernel's own, which have none.
const PROCESSES: &str =
    "for c in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $c | grep . ; done; echo end";

impl Engine {
    /// A sandbox that runs, with a name for its pod.
    fn sandbox(&self) -> (Pid, PipeReader) {
        let bundle = self.bundle(PAUSE, |config| {
            config["hostname"] = "web-1".into();
            config["linux"]["sysctl"] = json!({"kernel.shmmni": "77"});
            config["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
        });
        let made = self.create(SANDBOX, &bundle);
        assert!(self.is(SANDBOX, "created"));
        self.verb(&["start", SANDBOX]).exits(0);
        made
    }

    /// A container of the pod with the `shared` namespaces of its sandbox, started; its pid, and its output.
    fn mate(
        &self,
        id: &str,
        sandbox: Pid,
        shared: &[&str],
        script: &str,
    ) -> (Pid, BufReader<PipeReader>) {
        let bundle = self.bundle(script, |config| {
            let path = |kind: &str| {
                let file = if kind == "network" { "net" } else { kind };
                json!({"type": kind, "path": format!("/proc/{sandbox}/ns/{file}")})
            };
            let own = json!({"type": "mount"});
            let namespaces: Vec<Value> =
                shared.iter().map(|kind| path(kind)).chain([own]).collect();
            config["linux"]["namespaces"] = namespaces.into();
            config["linux"]["cgroupsPath"] = format!("/{}-{id}", self.corner.name).into();
            config["annotations"] = json!({
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": SANDBOX,
            });
        });
        let (pid, output) = self.create(id, &bundle);
        self.verb(&["start", id]).exits(0);
        (pid, BufReader::new(output))
    }

    /// How many processes the guest has in the sandbox.
    fn count(&self) -> Value {
        let line = self.verb(&["events", "--stats", SANDBOX]).exits(0);
        serde_json::from_str::<Value>(&line).unwrap()["data"]["pids"]["current"].clone()
    }
}

/// Lines up to `end`.
fn hear(output: &mut impl BufRead) -> Vec<String> {
    let lines = output.lines().map(Result::unwrap);
    lines.take_while(|line| line != "end").collect()
}

#[test]
fn a_sandbox_costs_no_process_in_the_guest() {
    let engine = Engine::new("oci-sandbox");
    let before = engine.corner.inventory();
    let (sandbox, _output) = engine.sandbox();
    assert!(engine.is(SANDBOX, "running"));
    assert_eq!(engine.state(SANDBOX)["pid"], sandbox.as_raw());
    assert_eq!(engine.verb(&["ps", SANDBOX]).exits(0).lines().count(), 1);
    assert_eq!(engine.count(), 0);
    // Beside it in the guest's own PID namespace, it sees everything there is.
    let script = format!("hostname; cat /proc/sys/kernel/shmmni; {PROCESSES}; exec sleep 1000");
    let (web, mut output) = engine.mate("web", sandbox, &["network", "ipc", "uts"], &script);
    let seen = hear(&mut output);
    assert_eq!(seen[..2], ["web-1", "77"]);
    let agent = seen.iter().filter(|line| line.starts_with("/init")).count();
    assert_eq!(agent, 1, "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("31337")), "{seen:?}");
    for verb in ["pause", "resume"] {
        engine.verb(&[verb, SANDBOX]).exits(0);
    }
    engine
        .verb(&["update", "--memory", "32M", SANDBOX])
        .exits(0);
    // As pause has it: KILL is its end, and so is TERM, in order.
    engine.verb(&["kill", SANDBOX, "HUP"]).exits(0);
    assert!(engine.is(SANDBOX, "running"));
    engine.verb(&["kill", SANDBOX, "KILL"]).exits(0);
    let ended = WaitStatus::Exited(sandbox, 137);
    assert_eq!(waitpid(sandbox, None).unwrap(), ended);
    assert!(engine.is(SANDBOX, "stopped"));
    assert!(engine.is("web", "running"));
    engine.verb(&["delete", "--force", "web"]).exits(0);
    waitpid(web, None).unwrap();
    engine.verb(&["delete", SANDBOX]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn a_sandbox_ends_as_pause_would() {
    let engine = Engine::new("oci-sandbox-ends");
    let before = engine.corner.inventory();
    let ends: [(&[&str], i32); 3] = [
        (&["kill", SANDBOX], 0),
        (&["kill", "--all", SANDBOX, "KILL"], 137),
        (&["delete", "--force", SANDBOX], 137),
    ];
    for (verb, code) in ends {
        let (sandbox, _output) = engine.sandbox();
        engine.verb(verb).exits(0);
        let ended = WaitStatus::Exited(sandbox, code);
        assert_eq!(waitpid(sandbox, None).unwrap(), ended, "{verb:?}");
        engine.verb(&["delete", "--force", SANDBOX]).exits(0);
    }
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn the_sandboxs_process_is_the_first_of_a_pod_that_shares_processes() {
    let engine = Engine::new("oci-sandbox-pid");
    let before = engine.corner.inventory();
    let (sandbox, _output) = engine.sandbox();
    assert_eq!(engine.count(), 0);
    let shared = ["network", "ipc", "uts", "pid"];
    let script =
        format!("tr '\\0' ' ' < /proc/1/cmdline; echo; hostname; {PROCESSES}; exec sleep 1000");
    let (web, mut output) = engine.mate("web", sandbox, &shared, &script);
    let seen = hear(&mut output);
    assert_eq!(seen[..2], ["sleep 31337 ", "web-1"], "{seen:?}");
    assert!(
        seen[2..].iter().any(|line| line.starts_with("sh -c ")),
        "{seen:?}"
    );
    assert_eq!(engine.count(), 1);
    let (db, mut output) = engine.mate(
        "db",
        sandbox,
        &shared,
        &format!("{PROCESSES}; exec sleep 1000"),
    );
    let seen = hear(&mut output);
    assert!(seen.iter().any(|line| line == "sleep 1000 "), "{seen:?}");
    let boot = ["exec", SANDBOX, "cat", "/proc/1/comm"];
    assert_eq!(engine.verb(&boot).exits(0), "sleep\n");
    // All that is in its PID namespace ends with it.
    engine.verb(&["kill", SANDBOX, "KILL"]).exits(0);
    for pid in [sandbox, web, db] {
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 137));
    }
    for id in ["web", "db", SANDBOX] {
        engine.verb(&["delete", id]).exits(0);
    }
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn what_is_executed_in_a_sandbox_finds_its_process() {
    let engine = Engine::new("oci-sandbox-exec");
    let (sandbox, _output) = engine.sandbox();
    let script = "cat /proc/1/comm; hostname; exit 7";
    let done = engine.verb(&["exec", SANDBOX, "sh", "-c", script]);
    assert_eq!(done.exits(7), "sleep\nweb-1\n");
    engine.verb(&["delete", "--force", SANDBOX]).exits(0);
    waitpid(sandbox, None).unwrap();
}
