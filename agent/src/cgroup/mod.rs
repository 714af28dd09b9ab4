//! The guest's cgroup tree (cgroup v2): `/agent` for us, `/containers/<id>` for each container, and a roof over all containers.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxResources};

use crate::spec::ContainerId;

mod apply;
mod bpf;
mod devices;
mod limits;
mod stats;

pub use bpf::Program;
pub use limits::LimitError;
pub use stats::Stats;
use stats::keyed;

const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "containers";
const MIB: u64 = 1 << 20;

/// What was free at boot.
static FREE: OnceLock<u64> = OnceLock::new();

/// What no container may take from the agent and the kernel. What they need for more memory, `struct page` and page tables, comes
/// with it: the host adds 1/32 to the limits.
const RESERVE: u64 = 16 * MIB;

/// The most that all containers together may use, of what is free at boot: the kernel and the guest image are in memory
/// too, and are charged to nobody. Never less than half, however small the guest.
fn roof(free: u64) -> u64 {
    free.saturating_sub(RESERVE).max(free / 2)
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
    let _ = fs::write(agent.join("memory.min"), (RESERVE / 2).to_string());
    let _ = fs::write(containers.join("memory.max"), roof(free).to_string());
    let _ = FREE.set(free);
    Ok(())
}

/// Moves the roof over all containers: the machine has so many bytes more, or less, than at boot.
///
/// # Errors
/// The kernel refuses.
pub fn set_extra_memory(extra: i64) -> io::Result<()> {
    let Some(free) = FREE.get() else {
        return Ok(());
    };
    // The kernel keeps a `struct page` of 64 bytes for each page.
    let usable = extra - extra.max(0) / 64;
    let roof = roof(free.saturating_add_signed(usable));
    fs::write(
        Path::new(ROOT).join(CONTAINERS).join("memory.max"),
        roof.to_string(),
    )
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

    /// Makes it, with its limits and its device rules in force before a process is in it; all but that of processes, as it takes
    /// more than one to make a container ([`Self::limit_pids`]).
    ///
    /// # Errors
    /// The limit that can't be had. It stays to be removed.
    pub fn create(
        &self,
        resources: Option<&LinuxResources>,
        devices: &[LinuxDevice],
    ) -> Result<Program, LimitError> {
        let failed = |error: io::Error| LimitError::new("*", format!("make the cgroup: {error}"));
        fs::create_dir_all(&self.path).map_err(failed)?;
        let none = LinuxResources::default();
        let mut early = resources.unwrap_or(&none).clone();
        early.set_pids(None);
        let program = load(devices, &early)?;
        self.set_all(&early, &program, None)?;
        Ok(program)
    }

    /// Sets the limit of processes, when only the container's first one is left.
    ///
    /// # Errors
    /// It can't be had.
    pub fn limit_pids(&self, resources: Option<&LinuxResources>) -> Result<(), LimitError> {
        let mut late = LinuxResources::default();
        late.set_pids(resources.and_then(|resources| *resources.pids()));
        let _kept = apply::apply(&self.path, &late)?;
        Ok(())
    }

    /// Changes the limits that are named, all or none. `program` has the device rules in force; the answer is what came in its
    /// place, if there are new rules.
    ///
    /// # Errors
    /// The limit that can't be had.
    pub fn update(
        &self,
        resources: &LinuxResources,
        program: &Program,
    ) -> Result<Option<Program>, LimitError> {
        if resources.devices().is_none() {
            let _kept = apply::apply(&self.path, resources)?;
            return Ok(None);
        }
        let new = load(&[], resources)?;
        self.set_all(resources, &new, Some(program))?;
        Ok(Some(new))
    }

    fn set_all(
        &self,
        resources: &LinuxResources,
        new: &Program,
        old: Option<&Program>,
    ) -> Result<(), LimitError> {
        let failed = |error: io::Error| LimitError::new("devices", error.to_string());
        let directory = fs::File::open(&self.path).map_err(failed)?;
        let undo = apply::apply(&self.path, resources)?;
        let attached = new.attach(directory.as_fd(), old);
        if attached.is_err() {
            undo.run(&self.path);
        }
        attached.map_err(failed)
    }

    /// What it has used.
    pub fn stats(&self) -> Stats {
        Stats::read(&self.path)
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

fn load(devices: &[LinuxDevice], resources: &LinuxResources) -> Result<Program, LimitError> {
    let asked = resources.devices().as_deref().unwrap_or_default();
    let rules = devices::rules(devices, asked)?;
    Program::load(&devices::program(&rules))
        .map_err(|error| LimitError::new("devices", error.to_string()))
}

/// Waits until more than `seen` processes were killed for memory.
///
/// # Errors
/// memory.events can't be polled.
pub async fn wait_for_oom(cgroup: &Cgroup, seen: u64) -> io::Result<()> {
    wait_for(cgroup, "memory.events", || cgroup.oom_kills() > seen).await
}

/// Waits until `settled` holds; the kernel raises POLLPRI on cgroup.events whenever one of its values changes.
///
/// # Errors
/// The file can't be polled. A cgroup that is not there has settled.
pub async fn wait_for_event(cgroup: &Cgroup, settled: impl Fn() -> bool) -> io::Result<()> {
    wait_for(cgroup, "cgroup.events", settled).await
}

async fn wait_for(cgroup: &Cgroup, file: &str, settled: impl Fn() -> bool) -> io::Result<()> {
    use std::io::{Read, Seek};
    let mut events = match fs::File::open(cgroup.path.join(file)) {
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
    fn the_roof_leaves_sixteen_mebibytes_or_half() {
        assert_eq!(roof(128 * MIB), 112 * MIB);
        assert_eq!(roof(1024 * MIB), 1008 * MIB);
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
}
