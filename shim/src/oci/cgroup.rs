//! The host's cgroup of a container, which `linux.cgroupsPath` names: the monitor and the keepers are in it, so that
//! engines and administrators see, weigh and find them there. The container's limits are the guest's to keep.
//!
//! cgroup v2 with the cgroupfs driver (runc's libcontainer/cgroups/fs2). systemd's slices are made by systemd alone.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::error::OciError;

/// Where cgroup v2 is mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// What an ancestor hands down, so that engines find figures.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// How long killed processes may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

/// The directory of a container's cgroup; `None` where there is none to make.
pub fn place(named: Option<&Path>, id: &str, systemd: bool) -> Option<PathBuf> {
    let named = named.filter(|path| !path.as_os_str().is_empty());
    if systemd || named.is_some_and(is_slice) {
        return None;
    }
    let mount = Path::new(MOUNT);
    // cgroups(7): on version 2 only.
    mount.join("cgroup.controllers").exists().then(|| {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        mount.join(below(named, id, &own))
    })
}

/// `slice:prefix:name` (runc's docs/systemd.md).
pub fn is_slice(path: &Path) -> bool {
    path.to_str()
        .is_some_and(|path| path.split(':').count() == 3)
}

/// An absolute path is one below the root; another, or the container's id, is beside our own cgroup.
fn below(named: Option<&Path>, id: &str, own: &str) -> PathBuf {
    let named = named.unwrap_or(Path::new(id));
    let names = |path: &Path| -> PathBuf {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        names.collect()
    };
    if named.is_absolute() {
        return names(named);
    }
    let own = own.lines().find_map(|line| line.strip_prefix("0::"));
    let parent = own.and_then(|own| Path::new(own).parent());
    names(parent.unwrap_or(Path::new("/"))).join(names(named))
}

/// Makes a cgroup and what is above it, with the controllers that each can hand down.
///
/// # Errors
/// The kernel refuses.
pub fn make(dir: &Path) -> Result<(), OciError> {
    let made = || -> io::Result<()> {
        let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
        above.retain(|path| path.starts_with(MOUNT));
        for path in above.into_iter().rev() {
            fs::create_dir_all(path)?;
            for controller in CONTROLLERS {
                // A figure less, for engines that ask.
                let _ = fs::write(
                    path.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                );
            }
        }
        fs::create_dir_all(dir)
    };
    made().map_err(OciError::host(format!("make the cgroup {}", dir.display())))
}

/// Moves a process there.
///
/// # Errors
/// The kernel refuses.
pub fn enter(dir: &Path, pid: u32) -> Result<(), OciError> {
    fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(OciError::host(format!(
        "enter the cgroup {}",
        dir.display()
    )))
}

/// The processes in a cgroup; none if it is gone.
pub fn processes(dir: &Path) -> Vec<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Removes a container's cgroup; what the pod still needs of it, its monitor, goes to `heir`.
///
/// # Errors
/// The kernel refuses: somebody else has put a process there.
pub fn remove(dir: &Path, heir: Option<&Path>) -> Result<(), OciError> {
    if let Some(heir) = heir {
        for pid in processes(dir) {
            // One that has ended meanwhile needs no place.
            let _ = fs::write(heir.join("cgroup.procs"), pid.to_string());
        }
    } else if dir.exists() {
        // Keepers of processes that went with their container, on their way out.
        empty(dir).map_err(OciError::host(format!(
            "end what is left in {}",
            dir.display()
        )))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OciError::host(format!(
            "remove the cgroup {}",
            dir.display()
        ))(error)),
        _ => Ok(()),
    }
}

/// Kills every process in a cgroup and waits until they are gone (cgroup-v2.rst, "cgroup.kill" and "cgroup.events").
fn empty(dir: &Path) -> io::Result<()> {
    let mut events = File::open(dir.join("cgroup.events"))?;
    let deadline = Instant::now() + DEATH;
    let mut text = String::new();
    loop {
        text.clear();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        fs::write(dir.join("cgroup.kill"), "1")?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        rustix::event::poll(&mut fds, Some(&timeout))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_as_runc_finds_it() {
        let below = |named: &str, own: &str| {
            let named = Some(Path::new(named)).filter(|path| !path.as_os_str().is_empty());
            below(named, "web", own)
        };
        assert_eq!(below("/a/b", "0::/x/y\n"), Path::new("a/b"));
        assert_eq!(below("a", "0::/x/y\n"), Path::new("x/a"));
        assert_eq!(below("", "0::/x/y\n"), Path::new("x/web"));
        assert_eq!(below("", "0::/\n"), Path::new("web"));
        assert_eq!(below("/../../etc", "0::/\n"), Path::new("etc"));
    }

    #[test]
    fn slices_are_systemds() {
        assert!(is_slice(Path::new("machine.slice:libpod:42")));
        assert_eq!(place(Some(Path::new("a.slice:b:c")), "web", false), None);
        assert_eq!(place(Some(Path::new("/a")), "web", true), None);
    }

    #[test]
    fn removing_what_is_gone_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        remove(&gone, None).unwrap();
        std::fs::create_dir(&gone).unwrap();
        std::fs::write(gone.join("cgroup.events"), "populated 0\n").unwrap();
        // Files of a cgroup go with it; here one is left in the way.
        assert!(remove(&gone, None).is_err());
    }
}
