//! config.json: what it asks for is seen in the container, or refused by name. One container for a group of fields.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::bundle::Bundle;

/// What `uname -m` says under LINUX32. Some Arm processors have no 32-bit mode, and Linux refuses it there.
const MACHINE_32: &str = if cfg!(target_arch = "aarch64") {
    "armv8l"
} else {
    "i686"
};

#[test]
fn process_is_who_and_where_it_was_asked_to_be() {
    let mut bundle = Bundle::new("spec-process");
    let process = &mut bundle.spec["process"];
    process["user"] =
        json!({ "uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [4, 20] });
    process["cwd"] = json!("/made/for/it");
    process["env"].as_array_mut().unwrap().push(json!("Z=1"));
    process["oomScoreAdj"] = json!(500);
    process["noNewPrivileges"] = json!(true);
    process["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 },
    ]);
    process["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
    });
    let seen = bundle.lines(
        "id -u; id -g; id -G; pwd; umask; echo $Z; ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc
         cat /proc/self/oom_score_adj; sed -n 's/^\\(Cap...\\|NoNewPrivs\\):\\t0*/\\1 /p' /proc/self/status",
    );
    assert_eq!(
        seen,
        [
            "1000",
            "1001",
            "1001 4 20",
            "/made/for/it",
            "0027",
            "1",
            "512",
            "1024",
            "0",
            "8",
            "500",
            "CapInh 20",
            "CapPrm 20",
            "CapEff 20",
            "CapBnd 421",
            "CapAmb 20",
            "NoNewPrivs 1",
        ]
    );
}

#[test]
fn scheduling_personality_and_clocks_are_set() {
    let mut bundle = Bundle::new("spec-sched");
    let process = &mut bundle.spec["process"];
    process["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 3 });
    process["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.spec["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "time" }));
    bundle.spec["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000 } });
    let seen = bundle.lines(
        "ionice -p $$; chrt -p $$ | head -1 | sed 's/.*: //'; cut -d' ' -f19 /proc/self/stat; uname -m; cut -d. -f1 /proc/uptime",
    );
    assert_eq!(
        seen[..4],
        ["best-effort: prio 3", "SCHED_BATCH", "5", MACHINE_32]
    );
    assert!(seen[4].parse::<u64>().unwrap() >= 1_000_000, "{}", seen[4]);
}

#[test]
fn names_root_and_paths_are_as_asked() {
    let mut bundle = Bundle::new("spec-root");
    fs::write(bundle.inside("/srv/secret"), "x").unwrap();
    fs::create_dir(bundle.inside("/opt/secrets")).unwrap();
    fs::write(bundle.inside("/opt/secrets/one"), "x").unwrap();
    bundle.spec["hostname"] = json!("box");
    bundle.spec["domainname"] = json!("example.org");
    bundle.spec["root"]["readonly"] = json!(true);
    bundle.spec["linux"]["maskedPaths"] = json!(["/srv/secret", "/opt/secrets", "/no/such"]);
    bundle.spec["linux"]["rootfsPropagation"] = json!("rshared");
    let seen = bundle.lines(
        "hostname; cat /proc/sys/kernel/domainname; touch /x 2>&1 || true; stat -c %s /srv/secret; ls /opt/secrets | wc -l
         awk '$5 == \"/\" { print ($7 ~ /shared/) }' /proc/self/mountinfo",
    );
    assert_eq!(
        seen,
        [
            "box",
            "example.org",
            "touch: cannot touch '/x': Read-only file system",
            "0",
            "0",
            "1"
        ]
    );
}

#[test]
fn programs_of_a_read_only_path_still_run() {
    let mut bundle = Bundle::new("spec-readonly");
    bundle.spec["linux"]["readonlyPaths"] = json!(["/usr", "/proc/sys", "/no/such"]);
    let seen = bundle.lines(
        "touch /usr/x 2>&1 || true; touch /srv/x; sh -c 'echo 1 > /proc/sys/kernel/msgmax' 2>&1 | grep -c 'Read-only'",
    );
    assert_eq!(
        seen,
        ["touch: cannot touch '/usr/x': Read-only file system", "1"]
    );
}

#[test]
fn file_systems_are_mounted_with_their_options() {
    let mut bundle = Bundle::new("spec-mounts");
    fs::create_dir(bundle.inside("/srv/below")).unwrap();
    fs::write(bundle.inside("/srv/below/file"), "copied").unwrap();
    fs::set_permissions(
        bundle.inside("/srv/below"),
        fs::Permissions::from_mode(0o711),
    )
    .unwrap();
    let tmpfs = |destination: &str, options: &[&str]| json!({ "type": "tmpfs", "source": "tmpfs", "destination": destination, "options": options });
    bundle.mount(tmpfs(
        "/mnt",
        &["size=64k", "mode=0705", "noexec", "rshared"],
    ));
    bundle.mount(tmpfs("/srv/below", &["tmpcopyup", "nosymfollow"]));
    bundle.mount(tmpfs("/fresh", &[]));
    let seen = bundle.lines(
        "stat -c %a /mnt /srv/below /fresh; df --output=size /mnt | tail -1 | tr -d ' '; cat /srv/below/file; echo
         ln -s file /srv/below/link; cat /srv/below/link 2>&1 || true
         awk '$5 == \"/mnt\" { print ($6 ~ /noexec/), ($7 ~ /shared/) }' /proc/self/mountinfo
         stat -f -c %T /proc /sys /dev/pts /dev/mqueue /sys/fs/cgroup; cat /proc/self/cgroup",
    );
    assert_eq!(
        seen,
        [
            "705",
            "711",
            "1777",
            "64",
            "copied",
            "cat: /srv/below/link: Too many levels of symbolic links",
            "1 1",
            "proc",
            "sysfs",
            "devpts",
            "mqueue",
            "cgroup2fs",
            "0::/",
        ]
    );
}

#[test]
fn directories_files_sockets_and_fifos_are_bound() {
    let mut bundle = Bundle::new("spec-binds");
    let source = |name: &str| bundle.host(name);
    fs::create_dir(source("dir")).unwrap();
    fs::write(source("dir/file"), "in the directory").unwrap();
    fs::write(source("one"), "one file").unwrap();
    nix::unistd::mkfifo(&source("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source("socket")).unwrap();
    for (name, options) in [
        ("dir", json!(["rbind", "ro", "rprivate"])),
        ("one", json!(["bind", "rw", "noexec"])),
        ("fifo", json!(["bind"])),
        ("socket", json!(["bind"])),
    ] {
        let source = bundle.host(name);
        bundle.mount(
            json!({ "source": source, "destination": format!("/mnt/{name}"), "options": options }),
        );
    }
    let seen = bundle.lines(
        "cat /mnt/dir/file; echo; touch /mnt/dir/x 2>&1 || true; cat /mnt/one; echo; echo new > /mnt/one; stat -c %F /mnt/fifo /mnt/socket",
    );
    let read_only = "touch: cannot touch '/mnt/dir/x': Read-only file system";
    assert_eq!(
        seen,
        ["in the directory", read_only, "one file", "fifo", "socket"]
    );
    assert_eq!(fs::read_to_string(bundle.host("one")).unwrap(), "new\n");
}

#[test]
fn limits_are_in_the_containers_cgroup() {
    let mut bundle = Bundle::new("spec-cgroup");
    bundle.spec["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20 },
        "cpu": { "shares": 512, "quota": 50000, "period": 100_000, "burst": 10000, "idle": 0 },
        "pids": { "limit": 50 },
        "blockIO": { "weight": 500 },
        "unified": { "memory.high": "50331648", "cgroup.max.descendants": "7" },
    });
    let seen = bundle.lines(
        "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max cpu.weight cpu.max cpu.max.burst pids.max io.weight memory.high cgroup.max.descendants memory.oom.group",
    );
    assert_eq!(
        seen,
        [
            "67108864",
            "33554432",
            "33554432",
            "59",
            "50000 100000",
            "10000",
            "50",
            "default 4950",
            "50331648",
            "7",
            "0",
        ]
    );
}

#[test]
fn devices_can_be_used_only_where_a_rule_says_so() {
    let mut bundle = Bundle::new("spec-devices");
    bundle.capabilities(&["CAP_MKNOD"]);
    bundle.spec["linux"]["devices"] = json!([
        { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "gid": 7 },
        { "path": "/dev/made/fifo", "type": "p", "major": 0, "minor": 0, "fileMode": 0o600 },
    ]);
    bundle.spec["linux"]["resources"] = json!({ "devices": [
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
        { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "w" },
    ]});
    let seen = bundle.lines(
        "stat -c '%F %a %g' /dev/fuse /dev/made/fifo; for node in 'fuse 10 229' 'kmsg 1 11' 'null 1 3'; do set -- $node
         mknod /dev/t c $2 $3; (exec 3<>/dev/t) 2>/dev/null && echo $1 yes || echo $1 no; rm /dev/t; done",
    );
    assert_eq!(
        seen,
        [
            "character special file 640 7",
            "fifo 600 0",
            "fuse yes",
            "kmsg no",
            "null yes"
        ]
    );
}

#[test]
fn sysctls_are_set_in_namespaces() {
    let mut bundle = Bundle::new("spec-sysctl");
    bundle.spec["linux"]["sysctl"] = json!({
        "kernel.shmmax": "12345", "fs.mqueue.msg_max": "7", "net.ipv4.ip_local_port_range": "40000 50000",
    });
    let seen = bundle
        .lines("cd /proc/sys; cat kernel/shmmax fs/mqueue/msg_max net/ipv4/ip_local_port_range");
    assert_eq!(seen, ["12345", "7", "40000\t50000"]);
}

#[test]
fn a_user_namespace_maps_ids() {
    let mut bundle = Bundle::new("spec-userns");
    bundle.user_namespace();
    fs::create_dir(bundle.inside("/srv/theirs")).unwrap();
    std::os::unix::fs::chown(bundle.inside("/srv/theirs"), Some(100_000), Some(100_000)).unwrap();
    let seen = bundle.lines(
        "id -u; tr -s ' ' < /proc/self/uid_map | sed 's/^ //'; touch /srv/theirs/x; stat -c %u /srv/theirs/x; echo ok > /dev/null; stat -c %u /etc",
    );
    assert_eq!(seen, ["0", "0 100000 65536", "0", "65534"]);
}

#[test]
fn what_can_not_be_had_is_refused_by_name() {
    let refuse = |name: &'static str, change: &dyn Fn(&mut Bundle), words: &[&str]| {
        let mut bundle = Bundle::new(name);
        change(&mut bundle);
        bundle.refuses(words);
    };
    refuse(
        "spec-no-option",
        &|b| {
            b.mount(json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/mnt", "options": ["sizzle=1"] }))
        },
        &["mounts[7]", "/mnt", "sizzle=1"],
    );
    refuse(
        "spec-no-device",
        &|b| {
            b.spec["linux"]["devices"] =
                json!([{ "path": "/dev/dri", "type": "c", "major": 226, "minor": 0 }])
        },
        &["linux.devices[0]", "226:0"],
    );
    refuse(
        "spec-no-sysctl",
        &|b| b.spec["linux"]["sysctl"] = json!({ "vm.swappiness": "1" }),
        &["linux.sysctl", "vm.swappiness"],
    );
    refuse(
        "spec-no-limit",
        &|b| b.spec["linux"]["resources"] = json!({ "cpu": { "realtimeRuntime": 1000 } }),
        &["linux.resources.cpu.realtimeRuntime"],
    );
    refuse(
        "spec-no-notify",
        &|b| {
            b.spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }] });
        },
        &["SCMP_ACT_NOTIFY"],
    );
}
