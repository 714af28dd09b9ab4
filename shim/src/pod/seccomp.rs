//! The default system call filter of containers that people run: everything is allowed but what reaches around the
//! container (after Docker's default profile, as a deny list). It is applied in the guest, by the guest's kernel.

use serde_json::{Value, json};

/// Refused with EPERM, whatever the container's capabilities.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_madvise",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
];

/// CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET: new namespaces need CAP_SYS_ADMIN in Docker.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// AF_VSOCK: the agent and the host are on the other end.
const AF_VSOCK: u64 = 40;
/// socket(2) takes an int: the kernel ignores the upper half of the register, and so must the comparison.
const INT: u64 = 0xffff_ffff;

/// Refused unless the container was given the capability beside it.
const UNLESS_CAPABLE: &[(&str, &[&str])] = &[
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
            "name_to_handle_at",
            "pivot_root",
        ],
    ),
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("CAP_SYS_BOOT", &["reboot"]),
    (
        "CAP_SYS_MODULE",
        &["delete_module", "init_module", "finit_module"],
    ),
    ("CAP_SYS_PACCT", &["acct"]),
    ("CAP_SYS_PTRACE", &["kcmp", "process_madvise"]),
    ("CAP_SYS_RAWIO", &["iopl", "ioperm"]),
    (
        "CAP_SYS_TIME",
        &["settimeofday", "stime", "clock_settime", "clock_adjtime"],
    ),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    (
        "CAP_SYS_NICE",
        &["get_mempolicy", "mbind", "set_mempolicy", "move_pages"],
    ),
    ("CAP_SYSLOG", &["syslog"]),
];

/// `linux.seccomp` for a container with these capabilities (`config-linux.md#seccomp`).
pub fn default_profile(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let freed: Vec<&str> = UNLESS_CAPABLE
        .iter()
        .filter(|(capability, _)| has(capability))
        .flat_map(|(_, calls)| calls.iter().copied())
        .collect();
    let refused: Vec<&str> = REFUSED
        .iter()
        .copied()
        .filter(|call| !freed.contains(call))
        .collect();
    let mut rules = vec![
        json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}),
        json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM,
               "args": [{"index": 0, "value": INT, "valueTwo": AF_VSOCK, "op": "SCMP_CMP_MASKED_EQ"}]}),
    ];
    if !has("CAP_SYS_ADMIN") {
        // clone3's flags are behind a pointer: ENOSYS makes every libc fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
        rules.extend(namespace_bits().map(|bit| {
            json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM,
                   "args": [{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]})
        }));
    }
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures(), "syscalls": rules})
}

fn namespace_bits() -> impl Iterator<Item = u64> {
    (0..64)
        .map(|shift| 1u64 << shift)
        .filter(|bit| NEW_NAMESPACES & bit != 0)
}

/// Seccomp's name of this machine, and not of its 32-bit kin: their calls have other numbers, and none of the rules.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "aarch64" => &["SCMP_ARCH_AARCH64"],
        _ => &["SCMP_ARCH_X86_64"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(profile: &Value) -> Vec<String> {
        serde_json::from_value(profile["syscalls"][0]["names"].clone()).unwrap()
    }

    #[test]
    fn dangerous_calls_are_refused() {
        let calls = refused(&default_profile(&[]));
        for call in [
            "mount",
            "bpf",
            "kexec_load",
            "init_module",
            "reboot",
            "open_by_handle_at",
            "unshare",
        ] {
            assert!(calls.iter().any(|refused| refused == call), "{call}");
        }
    }

    #[test]
    fn a_capability_frees_its_calls() {
        let profile = default_profile(&["CAP_SYS_ADMIN".into()]);
        assert!(!refused(&profile).iter().any(|call| call == "mount"));
        assert!(!profile.to_string().contains("clone3"));
    }

    #[test]
    fn it_is_a_valid_profile() {
        serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(default_profile(&[])).unwrap();
    }

    #[test]
    fn vsock_is_refused_whatever_the_upper_half_of_the_register_holds() {
        let profile = default_profile(&[]);
        let rule = &profile["syscalls"][1]["args"][0];
        let mask = rule["value"].as_u64().unwrap();
        assert_eq!(rule["op"], "SCMP_CMP_MASKED_EQ");
        assert_eq!(
            (1 << 32 | AF_VSOCK) & mask,
            rule["valueTwo"].as_u64().unwrap()
        );
    }

    #[test]
    fn each_new_namespace_is_refused_alone() {
        assert_eq!(namespace_bits().count(), 7);
    }
}
