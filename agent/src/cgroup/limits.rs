//! From the limits of a spec (OCI runtime-spec config-linux.md#control-groups) to files of cgroup v2: what is to be written
//! where, or which field can't be had.

use libcontainer::oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

/// A limit that can't be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("linux.resources.{field}: {why}")]
pub struct LimitError {
    /// The field below `linux.resources`.
    pub field: String,
    /// Why it can't be had.
    pub why: String,
}

impl LimitError {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            why: why.into(),
        }
    }
}

/// One write to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The field below `linux.resources` that asks for it.
    pub field: String,
    /// Name of a file in the cgroup.
    pub file: String,
    pub value: String,
    /// For a file with a line per device: the device, and what to write for it when it had no line before.
    pub key: Option<(String, String)>,
}

fn setting(field: &str, file: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        field: field.into(),
        file: file.into(),
        value: value.to_string(),
        key: None,
    }
}

/// What a cgroup's files say now; None for one that is not there.
pub type Current<'a> = &'a dyn Fn(&str) -> Option<String>;

type Settings = Result<Vec<Setting>, LimitError>;

/// Every write that the limits ask for, in an order in which each can be allowed. Device rules are not among them.
///
/// # Errors
/// A field that cgroup v2 does not have, or with a value that can't be.
pub fn plan(resources: &LinuxResources, current: Current<'_>) -> Settings {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        settings.extend(plan_memory(memory, current)?);
    }
    if let Some(cpu) = resources.cpu() {
        settings.extend(plan_cpu(cpu, current)?);
    }
    if let Some(pids) = resources.pids()
        && pids.limit() != 0
    {
        settings.push(setting(
            "pids.limit",
            "pids.max",
            amount("pids.limit", pids.limit())?,
        ));
    }
    if let Some(io) = resources.block_io() {
        settings.extend(plan_io(io, current)?);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        settings.extend(plan_hugepages(limit, current)?);
    }
    refuse_version_1(resources)?;
    for (device, limit) in resources.rdma().iter().flatten() {
        let count = |n: Option<u32>| n.map_or("max".into(), |n| n.to_string());
        let value = format!(
            "{device} hca_handle={} hca_object={}",
            count(limit.hca_handles()),
            count(limit.hca_objects())
        );
        settings.push(setting(&format!("rdma.{device}"), "rdma.max", value));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        settings.push(plan_unified(file, value, current)?);
    }
    Ok(settings)
}

/// -1 is no limit; nothing else may be negative.
fn amount(field: &str, value: i64) -> Result<String, LimitError> {
    match value {
        -1 => Ok("max".into()),
        0.. => Ok(value.to_string()),
        _ => Err(LimitError::new(
            field,
            format!("{value} is neither an amount nor -1"),
        )),
    }
}

fn plan_memory(memory: &LinuxMemory, current: Current<'_>) -> Settings {
    let only_version_1 = [
        ("memory.kernel", memory.kernel().is_some_and(|n| n > 0)),
        (
            "memory.kernelTCP",
            memory.kernel_tcp().is_some_and(|n| n > 0),
        ),
        ("memory.swappiness", memory.swappiness().is_some()),
        (
            "memory.disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
        ),
    ];
    for (field, asked) in only_version_1 {
        if asked {
            return Err(LimitError::new(field, "cgroup v2 does not have it"));
        }
    }
    let mut settings = Vec::new();
    let limit = memory.limit().filter(|&n| n != 0);
    if let Some(limit) = limit {
        let value = amount("memory.limit", limit)?;
        let used = current("memory.current").and_then(|text| text.trim().parse::<i64>().ok());
        if memory.check_before_update() == Some(true) && limit > 0 && used > Some(limit) {
            let why = format!("{limit} is less than is in use, {}", used.unwrap_or(0));
            return Err(LimitError::new("memory.limit", why));
        }
        settings.push(setting("memory.limit", "memory.max", value));
    }
    if let Some(reservation) = memory.reservation().filter(|&n| n != 0) {
        let value = amount("memory.reservation", reservation)?;
        settings.push(setting("memory.reservation", "memory.low", value));
    }
    if let Some(swap) = memory.swap().filter(|&n| n != 0) {
        let before = || current("memory.max").and_then(|text| text.trim().parse().ok());
        let value = swap_alone(swap, limit.or_else(before))?;
        settings.push(setting("memory.swap", "memory.swap.max", value));
    }
    Ok(settings)
}

/// The spec's `swap` is memory and swap together, the kernel's `memory.swap.max` is swap alone.
fn swap_alone(swap: i64, limit: Option<i64>) -> Result<String, LimitError> {
    let error = |why: String| LimitError::new("memory.swap", why);
    match (swap, limit) {
        (..0, _) => amount("memory.swap", swap),
        (_, None | Some(..=0)) => Err(error("needs memory.limit, as it counts memory too".into())),
        (_, Some(limit)) if swap < limit => Err(error(format!(
            "{swap} is less than memory.limit, {limit}, and counts memory too"
        ))),
        (_, Some(limit)) => Ok((swap - limit).to_string()),
    }
}

fn plan_cpu(cpu: &LinuxCpu, current: Current<'_>) -> Settings {
    if cpu.realtime_runtime().is_some_and(|n| n != 0) {
        return Err(LimitError::new(
            "cpu.realtimeRuntime",
            "cgroup v2 does not have it",
        ));
    }
    if cpu.realtime_period().is_some_and(|n| n != 0) {
        return Err(LimitError::new(
            "cpu.realtimePeriod",
            "cgroup v2 does not have it",
        ));
    }
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle() {
        settings.push(setting("cpu.idle", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&n| n != 0) {
        settings.push(setting("cpu.shares", "cpu.weight", weight(shares)));
    }
    let quota = cpu.quota().filter(|&n| n != 0);
    let period = cpu.period().filter(|&n| n != 0);
    if quota.is_some() || period.is_some() {
        let before = current("cpu.max").unwrap_or_default();
        let mut words = before.split_whitespace();
        let quota_before = words.next().unwrap_or("max");
        let period_before = words.next().unwrap_or("100000");
        let quota_text = match quota {
            None => quota_before.into(),
            Some(n) if n < 0 => "max".into(),
            Some(n) => n.to_string(),
        };
        let period_text = period.map_or(period_before.into(), |n| n.to_string());
        let field = if quota.is_some() {
            "cpu.quota"
        } else {
            "cpu.period"
        };
        settings.push(setting(
            field,
            "cpu.max",
            format!("{quota_text} {period_text}"),
        ));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(setting("cpu.burst", "cpu.max.burst", burst));
    }
    for (field, file, list) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            settings.push(setting(field, file, list));
        }
    }
    Ok(settings)
}

/// Shares (2 to 262144, usually 1024) as a weight (1 to 10000, usually 100), so that the ends and the usual values meet: the
/// conversion of runc 1.3.2 and libcontainer.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

fn plan_io(io: &LinuxBlockIo, current: Current<'_>) -> Settings {
    let leaf = io.leaf_weight().is_some_and(|n| n != 0);
    let devices = io.weight_device().as_deref().unwrap_or_default();
    if leaf
        || devices
            .iter()
            .any(|d| d.leaf_weight().is_some_and(|n| n != 0))
    {
        return Err(LimitError::new(
            "blockIO.leafWeight",
            "cgroup v2 does not have it",
        ));
    }
    let bfq = current("io.bfq.weight").is_some();
    let file = if bfq { "io.bfq.weight" } else { "io.weight" };
    let scale = |n: u16| {
        if bfq {
            u64::from(n)
        } else {
            io_weight(u64::from(n))
        }
    };
    let mut settings = Vec::new();
    if let Some(weight) = io.weight().filter(|&n| n != 0) {
        let mut default = setting("blockIO.weight", file, format!("default {}", scale(weight)));
        default.key = Some(("default".into(), "default 100".into()));
        settings.push(default);
    }
    for device in devices {
        if let Some(weight) = device.weight().filter(|&n| n != 0) {
            let key = format!("{}:{}", device.major(), device.minor());
            let value = format!("{key} {}", scale(weight));
            let mut weight = setting("blockIO.weightDevice", file, value);
            weight.key = Some((key.clone(), format!("{key} default")));
            settings.push(weight);
        }
    }
    for (field, word, devices) in [
        (
            "throttleReadBpsDevice",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "throttleWriteBpsDevice",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "throttleReadIOPSDevice",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "throttleWriteIOPSDevice",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ] {
        let throttles = devices.iter().flatten();
        settings.extend(throttles.map(|device| throttle(field, word, device)));
    }
    Ok(settings)
}

fn throttle(field: &str, word: &str, device: &LinuxThrottleDevice) -> Setting {
    let key = format!("{}:{}", device.major(), device.minor());
    let rate = match device.rate() {
        0 => "max".into(),
        rate => rate.to_string(),
    };
    let mut throttle = setting(
        &format!("blockIO.{field}"),
        "io.max",
        format!("{key} {word}={rate}"),
    );
    let unlimited = format!("{key} rbps=max wbps=max riops=max wiops=max");
    throttle.key = Some((key, unlimited));
    throttle
}

/// blkio's weight (10 to 1000) as io.weight (1 to 10000), linear as in runc.
fn io_weight(weight: u64) -> u64 {
    1 + weight.saturating_sub(10) * 9999 / 990
}

fn plan_hugepages(limit: &LinuxHugepageLimit, current: Current<'_>) -> Settings {
    let size = limit.page_size();
    let field = format!("hugepageLimits.{size}");
    let value = amount(&field, limit.limit())?;
    let file = format!("hugetlb.{size}.max");
    if size.contains('/') || current(&file).is_none() {
        return Err(LimitError::new(
            field,
            "the guest has no huge pages of this size",
        ));
    }
    let reserved = format!("hugetlb.{size}.rsvd.max");
    let mut settings = vec![setting(&field, file, &value)];
    if current(&reserved).is_some() {
        settings.push(setting(&field, reserved, &value));
    }
    Ok(settings)
}

fn refuse_version_1(resources: &LinuxResources) -> Result<(), LimitError> {
    let Some(network) = resources.network() else {
        return Ok(());
    };
    let why = "cgroup v2 does not have it";
    if network.class_id().is_some_and(|id| id != 0) {
        return Err(LimitError::new("network.classID", why));
    }
    if network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
        return Err(LimitError::new("network.priorities", why));
    }
    Ok(())
}

/// Files by which a cgroup is moved, split, stopped or filled; they are no limits.
const NO_LIMITS: &[&str] = &[
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.subtree_control",
    "cgroup.type",
    "cgroup.kill",
    "cgroup.freeze",
];

fn plan_unified(file: &str, value: &str, current: Current<'_>) -> Result<Setting, LimitError> {
    let field = format!("unified.{file}");
    let known = file.contains('.') && !file.contains('/') && !file.starts_with('.');
    if !known || NO_LIMITS.contains(&file) {
        return Err(LimitError::new(field, "is no file that holds a limit"));
    }
    if current(file).is_none() {
        return Err(LimitError::new(
            field,
            "the guest's kernel has no such file",
        ));
    }
    Ok(setting(&field, file, value))
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
