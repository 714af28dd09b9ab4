//! What a profile that refuses by default answers to system calls that are younger than itself: ENOSYS, so that a C library
//! falls back to an older call, as on an older kernel. With the profile's own answer (EPERM, say) it would give up.
//!
//! Younger is what has a higher number than every call that the profile names, for each of its architectures, as with runc.

use libc::sock_filter;
use libcontainer::oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};
use libseccomp::{ScmpArch, ScmpSyscall};

/// From here on numbers are an architecture's private calls (`__ARM_NR_BASE`), whose age nobody knows.
const PRIVATE: u32 = 0xf_0000;
/// `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;

/// Calls that a profile can't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unknown {
    /// `AUDIT_ARCH_*`, as the kernel tells it to filters.
    audit_arch: u32,
    first: u32,
    end: u32,
}

/// The part of a filter that comes before the profile's own: it answers, or falls through. Empty for a profile that lets through what
/// it doesn't name; a tracer counts as that, because it knows calls of its own.
pub fn answers(profile: &LinuxSeccomp) -> Vec<sock_filter> {
    use LinuxSeccompAction::{ScmpActAllow, ScmpActLog, ScmpActTrace};
    if matches!(
        profile.default_action(),
        ScmpActAllow | ScmpActLog | ScmpActTrace
    ) {
        return Vec::new();
    }
    let mut architectures = profile.architectures().clone().unwrap_or_default();
    // libseccomp's filters are for this one in any case.
    architectures.push(Arch::ScmpArchNative);
    let mut unknown: Vec<Unknown> = Vec::new();
    for architecture in architectures {
        let found = unknown_on(profile, super::architecture(architecture));
        unknown.extend(found.filter(|found| !unknown.contains(found)));
    }
    unknown.into_iter().flat_map(answer).collect()
}

fn unknown_on(profile: &LinuxSeccomp, architecture: ScmpArch) -> Option<Unknown> {
    let architecture = match architecture {
        ScmpArch::Native => ScmpArch::native(),
        other => other,
    };
    let (audit_arch, base) = numbering(architecture)?;
    let names = profile.syscalls().iter().flatten().flat_map(|c| c.names());
    let newest = names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, architecture).ok())
        // Those below 0 are of other architectures only.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .filter(|number| (base..base + PRIVATE).contains(number))
        .max()?;
    Some(Unknown {
        audit_arch,
        first: newest + 1,
        end: base + PRIVATE,
    })
}

/// `AUDIT_ARCH_*` (linux/audit.h) and the first number, for those that a guest's kernel can run.
fn numbering(architecture: ScmpArch) -> Option<(u32, u32)> {
    match architecture {
        ScmpArch::X86 => Some((0x4000_0003, 0)),
        ScmpArch::X8664 => Some((0xc000_003e, 0)),
        ScmpArch::X32 => Some((0xc000_003e, X32)),
        ScmpArch::Arm => Some((0x4000_0028, 0)),
        ScmpArch::Aarch64 => Some((0xc000_00b7, 0)),
        _ => None,
    }
}

/// Six instructions, for each of which the one behind the last is where to go on.
fn answer(unknown: Unknown) -> [sock_filter; 6] {
    let load = |offset: usize| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    [
        load(std::mem::offset_of!(libc::seccomp_data, arch)),
        jump(libc::BPF_JEQ, unknown.audit_arch, 0, 4),
        load(std::mem::offset_of!(libc::seccomp_data, nr)),
        jump(libc::BPF_JGE, unknown.first, 0, 2),
        jump(libc::BPF_JGE, unknown.end, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, refuse),
    ]
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_K | comparison) as u16;
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const X86_64: u32 = 0xc000_003e;
    const AARCH64: u32 = 0xc000_00b7;

    fn profile(default: &str) -> LinuxSeccomp {
        let architectures = [
            "SCMP_ARCH_X86_64",
            "SCMP_ARCH_X32",
            "SCMP_ARCH_X86",
            "SCMP_ARCH_AARCH64",
            "SCMP_ARCH_ARM",
        ];
        let calls = json!([
            { "names": ["read", "statx", "breakpoint", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
        ]);
        let profile =
            json!({ "defaultAction": default, "architectures": architectures, "syscalls": calls });
        serde_json::from_value(profile).unwrap()
    }

    /// What the program answers, None if it falls through.
    fn run(program: &[sock_filter], arch: u32, number: u32) -> Option<u32> {
        let (mut at, mut loaded) = (0, 0);
        while let Some(step) = program.get(at) {
            at += 1;
            let branch = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match u32::from(step.code) {
                0x20 => loaded = if step.k == 4 { arch } else { number },
                0x15 => at += branch(loaded == step.k),
                0x35 => at += branch(loaded >= step.k),
                0x06 => return Some(step.k),
                code => panic!("instruction {code:#x}"),
            }
        }
        None
    }

    #[test]
    fn what_is_younger_than_the_profile_is_not_implemented() {
        let program = answers(&profile("SCMP_ACT_KILL_PROCESS"));
        let enosys = Some(0x0005_0000 | 38);
        // statx(2) is 332, 291, 383, 397.
        let cases = [
            (X86_64, 332),
            (AARCH64, 291),
            (0x4000_0003, 383),
            (0x4000_0028, 397),
            (X86_64, X32 + 332),
        ];
        for (arch, newest) in cases {
            let seen = [newest - 1, newest, newest + 1].map(|n| run(&program, arch, n));
            assert_eq!(seen, [None, None, enosys], "{arch:#x}, {newest}");
        }
        assert_eq!(run(&program, X86_64, 1000), enosys);
    }

    #[test]
    fn private_calls_and_other_architectures_are_left_to_the_profile() {
        let program = answers(&profile("SCMP_ACT_ERRNO"));
        assert_eq!(run(&program, 0x4000_0028, 0xf_0005), None);
        assert_eq!(run(&program, AARCH64, u32::MAX), None);
        assert_eq!(run(&program, 0xc000_0015, 1000), None);
    }

    #[test]
    fn a_profile_that_lets_through_what_it_does_not_name_has_no_such_answer() {
        for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
            assert!(answers(&profile(default)).is_empty(), "{default}");
        }
    }
}
