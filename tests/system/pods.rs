//! Several containers in one pod.

use crate::kit::{Corner, Running, image};

#[test]
fn containers_of_a_pod_share_the_kernel_but_not_the_processes() {
    let corner = Corner::new("pod");
    let mut first = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--name",
        "pod-first",
        &image(),
        "sh",
        "-c",
        "exec 3<&0; sleep 31337 & echo ready; cat /proc/sys/kernel/random/boot_id; cat <&3",
    ]));
    let boot_id = first.hear();
    let script = "cat /proc/sys/kernel/random/boot_id; for c in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $c; echo; done";
    let out = corner.sh(&["--pod", "pod-first"], script).exits(0);
    assert_eq!(
        out.lines().next(),
        Some(boot_id.as_str()),
        "not the same kernel"
    );
    assert!(
        !out.contains("31337"),
        "the second container sees a process of the first:\n{out}"
    );
    first.finish().exits(0);
}

#[test]
fn a_pods_second_container_has_its_own_root() {
    let corner = Corner::new("pod-root");
    let first = Running::start(corner.vmbox([
        "run",
        "--rm",
        "-i",
        "--name",
        "pod-root-first",
        &image(),
        "sh",
        "-c",
        "echo mine > /marker; echo ready; cat",
    ]));
    corner
        .sh(&["--pod", "pod-root-first"], "test ! -e /marker")
        .exits(0);
    first.finish().exits(0);
}
