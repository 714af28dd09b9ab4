//! System call filters of config.json: what they answer, and whom they are for.

use serde_json::json;

use crate::bundle::Bundle;

/// What engines list on this machine: it, and its 32-bit kin.
const SECCOMP_ARCHITECTURES: [&str; 2] = if cfg!(target_arch = "aarch64") {
    ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
} else {
    ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
};

/// What a shell and perl need, and the agent until it has become them.
const OLD_CALLS: &str = "
    access arch_prctl brk capget capset chdir clone close connect dup dup2 dup3 execve exit exit_group faccessat
    fcntl fork fstat futex getcwd getdents64 getegid geteuid getgid getgroups getpgrp getpid getppid getrandom
    getrlimit getuid ioctl kill lseek lstat madvise mmap mprotect munmap newfstatat open openat pipe pipe2 poll
    ppoll prctl pread64 prlimit64 read readlink readlinkat recvfrom recvmsg accept accept4 rseq rt_sigaction
    rt_sigprocmask rt_sigreturn sendmsg sendto set_robust_list set_tid_address setpgid shutdown sigaltstack
    socketpair stat statx sysinfo tgkill time uname vfork wait4 waitid write writev close_range gettid
    sched_getaffinity statfs fstatfs fadvise64 umask getpgid";

#[test]
fn a_filter_answers_kills_and_lets_through() {
    let mut bundle = Bundle::new("seccomp");
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "architectures": SECCOMP_ARCHITECTURES,
        "syscalls": [
            { "names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 74 },
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["symlink", "symlinkat"], "action": "SCMP_ACT_LOG" },
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO",
              "args": [{ "index": 1, "value": 10, "op": "SCMP_CMP_EQ" }] },
        ],
    });
    let seen = bundle.lines(
        "chmod 700 /srv 2>&1 || true; mkdir /srv/x || echo $?; ln -s a /srv/link && echo linked
         kill -USR1 $$ 2>&1 | grep -c permitted || true; kill -0 $$ && echo 0 sent; grep -E '^Seccomp:' /proc/self/status | tr -d '\\t'",
    );
    assert_eq!(
        seen[0],
        "chmod: changing permissions of '/srv': Bad message"
    );
    assert_eq!(seen[1..3], ["159", "linked"], "{seen:?}");
    assert_eq!(seen[seen.len() - 2..], ["0 sent", "Seccomp:2"], "{seen:?}");
}

#[test]
fn calls_that_are_younger_than_the_profile_are_not_implemented() {
    let mut bundle = Bundle::new("seccomp-newer");
    let old_calls: Vec<&str> = OLD_CALLS.split_whitespace().collect();
    for (no_new_privileges, default) in [(true, "SCMP_ACT_ERRNO"), (false, "SCMP_ACT_KILL_PROCESS")]
    {
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.spec["linux"]["seccomp"] = json!({
            "defaultAction": default,
            "architectures": SECCOMP_ARCHITECTURES,
            "syscalls": [
                { "names": old_calls, "action": "SCMP_ACT_ALLOW" },
                { "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 74 },
            ],
        });
        let seen = bundle.lines(
            "perl -e 'syscall(1000); print $!+0, qq(\\n)'; unshare -U true 2>&1 | sed 's/.*: //'
             sed -n 's/^\\(CapEff\\|NoNewPrivs\\|Seccomp\\):\\t0*/\\1 /p' /proc/self/status",
        );
        let no_new = format!("NoNewPrivs {}", if no_new_privileges { "1" } else { "" });
        assert_eq!(
            seen,
            ["38", "Bad message", "CapEff ", &no_new, "Seccomp 2"],
            "{default}"
        );
    }
}

#[test]
fn a_start_hook_is_filtered_and_named_when_it_dies_of_that() {
    let mut bundle = Bundle::new("seccomp-hook");
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL" }],
    });
    let hook = |script: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    bundle.spec["hooks"] = json!({ "startContainer": [
        hook("grep '\"status\":\"created\"' > /state"),
        hook("exec mkdir /srv/x"),
    ]});
    bundle.refuses(&[
        "hooks.startContainer[1]",
        "error running hook",
        "bad system call",
    ]);
    assert!(bundle.inside("/state").exists() && !bundle.inside("/srv/x").exists());
}
