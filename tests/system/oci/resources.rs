//! The VM has the size that its container asks for, and follows when that changes.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use serde_json::json;

use super::Engine;
use crate::kit::{eventually, monitors, resident_mib};

/// Fills so many MiB. In one C loop: see `limits.rs`.
fn fill(mib: u32) -> String {
    format!("exec python3 -c 'b\"x\" * ({mib} << 20); print(\"filled\", flush=True)'")
}

fn exec(engine: &Engine, id: &str, script: &str) -> crate::kit::Done {
    engine.verb(&["exec", id, "sh", "-c", script])
}

/// Of the container's monitor.
fn monitor_mib(engine: &Engine) -> u64 {
    resident_mib(monitors(&engine.corner)[0])
}

/// What a thread that was merely made or stopped may have: the kernel counts by samples.
const FEW_TICKS: u64 = 5;

/// Processor time of a vCPU's thread so far, in ticks (proc_pid_stat(5)).
fn ticks_of_vcpu(engine: &Engine, number: u32) -> u64 {
    let monitor = monitors(&engine.corner)[0];
    let threads = fs::read_dir(format!("/proc/{monitor}/task")).unwrap();
    let stats =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")).unwrap());
    let name = format!("(vcpu{number})");
    let stat = stats.into_iter().find(|stat| stat.contains(&name)).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum()
}

#[test]
fn memory_is_what_was_asked_for_to_the_last_mebibytes() {
    for limit in [32, 128] {
        let engine = Engine::new("oci-limit");
        // What is left is for the interpreter.
        let most = limit - 12;
        let script = format!("nproc; {}", fill(most));
        let bundle = engine.bundle(&script, |config| {
            config["linux"]["resources"] = json!({
                "memory": {"limit": limit << 20},
                "cpu": {"quota": 110_000, "period": 100_000},
            });
        });
        let run = ["run", "--bundle", bundle.to_str().unwrap(), "limit"];
        let out = engine.verb(&run).exits(0);
        assert_eq!(out, "2\nfilled\n", "{limit} MiB");
    }
}

#[test]
fn memory_grows_and_shrinks_with_its_limit_and_the_host_has_it_back() {
    let engine = Engine::new("oci-grow");
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exec sleep 1000", |config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    });
    let (pid, _output) = engine.create("grow", &bundle);
    engine.verb(&["start", "grow"]).exits(0);
    exec(&engine, "grow", &fill(80)).exits(137);
    engine
        .verb(&["update", "--memory", "200M", "grow"])
        .exits(0);
    exec(&engine, "grow", &fill(170)).exits(0);
    engine.verb(&["update", "--memory", "48M", "grow"]).exits(0);
    let is_back = || monitor_mib(&engine) < 130;
    assert!(
        eventually(Duration::from_secs(60), is_back),
        "the monitor still holds {} MiB",
        monitor_mib(&engine)
    );
    exec(&engine, "grow", &fill(60)).exits(137);
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    engine.verb(&["delete", "grow"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn cpus_come_and_go_with_their_quota_and_cost_nothing_while_they_are_gone() {
    let engine = Engine::new("oci-cpus");
    let bundle = engine.bundle("exec sleep 1000", |config| {
        config["linux"]["resources"] = json!({"cpu": {"quota": 50_000, "period": 100_000}});
    });
    let (pid, _output) = engine.create("cpus", &bundle);
    assert!(ticks_of_vcpu(&engine, 1) < FEW_TICKS);
    let sees = |count: &str| {
        let nproc = || exec(&engine, "cpus", "nproc").exits(0).trim() == count;
        eventually(Duration::from_secs(60), nproc)
    };
    engine.verb(&["start", "cpus"]).exits(0);
    assert!(sees("1"));
    engine
        .verb(&["update", "--cpu-quota", "150000", "cpus"])
        .exits(0);
    assert!(sees("2"));
    assert!(ticks_of_vcpu(&engine, 1) > FEW_TICKS);
    engine
        .verb(&["update", "--cpu-quota", "100000", "cpus"])
        .exits(0);
    assert!(sees("1"));
    let before = ticks_of_vcpu(&engine, 1);
    exec(
        &engine,
        "cpus",
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
    )
    .exits(0);
    assert!(ticks_of_vcpu(&engine, 1) < before + FEW_TICKS);
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    engine.verb(&["delete", "cpus"]).exits(0);
}

#[test]
fn a_vm_is_on_the_hosts_processors_that_were_named_and_weighs_what_it_should() {
    let engine = Engine::new("oci-claims");
    let before = engine.corner.inventory();
    let cpu = |cpus: &str| json!({"cpu": {"cpus": cpus, "mems": "0", "shares": 512}});
    let bundle = engine.bundle("exec sleep 1000", |config| {
        config["linux"]["resources"] = cpu("4000");
    });
    let create = ["create", "--bundle", bundle.to_str().unwrap(), "claims"];
    engine
        .verb(&create)
        .refuses(1, &["linux.resources.cpu.cpus", "4000"]);
    engine.corner.assert_nothing_left(&before);
    engine.bundle("exec sleep 1000", |config| {
        config["linux"]["resources"] = cpu("0");
    });
    let (pid, _output) = engine.create("claims", &bundle);
    let host =
        |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/oci-claims/{file}")).unwrap();
    let seen = ["cpuset.cpus", "cpuset.mems", "cpu.weight"].map(host);
    assert_eq!(seen, ["0\n", "0\n", "59\n"]);
    engine
        .verb(&[
            "update",
            "--cpu-share",
            "1024",
            "--cpuset-cpus",
            "0",
            "claims",
        ])
        .exits(0);
    assert_eq!(host("cpu.weight"), "100\n");
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    engine.verb(&["delete", "claims"]).exits(0);
    engine.corner.assert_nothing_left(&before);
}

#[test]
fn a_container_that_can_not_place_its_pods_vm_is_told_so() {
    let engine = Engine::new("oci-no-claims");
    let bundle = |kind: &str| {
        engine.bundle("exec sleep 1000", |config| {
            config["annotations"] = json!({
                "io.kubernetes.cri.container-type": kind,
                "io.kubernetes.cri.sandbox-id": "pod",
            });
            config["linux"]["cgroupsPath"] = json!(format!("/oci-no-claims/{kind}"));
        })
    };
    let (sandbox, _output) = engine.create("pod", &bundle("sandbox"));
    let (second, _output) = engine.create("second", &bundle("container"));
    let update = |id| {
        let done = engine.verb(&["update", "--cpuset-cpus", "0", id]);
        assert_eq!(done.code(), 0, "{}", done.stderr);
        done.stderr
    };
    assert_eq!(update("pod"), "");
    let told = update("second");
    assert!(
        told.contains("linux.resources.cpu.cpus: without effect"),
        "{told}"
    );
    for (pid, id) in [(second, "second"), (sandbox, "pod")] {
        kill(pid, Signal::SIGKILL).unwrap();
        waitpid(pid, None).unwrap();
        engine.verb(&["delete", id]).exits(0);
    }
}
