//! Seccomp filters (OCI runtime-spec config-linux.md#seccomp): libseccomp makes a program of a profile's rules.
//!
//! Ours, not libcontainer's (0.7): that one takes the rules straight to the kernel, and there is no second filter that could say what
//! [`newer`] does: of several the strictest answer counts, and of two errors that of the last.

mod load;
mod newer;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};

use libc::sock_filter;
use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use nix::errno::Errno;

/// Why a process can't have a filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A value of the profile that can't be.
    #[error("{0}")]
    Profile(String),
    /// Of libseccomp.
    #[error("{step}: {source}")]
    Rules { step: String, source: SeccompError },
    /// The program can't be had from libseccomp.
    #[error("program: {0}")]
    Program(io::Error),
    /// The kernel refused it.
    #[error("load: {0}")]
    Load(Errno),
}

/// Filters the calls of this thread, and of all that comes of it.
///
/// # Errors
/// What can't be had; then there is no filter.
pub fn filter(profile: &LinuxSeccomp) -> Result<(), FilterError> {
    let mut program = newer::answers(profile);
    program.extend(compile(profile)?);
    load::load(&mut program, flags(profile)).map_err(FilterError::Load)
}

fn flags(profile: &LinuxSeccomp) -> libc::c_ulong {
    let bit = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // Of a listener, which there is none of.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    let asked = profile.flags().iter().flatten();
    asked.map(bit).fold(0, |all, bit| all | bit)
}

fn compile(profile: &LinuxSeccomp) -> Result<Vec<sock_filter>, FilterError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut rules = ScmpFilterContext::new(default).map_err(at("defaultAction"))?;
    for &named in profile.architectures().iter().flatten() {
        rules
            .add_arch(architecture(named))
            .map_err(at(format!("architectures: {named}")))?;
    }
    for call in profile.syscalls().iter().flatten() {
        let answer = action(call.action(), call.errno_ret())?;
        // libseccomp refuses rules that say what holds anyway.
        if answer != default {
            add(&mut rules, call, answer)?;
        }
    }
    export(&rules)
}

fn add(
    rules: &mut ScmpFilterContext,
    call: &LinuxSyscall,
    answer: ScmpAction,
) -> Result<(), FilterError> {
    let args = call.args().as_deref().unwrap_or_default();
    let conditions: Vec<_> = args.iter().map(condition).collect();
    let indexes: HashSet<_> = args.iter().map(LinuxSeccompArg::index).collect();
    // A rule can have one condition for an argument. As with runc, where there are more each condition is a rule.
    let at_once = match conditions.len() {
        many if many > indexes.len() => 1,
        many => many.max(1),
    };
    for name in call.names() {
        // What libseccomp doesn't know is younger than it, and most likely than the kernel.
        let Ok(number) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let mut add = |conditions: &[ScmpArgCompare]| {
            let added = rules.add_rule_conditional(answer, number, conditions);
            added.map(drop).map_err(at(format!("syscalls: {name}")))
        };
        if conditions.is_empty() {
            add(&[])?;
        }
        conditions.chunks(at_once).try_for_each(&mut add)?;
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use ScmpCompareOp as Op;
    let (value, two) = (arg.value(), arg.value_two().unwrap_or(0));
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Op::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (Op::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (Op::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => (Op::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => (Op::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (Op::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (Op::MaskedEqual(value), two),
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn action(action: LinuxSeccompAction, number: Option<u32>) -> Result<ScmpAction, FilterError> {
    let number = u16::try_from(number.unwrap_or(libc::EPERM.cast_unsigned()))
        .map_err(|_| FilterError::Profile(format!("errnoRet: {number:?} is too large")))?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.into()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => {
            let why = "SCMP_ACT_NOTIFY is not supported";
            return Err(FilterError::Profile(why.into()));
        }
    })
}

fn architecture(named: Arch) -> ScmpArch {
    match named {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// libseccomp writes programs to files only (2.5).
fn export(rules: &ScmpFilterContext) -> Result<Vec<sock_filter>, FilterError> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(file.map_err(|errno| FilterError::Program(errno.into()))?);
    rules.export_bpf(&file).map_err(at("export"))?;
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(FilterError::Program)?;
    let (instructions, _) = bytes.as_chunks::<{ size_of::<sock_filter>() }>();
    Ok(instructions.iter().map(instruction).collect())
}

fn instruction(&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]) -> sock_filter {
    sock_filter {
        code: u16::from_ne_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    }
}

fn at(step: impl Into<String>) -> impl FnOnce(SeccompError) -> FilterError {
    let step = step.into();
    |source| FilterError::Rules { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The errors of the calls under a profile.
    fn errors(profile: Value, calls: &'static [[libc::c_long; 3]]) -> Vec<Errno> {
        let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
        // A filter is for the rest of a thread's life.
        let thread = std::thread::spawn(move || {
            // SAFETY: prctl(PR_SET_NO_NEW_PRIVS) takes integers.
            let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            assert_eq!(set, 0);
            filter(&profile).unwrap();
            let error = |&[number, first, second]: &[libc::c_long; 3]| {
                // SAFETY: calls that take integers, or that there are none of.
                match unsafe { libc::syscall(number, first, second, 0) } {
                    -1 => Errno::last(),
                    _ => Errno::UnknownErrno,
                }
            };
            calls.iter().map(error).collect()
        });
        thread.join().unwrap()
    }

    /// All that the test's thread needs, and what is asked for.
    fn refusing(calls: Value) -> Value {
        let mut syscalls = vec![json!({ "action": "SCMP_ACT_ALLOW", "names": [
            "futex", "madvise", "munmap", "mmap", "mprotect", "brk", "exit", "rt_sigprocmask", "sigaltstack",
            "write", "close", "rseq", "set_robust_list", "sched_getaffinity", "faccessat2",
        ]})];
        syscalls.extend(calls.as_array().unwrap().iter().cloned());
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 74, "syscalls": syscalls })
    }

    #[test]
    fn calls_have_the_profiles_answer_and_younger_ones_none() {
        let profile = refusing(json!([
            { "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 55 },
            { "names": ["dup3"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 7000, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 9000, "op": "SCMP_CMP_EQ" }] },
            { "names": ["setpgid"], "action": "SCMP_ACT_ALLOW", "args": [
                { "index": 0, "value": 0xf00, "valueTwo": 0x100, "op": "SCMP_CMP_MASKED_EQ" }] },
        ]));
        let seen = errors(
            profile,
            &[
                [libc::SYS_getpriority, 0, 0],
                [libc::SYS_unshare, 0, 0],
                [libc::SYS_dup3, 7000, 9001],
                [libc::SYS_dup3, 9000, 9001],
                [libc::SYS_dup3, 8000, 9001],
                [libc::SYS_setpgid, 0x1ff, -1],
                [libc::SYS_setpgid, 0x2ff, -1],
                [1000, 0, 0],
            ],
        );
        let expected = [55, 74, 9, 9, 74, 22, 74, 38].map(Errno::from_raw);
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_filter_that_can_not_be_is_refused() {
        for (field, value) in [
            ("defaultAction", json!("SCMP_ACT_NOTIFY")),
            ("defaultErrnoRet", json!(70000)),
        ] {
            let mut profile = refusing(json!([]));
            profile[field] = value;
            let profile = serde_json::from_value(profile).unwrap();
            assert!(compile(&profile).is_err(), "{field}");
        }
    }
}
