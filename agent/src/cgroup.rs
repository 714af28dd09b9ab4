//! The guest's cgroup tree (cgroup v2): `/agent` for us, `/containers/<id>` for each container, and a roof over all containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::spec::ContainerId;

const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "containers";
const MIB: u64 = 1 << 20;

/// What no container may take from the agent and the kernel: 6 % of what is free at boot, but at least 16 MiB.
fn reserve(free: u64) -> u64 {
    (free / 100 * 6).max(16 * MIB)
}

/// The most that all containers together may use, of what is free at boot: the kernel and the guest image are in memory
/// too, and are charged to nobody. Never less than half, however small the guest.
fn roof(free: u64) -> u64 {
    free.saturating_sub(reserve(free)).max(free / 2)
}

/// Moves the agent to `/agent`, gives every controller to the containers, and puts the roof over them: a container without a
/// limit of its own is killed there, by its own cgroup's out-of-memory killer, before the guest as a whole runs out.
///
/// # Errors
/// The tree could not be made.
pub fn prepare() -> io::Result<()> {
    let root = Path::new(ROOT);
    let agent = root.join("agent");
    let containers = root.join(CONTAINERS);
    fs::create_dir_all(&agent)?;
    fs::create_dir_all(&containers)?;
    fs::write(agent.join("cgroup.procs"), "0")?;
    enable_all_controllers(root);
    enable_all_controllers(&containers);
    let free = free_memory()?;
    // Memory control may be missing from a small kernel; limits then fail where they are asked for.
    let _ = fs::write(agent.join("memory.min"), (reserve(free) / 2).to_string());
    let _ = fs::write(containers.join("memory.max"), roof(free).to_string());
    Ok(())
}

fn enable_all_controllers(group: &Path) {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One by one: a controller that refuses must not keep the others out.
        let _ = fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

fn free_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("no MemAvailable in /proc/meminfo"))
}

/// What a container has used.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in microseconds.
    pub cpu_usage_us: u64,
    /// Bytes in use.
    pub memory_bytes: u64,
    /// Limit in bytes; `u64::MAX` without one.
    pub memory_limit_bytes: u64,
    /// Highest use in bytes.
    pub memory_peak_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup that belongs to a container; it need not exist yet.
    pub fn of(id: &ContainerId) -> Self {
        Self {
            path: Path::new(ROOT).join(CONTAINERS).join(id.as_str()),
        }
    }

    /// Its path below the cgroup root, as `linux.cgroupsPath` wants it (config-linux.md#cgroups-path).
    pub fn spec_path(id: &ContainerId) -> PathBuf {
        Path::new("/").join(CONTAINERS).join(id.as_str())
    }

    #[cfg(test)]
    fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in it and below it at once. Nothing to kill is no error.
    pub fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Asks the kernel to stop or resume every process (`cgroup.freeze`).
    ///
    /// # Errors
    /// The cgroup is gone or has no freezer.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(
            self.path.join("cgroup.freeze"),
            if frozen { "1" } else { "0" },
        )
    }

    /// Whether every process has stopped.
    pub fn is_frozen(&self) -> bool {
        keyed(&self.path.join("cgroup.events"), "frozen") == 1
    }

    /// Whether a process, a zombie included, is left.
    pub fn is_populated(&self) -> bool {
        keyed(&self.path.join("cgroup.events"), "populated") == 1
    }

    /// Processes killed for memory so far, below it included.
    pub fn oom_kills(&self) -> u64 {
        keyed(&self.path.join("memory.events"), "oom_kill")
    }

    /// Every process in it and below it, sorted.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        for directory in subtree(&self.path) {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        pids.sort_unstable();
        pids
    }

    /// What it has used.
    pub fn stats(&self) -> Stats {
        Stats {
            cpu_usage_us: keyed(&self.path.join("cpu.stat"), "usage_usec"),
            memory_bytes: single(&self.path.join("memory.current")),
            memory_limit_bytes: single(&self.path.join("memory.max")),
            memory_peak_bytes: single(&self.path.join("memory.peak")),
            pids: single(&self.path.join("pids.current")),
            oom_kills: self.oom_kills(),
        }
    }

    /// Removes it and what a container made below it.
    ///
    /// # Errors
    /// A process is still in it.
    pub fn remove(&self) -> io::Result<()> {
        let mut directories = subtree(&self.path);
        directories.reverse();
        for directory in directories {
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Waits until `settled` holds; the kernel raises POLLPRI on cgroup.events whenever one of its values changes.
///
/// # Errors
/// The file can't be polled. A cgroup that is not there has settled.
pub async fn wait_for_event(cgroup: &Cgroup, settled: impl Fn() -> bool) -> io::Result<()> {
    use std::io::{Read, Seek};
    let mut events = match fs::File::open(cgroup.path.join("cgroup.events")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    let watched = events.try_clone()?;
    // SAFETY: a File keeps its number and stays open for as long as it lives, and the AsyncFd owns it.
    let polled = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(watched, tokio::io::Interest::PRIORITY)
    }?;
    loop {
        // Reading arms the next notification, so it comes before the question.
        events.rewind()?;
        text.clear();
        if events.read_to_string(&mut text).is_err() || settled() {
            return Ok(());
        }
        polled
            .ready(tokio::io::Interest::PRIORITY)
            .await?
            .clear_ready();
    }
}

/// A directory and everything below it, parents first.
fn subtree(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_path_buf()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        found.extend(
            entries
                .flatten()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
    }
    found
}

fn single(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

fn keyed(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(k, _)| *k == key)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_has_a_path_of_its_own_below_containers() {
        let id = ContainerId::parse("web-1").unwrap();
        assert_eq!(Cgroup::spec_path(&id), Path::new("/containers/web-1"));
        assert_eq!(
            Cgroup::of(&id).path(),
            Path::new("/sys/fs/cgroup/containers/web-1")
        );
    }

    #[test]
    fn the_roof_leaves_six_percent_or_sixteen_mebibytes() {
        assert_eq!(roof(128 * MIB), 112 * MIB);
        assert_eq!(roof(100 * 1024 * MIB), 94 * 1024 * MIB);
        assert_eq!(roof(20 * MIB), 10 * MIB);
    }

    #[test]
    fn processes_below_the_container_are_found() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("init.scope/deeper")).unwrap();
        fs::write(directory.path().join("cgroup.procs"), "20\n").unwrap();
        fs::write(
            directory.path().join("init.scope/deeper/cgroup.procs"),
            "7\n300\n",
        )
        .unwrap();
        assert_eq!(Cgroup::at(directory.path()).processes(), [7, 20, 300]);
    }

    #[test]
    fn stats_are_read_from_the_kernels_files() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        put("cpu.stat", "usage_usec 1234\nuser_usec 1000\n");
        put("memory.current", "4096\n");
        put("memory.max", "max\n");
        put("memory.peak", "8192\n");
        put("pids.current", "3\n");
        put(
            "memory.events",
            "low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
        );
        let expected = Stats {
            cpu_usage_us: 1234,
            memory_bytes: 4096,
            memory_limit_bytes: u64::MAX,
            memory_peak_bytes: 8192,
            pids: 3,
            oom_kills: 1,
        };
        assert_eq!(Cgroup::at(directory.path()).stats(), expected);
    }
}
