//! The machine that a guest sees: its clock, its processors.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::bundle::Bundle;
use crate::kit::Corner;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[test]
fn the_guest_knows_the_date() {
    let corner = Corner::new("date");
    let before = now();
    let out = corner.sh(&[], "date +%s").exits(0);
    let seen: u64 = out.trim().parse().unwrap();
    // aarch64's clock is read in whole seconds, once, while the kernel boots.
    assert!((before - 2..=now() + 2).contains(&seen), "{before} {seen}");
}

/// Through /sys, as an operator of the guest would: on aarch64 these are PSCI's CPU_OFF and CPU_ON.
#[test]
#[ignore = "seen to pass on aarch64 only: `cargo dev test --tier long`"]
fn a_processor_can_be_switched_off_and_on_again() {
    let mut bundle = Bundle::new("cpu-off");
    let cpus = json!({ "quota": 200_000, "period": 100_000 });
    bundle.spec["linux"]["resources"] = json!({ "cpu": cpus });
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/sys" && mount["type"] != "cgroup");
    bundle.mount(json!({ "type": "sysfs", "source": "sysfs", "destination": "/sys" }));
    let seen = bundle.lines(
        "cd /sys/devices/system/cpu; cat online
        echo 0 > cpu1/online; cat online
        echo 1 > cpu1/online; cat online
        for i in $(seq 100); do taskset -c 1 echo on the second 2>/dev/null && break; done",
    );
    assert_eq!(seen, ["0-1", "0", "0-1", "on the second"]);
}
