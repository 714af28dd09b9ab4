//! Pure decisions: how large a VM is for the limits of its containers, and how large it can become.

use std::{fs, num::NonZero, thread};

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::{
    design::DesignError,
    options::{CpuLimit, MAXIMUM_VCPUS, MemoryLimit},
};

/// RAM of a VM whose container has no memory limit.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// RAM that the guest kernel and the agent need beside the containers' limits, before `struct page` and page tables.
const OVERHEAD_MIB: u64 = 64;
/// The most RAM that the monitor gives.
pub const MAXIMUM_MEMORY_MIB: u64 = 65536;
/// A period of CPU time without a word about its length, in microseconds (cgroup-v2.rst, "cpu.max").
const PERIOD_US: u64 = 100_000;
/// vCPUs that an engine's VM has at least, where the host has as many processors. One that has never been online costs the
/// guest 192 KiB of per-CPU data, and the host a thread and KVM's state, but no processor time.
const SPARE_VCPUS: usize = 8;

/// Files of a cgroup with numbers of the host's processors and memory nodes, which a guest doesn't have.
pub const HOST_ONLY: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Takes what is the host's alone out of the limits that a guest is to keep.
pub fn take_host_only(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    if let Some(unified) = resources.unified_mut() {
        unified.retain(|file, _| !HOST_ONLY.contains(&file.as_str()));
    }
}

/// What a container may use (config-linux.md#control-groups); None: all there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Microseconds of CPU time in each period.
    pub cpu_quota: Option<u64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
}

impl Limits {
    /// Those of a spec.
    pub fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        resources.map_or_else(Self::default, |resources| {
            Self::default().changed(resources)
        })
    }

    /// With what `resources` names; less than 0 is no limit, and 0 no word, as runc has it.
    pub fn changed(self, resources: &LinuxResources) -> Self {
        let given = |now: Option<u64>, then: Option<i64>| match then {
            None | Some(0) => now,
            Some(limit) => u64::try_from(limit).ok(),
        };
        let memory = resources.memory().as_ref();
        let cpu = resources.cpu().as_ref();
        let period = cpu.and_then(|cpu| cpu.period()).filter(|us| *us > 0);
        Self {
            memory: given(self.memory, memory.and_then(|memory| memory.limit())),
            cpu_quota: given(self.cpu_quota, cpu.and_then(|cpu| cpu.quota())),
            cpu_period: period.or(self.cpu_period),
        }
    }

    /// Thousandths of a CPU.
    pub fn cpu_millis(&self) -> Option<u64> {
        let period = self.cpu_period.unwrap_or(PERIOD_US);
        let quota = self.cpu_quota?;
        Some(quota.saturating_mul(1000).div_ceil(period).max(10))
    }
}

/// What a VM has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// RAM in MiB.
    pub memory_mib: u32,
    /// vCPUs that are online.
    pub vcpus: u8,
}

/// RAM for containers that may use `limit_bytes` together: that, 64 MiB for kernel and agent, and 1/32 of the limit for
/// `struct page`, page tables and slack. In MiB.
fn memory_for(limit_bytes: u64) -> u64 {
    let limit_mib = limit_bytes.div_ceil(1 << 20);
    limit_mib + OVERHEAD_MIB + limit_mib.div_ceil(32)
}

/// The size for one container: its memory limit and what the guest needs itself, and its CPU limit rounded up.
///
/// # Errors
/// More memory than a VM can have.
pub fn for_one(memory: Option<MemoryLimit>, cpus: Option<CpuLimit>) -> Result<Size, DesignError> {
    let memory_mib = match memory.map(|limit| memory_for(limit.bytes())) {
        None => DEFAULT_MEMORY_MIB,
        Some(total) => u32::try_from(total)
            .ok()
            .filter(|_| total <= MAXIMUM_MEMORY_MIB)
            .ok_or(DesignError::TooMuchMemory(total))?,
    };
    let vcpus = cpus.map_or(1, |limit| limit.millis().div_ceil(1000));
    Ok(Size {
        memory_mib,
        vcpus: u8::try_from(vcpus.clamp(1, MAXIMUM_VCPUS)).unwrap_or(1),
    })
}

/// The size for all containers of a pod: their limits together. One without a limit may use what there is: `now`, or as much as it
/// would have alone.
pub fn for_all(containers: &[Limits], now: Size) -> Size {
    let sum = |of: fn(&Limits) -> Option<u64>| -> (u64, bool) {
        let limits = containers.iter().filter_map(of);
        let all = containers.iter().all(|limits| of(limits).is_some());
        (limits.fold(0, u64::saturating_add), all)
    };
    let (memory, all_limited) = sum(|limits| limits.memory);
    let memory_mib = u32::try_from(memory_for(memory)).unwrap_or(u32::MAX);
    let at_least = if all_limited {
        0
    } else {
        now.memory_mib.max(DEFAULT_MEMORY_MIB)
    };
    let (millis, all_limited) = sum(Limits::cpu_millis);
    let vcpus = u8::try_from(millis.div_ceil(1000)).unwrap_or(u8::MAX);
    Size {
        memory_mib: memory_mib.max(at_least),
        vcpus: vcpus.max(if all_limited { 1 } else { now.vcpus }),
    }
}

/// A VM as it is made: its size at boot, and how far it can grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// RAM at boot in MiB.
    pub memory_mib: u32,
    /// RAM that can be added, in MiB.
    pub extra_memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Of these, how many are online at boot.
    pub online_vcpus: u8,
    /// NICs, none of which has a wire yet.
    pub nics: u8,
}

impl Shape {
    /// A VM that stays as it is.
    pub fn fixed(size: Size, nics: u8) -> Self {
        Self {
            memory_mib: size.memory_mib,
            extra_memory_mib: 0,
            vcpus: size.vcpus,
            online_vcpus: size.vcpus,
            nics,
        }
    }

    /// A VM that can be given all that the host has.
    pub fn growing(size: Size, nics: u8, host: Host) -> Self {
        let spare = host.processors.clamp(2, SPARE_VCPUS);
        Self {
            extra_memory_mib: host.memory_mib.saturating_sub(size.memory_mib),
            vcpus: size.vcpus.max(u8::try_from(spare).unwrap_or(u8::MAX)),
            ..Self::fixed(size, nics)
        }
    }

    /// Its size at boot.
    pub fn at_boot(&self) -> Size {
        Size {
            memory_mib: self.memory_mib,
            vcpus: self.online_vcpus,
        }
    }

    /// As much of a size as it can have.
    pub fn reach(&self, wanted: Size) -> Size {
        // As the monitor rounds it.
        let extra = self.extra_memory_mib / 128 * 128;
        Size {
            memory_mib: wanted.memory_mib.min(self.memory_mib + extra),
            vcpus: wanted.vcpus.min(self.vcpus),
        }
    }
}

/// What a VM can be given at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Processors that this process may use.
    pub processors: usize,
    /// All RAM, in MiB, up to what the monitor takes.
    pub memory_mib: u32,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            processors: thread::available_parallelism().map_or(1, NonZero::get),
            memory_mib: memory_of(&text),
        }
    }
}

/// `MemTotal` of proc_meminfo(5).
fn memory_of(meminfo: &str) -> u32 {
    let mut lines = meminfo.lines();
    let kib = lines.find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let mib = kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10;
    mib.min(MAXIMUM_MEMORY_MIB) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: Size = Size {
        memory_mib: 300,
        vcpus: 2,
    };

    fn changed(limits: Limits, resources: Value) -> Limits {
        limits.changed(&serde_json::from_value(resources).unwrap())
    }

    fn limits(memory_mib: u64, cpu_quota: u64) -> Limits {
        Limits {
            memory: Some(memory_mib << 20),
            cpu_quota: Some(cpu_quota),
            cpu_period: None,
        }
    }

    #[test]
    fn without_limits_a_vm_has_the_default_size() {
        let size = for_one(None, None).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (256, 1));
    }

    #[test]
    fn memory_is_the_limit_and_an_overhead() {
        let size = for_one(Some("256M".parse().unwrap()), Some("1.5".parse().unwrap())).unwrap();
        assert_eq!((size.memory_mib, size.vcpus), (256 + 64 + 8, 2));
    }

    #[test]
    fn more_memory_than_a_vm_has_is_refused() {
        assert!(matches!(
            for_one(Some("64G".parse().unwrap()), None),
            Err(DesignError::TooMuchMemory(_))
        ));
    }

    #[test]
    fn only_what_is_named_changes() {
        let first = changed(
            Limits::default(),
            json!({"memory": {"limit": 7}, "cpu": {"quota": 150_000, "period": 50_000}}),
        );
        assert_eq!((first.memory, first.cpu_millis()), (Some(7), Some(3000)));
        let second = changed(
            first,
            json!({"memory": {"limit": 0}, "cpu": {"quota": 10_000}}),
        );
        assert_eq!((second.memory, second.cpu_millis()), (Some(7), Some(200)));
        let third = changed(
            first,
            json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}),
        );
        assert_eq!((third.memory, third.cpu_millis()), (None, None));
    }

    #[test]
    fn limits_of_a_pod_add_up() {
        let size = for_all(&[limits(100, 70_000), limits(28, 80_000)], NOW);
        assert_eq!((size.memory_mib, size.vcpus), (128 + 64 + 4, 2));
        let size = for_all(&[limits(100, 70_000)], NOW);
        assert_eq!((size.memory_mib, size.vcpus), (100 + 64 + 4, 1));
    }

    #[test]
    fn from_one_without_a_limit_nothing_is_taken() {
        let both = [limits(100, 50_000), Limits::default()];
        assert_eq!(for_all(&both, NOW), NOW);
        let more = for_all(&[limits(512, 400_000), Limits::default()], NOW);
        assert_eq!((more.memory_mib, more.vcpus), (512 + 64 + 16, 4));
    }

    #[test]
    fn a_vm_grows_as_far_as_the_host_goes() {
        let host = Host {
            processors: 4,
            memory_mib: 1000,
        };
        let shape = Shape::growing(NOW, 0, host);
        assert_eq!((shape.vcpus, shape.online_vcpus), (4, 2));
        let most = shape.reach(Size {
            memory_mib: 5000,
            vcpus: 30,
        });
        assert_eq!((most.memory_mib, most.vcpus), (300 + 640, 4));
        let fixed = Shape::fixed(NOW, 0);
        assert_eq!(fixed.reach(most), NOW);
    }

    #[test]
    fn the_hosts_memory_is_read() {
        assert_eq!(
            memory_of("MemTotal:        4018104 kB\nMemFree: 1 kB\n"),
            3923
        );
        assert_eq!(memory_of(""), 0);
    }
}
