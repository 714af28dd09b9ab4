//! Statistics and processes in the words of the protocol.

use vmbox_protocol::agent::{HugetlbStats, IoStats, ProcessDetails, StatsResponse};

use crate::cgroup::Stats;
use crate::processes::{Details, tty_name};

pub fn stats(stats: Stats) -> StatsResponse {
    StatsResponse {
        cpu_usage_us: stats.cpu.usage_us,
        cpu_user_us: stats.cpu.user_us,
        cpu_system_us: stats.cpu.system_us,
        cpu_periods: stats.cpu.periods,
        cpu_throttled_periods: stats.cpu.throttled_periods,
        cpu_throttled_us: stats.cpu.throttled_us,
        memory_bytes: stats.memory.bytes,
        memory_limit_bytes: stats.memory.limit_bytes,
        memory_peak_bytes: stats.memory.peak_bytes,
        memory_limit_hits: stats.memory.limit_hits,
        swap_bytes: stats.swap.bytes,
        swap_limit_bytes: stats.swap.limit_bytes,
        swap_peak_bytes: stats.swap.peak_bytes,
        swap_limit_hits: stats.swap.limit_hits,
        memory_stat: stats.memory_stat.into_iter().collect(),
        oom_kills: stats.oom_kills,
        pids: stats.pids,
        pids_limit: stats.pids_limit,
        io: stats
            .io
            .into_iter()
            .map(|io| IoStats {
                major: io.major,
                minor: io.minor,
                read_bytes: io.read_bytes,
                write_bytes: io.write_bytes,
                read_ios: io.read_ios,
                write_ios: io.write_ios,
                discard_bytes: io.discard_bytes,
                discard_ios: io.discard_ios,
                ..Default::default()
            })
            .collect(),
        hugetlb: stats
            .hugetlb
            .into_iter()
            .map(|pages| HugetlbStats {
                page_size: pages.page_size,
                bytes: pages.bytes,
                limit_bytes: pages.limit_bytes,
                limit_hits: pages.limit_hits,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

pub fn process(process: Details) -> ProcessDetails {
    ProcessDetails {
        pid: process.pid,
        ppid: process.ppid,
        uid: process.uid,
        gid: process.gid,
        namespace_pid: process.namespace_pid,
        tty: process.tty,
        tty_name: tty_name(process.tty),
        start_unix_ms: process.start_unix_ms,
        cpu_ms: u64::try_from(process.cpu.as_millis()).unwrap_or(u64::MAX),
        state: process.state.into(),
        threads: process.threads,
        resident_bytes: process.resident_bytes,
        virtual_bytes: process.virtual_bytes,
        nice: process.nice,
        name: process.name,
        command: process.command,
        ..Default::default()
    }
}
