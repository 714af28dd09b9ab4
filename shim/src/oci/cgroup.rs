//! The host's cgroup of a container, which `linux.cgroupsPath` names: the monitor and the keepers are in it, so that
//! engines and administrators see, weigh and find them there. The container's limits are the guest's to keep.
//!
//! cgroup v2. With the cgroupfs driver the directory is ours to make (runc's libcontainer/cgroups/fs2); with systemd's, it comes
//! and goes with a unit of systemd's.

use std::{
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};

use super::{
    error::OciError,
    systemd::{Unit, UnitError},
};

/// Where cgroup v2 is mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// How long killed processes may take to be gone: a monitor has all the guest's memory to give back.
const DEATH: Duration = Duration::from_secs(60);

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// We do.
    Cgroupfs,
    /// systemd does.
    Systemd,
}

/// A container's cgroup: what is to be made, and later to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cgroup {
    /// A directory of ours.
    Cgroupfs(PathBuf),
    /// That of a unit of systemd's.
    Systemd(Unit),
}

/// Which cgroup a container is to have; `None` where none can be made.
///
/// # Errors
/// The path names none of systemd's units, though the driver is systemd's.
pub fn place(driver: Driver, named: Option<&Path>, id: &str) -> Result<Option<Cgroup>, UnitError> {
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let cgroup = match driver {
        Driver::Systemd => {
            let named = named.map(Path::to_string_lossy);
            Cgroup::Systemd(Unit::of(named.as_deref(), id)?)
        }
        Driver::Cgroupfs if named.is_some_and(is_slice) => return Ok(None),
        Driver::Cgroupfs => {
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            Cgroup::Cgroupfs(Path::new(MOUNT).join(below(named, id, &own)))
        }
    };
    // cgroups(7): on version 2 only.
    let version_2 = Path::new(MOUNT).join("cgroup.controllers").exists();
    Ok(version_2.then_some(cgroup))
}

/// `slice:prefix:name`, which is for systemd (runc's docs/systemd.md).
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

impl Cgroup {
    /// Its directory.
    pub fn dir(&self) -> PathBuf {
        match self {
            Self::Cgroupfs(dir) => dir.clone(),
            Self::Systemd(unit) => Path::new(MOUNT).join(unit.cgroup()),
        }
    }

    /// A unit is its container's alone: what goes with the container must not be somebody else's.
    ///
    /// # Errors
    /// There is such a unit.
    pub fn refuse_what_is_there(&self) -> Result<(), OciError> {
        match self {
            Self::Systemd(unit) if self.dir().exists() => Err(OciError::Refused(format!(
                "systemd's unit {} is there already",
                unit.name()
            ))),
            Self::Systemd(_) | Self::Cgroupfs(_) => Ok(()),
        }
    }

    /// Makes it for a container, with the process `pid` in it.
    ///
    /// # Errors
    /// The kernel refuses, or systemd.
    pub fn make(&self, id: &str, pid: u32) -> Result<(), OciError> {
        match self {
            Self::Cgroupfs(dir) => make(dir)?,
            Self::Systemd(unit) => unit.start(id, pid)?,
        }
        enter(&self.dir(), pid)
    }

    /// Removes it; what the pod still needs of it, its monitor, goes to `heir`.
    ///
    /// # Errors
    /// The kernel refuses: somebody else has put a process there. Or systemd does.
    pub fn remove(&self, heir: Option<&Path>) -> Result<(), OciError> {
        let dir = self.dir();
        clear(&dir, heir)?;
        match self {
            // A unit has no cgroup before it begins and after it has ended, which it does when its cgroup is empty.
            Self::Systemd(unit) if dir.exists() => unit.stop()?,
            Self::Systemd(_) | Self::Cgroupfs(_) => {}
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OciError::host(format!(
                "remove the cgroup {}",
                dir.display()
            ))(error)),
            _ => Ok(()),
        }
    }
}

/// Makes a cgroup and what is above it, with all controllers that each can hand down: what engines read there, and what is written.
fn make(dir: &Path) -> Result<(), OciError> {
    let made = || -> io::Result<()> {
        let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
        above.retain(|path| path.starts_with(MOUNT));
        for path in above.into_iter().rev() {
            fs::create_dir_all(path)?;
            let controllers = fs::read_to_string(path.join("cgroup.controllers"))?;
            for controller in controllers.split_whitespace() {
                // One by one, as one may be refused: then there is a figure less.
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

/// Moves the processes of a cgroup to `heir`, or else ends them.
fn clear(dir: &Path, heir: Option<&Path>) -> Result<(), OciError> {
    if let Some(heir) = heir {
        for pid in processes(dir) {
            // One that has ended meanwhile needs no place.
            let _ = fs::write(heir.join("cgroup.procs"), pid.to_string());
        }
    } else if dir.exists() {
        // Keepers of processes that went with their container, on their way out.
        match empty(dir) {
            // systemd was faster.
            Err(_) if !dir.exists() => {}
            emptied => emptied.map_err(OciError::host(format!(
                "end what is left in {}",
                dir.display()
            )))?,
        }
    }
    Ok(())
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
    fn a_unit_is_for_systemd_and_a_path_is_not() {
        let unit = Path::new("a.slice:b:c");
        assert!(is_slice(unit));
        assert_eq!(place(Driver::Cgroupfs, Some(unit), "web"), Ok(None));
        assert!(place(Driver::Systemd, Some(unit), "web").is_ok());
        assert!(place(Driver::Systemd, Some(Path::new("")), "web").is_ok());
        assert!(place(Driver::Systemd, Some(Path::new("/a")), "web").is_err());
    }

    #[test]
    fn a_cgroup_is_remembered_with_its_driver() {
        let dir = Cgroup::Cgroupfs("/sys/fs/cgroup/a".into());
        let unit = Cgroup::Systemd(Unit::of(None, "web").unwrap());
        for cgroup in [dir, unit] {
            let text = serde_json::to_string(&cgroup).unwrap();
            assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
        }
        let of_earlier_versions: Cgroup = serde_json::from_str("\"/sys/fs/cgroup/a\"").unwrap();
        assert_eq!(of_earlier_versions.dir(), Path::new("/sys/fs/cgroup/a"));
    }

    #[test]
    fn removing_what_is_gone_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let cgroup = Cgroup::Cgroupfs(gone.clone());
        cgroup.remove(None).unwrap();
        std::fs::create_dir(&gone).unwrap();
        std::fs::write(gone.join("cgroup.events"), "populated 0\n").unwrap();
        // Files of a cgroup go with it; here one is left in the way.
        assert!(cgroup.remove(None).is_err());
    }
}
