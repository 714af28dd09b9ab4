//! Tests of the plan of limits.

use super::*;
use serde_json::{Value, json};

fn planned_from(resources: Value, files: &[(&str, &str)]) -> Settings {
    let resources: LinuxResources = serde_json::from_value(resources).unwrap();
    let current = |name: &str| {
        let found = files.iter().find(|(file, _)| *file == name);
        found.map(|(_, text)| (*text).to_owned())
    };
    plan(&resources, &current)
}

fn planned(resources: Value) -> Vec<(String, String)> {
    let settings = planned_from(resources, &[]).unwrap();
    settings.into_iter().map(|s| (s.file, s.value)).collect()
}

fn writes(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(file, value): &(&str, &str)| ((*file).to_owned(), (*value).to_owned());
    expected.iter().map(owned).collect()
}

#[track_caller]
fn refused(resources: Value, field: &str) {
    assert_eq!(planned_from(resources, &[]).unwrap_err().field, field);
}

#[test]
fn swap_of_the_spec_counts_memory_and_the_kernels_does_not() {
    let memory = |swap: i64| json!({ "memory": { "limit": 100, "swap": swap } });
    assert_eq!(
        planned(memory(150)),
        writes(&[("memory.max", "100"), ("memory.swap.max", "50")])
    );
    assert_eq!(
        planned(memory(100)),
        writes(&[("memory.max", "100"), ("memory.swap.max", "0")])
    );
    assert_eq!(
        planned(memory(-1)),
        writes(&[("memory.max", "100"), ("memory.swap.max", "max")])
    );
    refused(memory(99), "memory.swap");
    refused(json!({ "memory": { "swap": 100 } }), "memory.swap");
}

#[test]
fn swap_alone_is_counted_from_the_limit_that_is_there() {
    let resources = json!({ "memory": { "swap": 150 } });
    let settings = planned_from(resources, &[("memory.max", "100\n")]).unwrap();
    assert_eq!(settings[0].value, "50");
}

#[test]
fn nothing_is_written_for_zero_and_max_for_minus_one() {
    let resources = json!({ "memory": { "limit": 0, "reservation": -1 }, "pids": { "limit": 0 }, "cpu": { "shares": 0, "quota": 0, "cpus": "" } });
    assert_eq!(planned(resources), writes(&[("memory.low", "max")]));
    refused(json!({ "memory": { "limit": -2 } }), "memory.limit");
}

#[test]
fn quota_and_period_keep_what_is_not_named() {
    let cpu_max = |cpu: Value| {
        let now = [("cpu.max", "50000 200000\n")];
        planned_from(json!({ "cpu": cpu }), &now).unwrap()[0]
            .value
            .clone()
    };
    assert_eq!(cpu_max(json!({ "quota": 10000 })), "10000 200000");
    assert_eq!(cpu_max(json!({ "quota": -1 })), "max 200000");
    assert_eq!(cpu_max(json!({ "period": 50000 })), "50000 50000");
    assert_eq!(
        planned(json!({ "cpu": { "quota": 20000 } })),
        writes(&[("cpu.max", "20000 100000")])
    );
}

#[test]
fn shares_meet_the_weights_at_both_ends_and_in_the_middle() {
    assert_eq!(
        [weight(2), weight(1024), weight(262_144), weight(u64::MAX)],
        [1, 100, 10_000, 10_000]
    );
}

#[test]
fn what_only_version_1_had_is_refused_by_name() {
    refused(
        json!({ "memory": { "swappiness": 10 } }),
        "memory.swappiness",
    );
    refused(
        json!({ "memory": { "disableOOMKiller": true } }),
        "memory.disableOOMKiller",
    );
    refused(json!({ "memory": { "kernelTCP": 1 } }), "memory.kernelTCP");
    refused(
        json!({ "cpu": { "realtimeRuntime": 1 } }),
        "cpu.realtimeRuntime",
    );
    refused(
        json!({ "blockIO": { "leafWeight": 1 } }),
        "blockIO.leafWeight",
    );
    refused(json!({ "network": { "classID": 1 } }), "network.classID");
    assert_eq!(
        planned(json!({ "memory": { "disableOOMKiller": false, "kernel": -1 } })),
        []
    );
}

#[test]
fn throttles_of_a_device_can_be_taken_back() {
    let resources = json!({ "blockIO": { "weight": 1000, "throttleReadBpsDevice": [{ "major": 254, "minor": 0, "rate": 4096 }],
                                         "throttleWriteIOPSDevice": [{ "major": 254, "minor": 0, "rate": 0 }] } });
    let settings = planned_from(resources, &[]).unwrap();
    let values: Vec<_> = settings.iter().map(|s| s.value.as_str()).collect();
    assert_eq!(
        values,
        ["default 10000", "254:0 rbps=4096", "254:0 wiops=max"]
    );
    let (key, without) = settings[1].key.clone().unwrap();
    assert_eq!(key, "254:0");
    assert_eq!(without, "254:0 rbps=max wbps=max riops=max wiops=max");
}

#[test]
fn unified_names_files_that_are_there_and_hold_limits() {
    let unified = |file: &str, files: &[(&str, &str)]| {
        planned_from(json!({ "unified": { file: "1" } }), files).map(|s| s[0].file.clone())
    };
    let there = [("memory.high", "max"), ("cgroup.procs", "")];
    assert_eq!(unified("memory.high", &there).unwrap(), "memory.high");
    for file in ["cgroup.procs", "../memory.high", "memory.nothing", ".."] {
        assert_eq!(
            unified(file, &there).unwrap_err().field,
            format!("unified.{file}")
        );
    }
}

#[test]
fn pages_of_a_size_that_the_guest_lacks_are_refused() {
    let resources = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4096 }] });
    refused(resources.clone(), "hugepageLimits.2MB");
    let files = [("hugetlb.2MB.max", "max"), ("hugetlb.2MB.rsvd.max", "max")];
    let settings = planned_from(resources, &files).unwrap();
    assert_eq!(settings.len(), 2);
}

#[test]
fn a_limit_below_what_is_used_is_refused_when_asked_to_look() {
    let resources = json!({ "memory": { "limit": 100, "checkBeforeUpdate": true } });
    let error = planned_from(resources.clone(), &[("memory.current", "101\n")]).unwrap_err();
    assert_eq!(error.field, "memory.limit");
    assert!(planned_from(resources, &[("memory.current", "99\n")]).is_ok());
}
