//! What a container has used, read from its cgroup (Linux Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a container has used. Where the kernel says `max`, `u64::MAX`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: Cpu,
    pub memory: Memory,
    pub swap: Memory,
    /// memory.stat as it is.
    pub memory_stat: BTreeMap<String, u64>,
    /// Processes killed for memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    pub pids_limit: u64,
    pub io: Vec<Io>,
    pub hugetlb: Vec<Hugetlb>,
}

/// CPU time in microseconds, and what cpu.max withheld.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_us: u64,
}

/// Bytes of memory, or of swap.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub bytes: u64,
    pub limit_bytes: u64,
    pub peak_bytes: u64,
    /// How often the limit was run into.
    pub limit_hits: u64,
}

/// One block device.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Io {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_ios: u64,
    pub write_ios: u64,
    pub discard_bytes: u64,
    pub discard_ios: u64,
}

/// Huge pages of one size.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// As in the kernel's file names: `2MB`.
    pub page_size: String,
    pub bytes: u64,
    pub limit_bytes: u64,
    pub limit_hits: u64,
}

impl Stats {
    /// Reads a cgroup's files; one that is missing counts as zero.
    pub fn read(cgroup: &Path) -> Self {
        let cpu = table(&cgroup.join("cpu.stat"));
        let of = |key: &str| cpu.get(key).copied().unwrap_or(0);
        Self {
            cpu: Cpu {
                usage_us: of("usage_usec"),
                user_us: of("user_usec"),
                system_us: of("system_usec"),
                periods: of("nr_periods"),
                throttled_periods: of("nr_throttled"),
                throttled_us: of("throttled_usec"),
            },
            memory: Memory::read(cgroup, "memory"),
            swap: Memory::read(cgroup, "memory.swap"),
            memory_stat: table(&cgroup.join("memory.stat")),
            oom_kills: keyed(&cgroup.join("memory.events"), "oom_kill"),
            pids: single(&cgroup.join("pids.current")),
            pids_limit: single(&cgroup.join("pids.max")),
            io: io(&fs::read_to_string(cgroup.join("io.stat")).unwrap_or_default()),
            hugetlb: hugetlb(cgroup),
        }
    }
}

impl Memory {
    fn read(cgroup: &Path, prefix: &str) -> Self {
        let file = |name: &str| cgroup.join(format!("{prefix}.{name}"));
        Self {
            bytes: single(&file("current")),
            limit_bytes: single(&file("max")),
            peak_bytes: single(&file("peak")),
            limit_hits: keyed(&file("events"), "max"),
        }
    }
}

/// Lines as `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(text: &str) -> Vec<Io> {
    let line = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let value = |key: &str| {
            rest.split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
                .unwrap_or(0)
        };
        Some(Io {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            read_bytes: value("rbytes"),
            write_bytes: value("wbytes"),
            read_ios: value("rios"),
            write_ios: value("wios"),
            discard_bytes: value("dbytes"),
            discard_ios: value("dios"),
        })
    };
    text.lines().filter_map(line).collect()
}

fn hugetlb(cgroup: &Path) -> Vec<Hugetlb> {
    let names = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort();
    let read = |page_size: String| {
        let file = |name: &str| cgroup.join(format!("hugetlb.{page_size}.{name}"));
        Hugetlb {
            bytes: single(&file("current")),
            limit_bytes: single(&file("max")),
            limit_hits: keyed(&file("events"), "max"),
            page_size,
        }
    };
    sizes.into_iter().map(read).collect()
}

/// A file with one number in it, or `max`.
pub(super) fn single(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// One line of a file with a key and a number in each.
pub(super) fn keyed(file: &Path, key: &str) -> u64 {
    table(file).get(key).copied().unwrap_or(0)
}

fn table(file: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_read_from_the_kernels_files() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        put(
            "cpu.stat",
            "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\nnr_periods 9\nnr_throttled 2\nthrottled_usec 77\n",
        );
        put("memory.current", "4096\n");
        put("memory.max", "max\n");
        put("memory.peak", "8192\n");
        put("memory.stat", "anon 100\nfile 200\n");
        put("pids.current", "3\n");
        put("pids.max", "10\n");
        put(
            "memory.events",
            "low 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
        );
        put(
            "io.stat",
            "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
        );
        put("hugetlb.2MB.current", "2097152\n");
        put("hugetlb.2MB.rsvd.current", "1\n");
        put("hugetlb.2MB.max", "max\n");
        put("hugetlb.2MB.events", "max 4\n");
        let stats = Stats::read(directory.path());
        assert_eq!((stats.cpu.usage_us, stats.cpu.throttled_us), (1234, 77));
        assert_eq!(stats.memory.limit_bytes, u64::MAX);
        assert_eq!((stats.memory.limit_hits, stats.oom_kills), (5, 1));
        assert_eq!(stats.memory_stat["file"], 200);
        assert_eq!((stats.pids, stats.pids_limit), (3, 10));
        let io = &stats.io[0];
        assert_eq!((io.major, io.write_bytes, io.discard_ios), (254, 2, 6));
        assert_eq!(stats.hugetlb.len(), 1);
        assert_eq!(stats.hugetlb[0].bytes, 2_097_152);
    }
}
