//! When and where the kernel runs a process that is exec'ed: libcontainer has this for the first process of a container only.

use libcontainer::oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Scheduler,
};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Failure;

/// Lets this process run on these CPUs (config.md#posix-process, execCPUAffinity).
pub fn set_affinity(field: &str, cpus: Option<&str>) -> Result<(), Failure> {
    let Some(cpus) = cpus else { return Ok(()) };
    let field = format!("process.execCPUAffinity.{field}");
    let set =
        parse(cpus).ok_or_else(|| Failure::other(format!("{field}: {cpus:?} names no CPUs")))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| Failure::of(&field, e))
}

/// A list such as `0-3,7`.
fn parse(cpus: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in cpus.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (
            first.trim().parse().ok()?,
            last.trim().parse::<usize>().ok()?,
        );
        if first > last || last >= CpuSet::count() {
            return None;
        }
        for cpu in first..=last {
            set.set(cpu).ok()?;
        }
    }
    Some(set)
}

/// ioprio_set(2): the class in the bits above 13.
pub fn set_io_priority(asked: Option<&LinuxIOPriority>) -> Result<(), Failure> {
    let Some(asked) = asked else { return Ok(()) };
    let class: libc::c_long = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let this_process: libc::c_long = 1;
    let value = class << 13 | asked.priority() as libc::c_long;
    // SAFETY: ioprio_set takes three integers; 0 is the caller.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, this_process, 0, value) })
        .map_err(|e| Failure::of("process.ioPriority", e))?;
    Ok(())
}

/// sched_setattr(2).
pub fn set_scheduler(asked: Option<&Scheduler>) -> Result<(), Failure> {
    let Some(asked) = asked else { return Ok(()) };
    // SAFETY: a sched_attr of zeroes is a valid value of that plain C structure.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    attributes.sched_flags = asked.flags().iter().flatten().map(flag).sum();
    attributes.sched_nice = asked.nice().unwrap_or(0);
    attributes.sched_priority = asked.priority().unwrap_or(0) as u32;
    attributes.sched_runtime = asked.runtime().unwrap_or(0);
    attributes.sched_deadline = asked.deadline().unwrap_or(0);
    attributes.sched_period = asked.period().unwrap_or(0);
    // SAFETY: a sched_attr that lives across the call and says its own size; 0 is the caller.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
        .map_err(|e| Failure::of("process.scheduler", e))?;
    Ok(())
}

fn flag(flag: &LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// personality(2), which belongs to the container and is inherited, but not by who comes from outside.
pub fn set_personality(asked: Option<&LinuxPersonality>) -> Result<(), Failure> {
    let domain: libc::c_ulong = match asked.map(LinuxPersonality::domain) {
        None | Some(LinuxPersonalityDomain::PerLinux) => return Ok(()),
        Some(LinuxPersonalityDomain::PerLinux32) => 8,
    };
    // SAFETY: personality takes an integer.
    Errno::result(unsafe { libc::personality(domain) })
        .map_err(|e| Failure::of("linux.personality", e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_ranges_and_numbers() {
        let set = parse("0-2,5").unwrap();
        let named: Vec<usize> = (0..8).filter(|&cpu| set.is_set(cpu).unwrap()).collect();
        assert_eq!(named, [0, 1, 2, 5]);
        for none in ["", "x", "3-1", "0-99999999", "-1"] {
            assert!(parse(none).is_none(), "{none}");
        }
    }
}
