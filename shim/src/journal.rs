//! What a pod holds on the host, written down before it is made, and undone from there: `/run/vmbox/<id>/journal`.
//!
//! ```text
//! vmbox run ── pipe ──► warden ("vmbox warden DIR", started first, outside the pod's mount namespace)
//!    normal end: sends `done`, waits      the warden undoes the journal and ends
//!    killed:     the pipe ends            the same
//! ```
//! Mounts need no record: they are in a mount namespace that ends with the pod's last process.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use crate::pod::{
    ContainerId,
    place::{self, PodDir},
};

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// The monitor. Between its start and this record, its lifeline ends it.
    Monitor {
        /// Process id.
        pid: u32,
        /// Field 22 of `/proc/<pid>/stat`: tells it from a later process with the same id.
        start_ticks: u64,
    },
    /// A writable layer in the image store.
    Layer {
        /// Root of the store.
        store: PathBuf,
        /// Name of the container in the store.
        container: String,
        /// It stays until `vmbox rm`.
        keep: bool,
    },
    /// This is a container in another pod.
    Member {
        /// That pod's directory.
        pod: PathBuf,
        /// The container's name there.
        container: String,
    },
}

/// Why a pod could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The journal or the directory can't be read or removed.
    #[error("clean up {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something is still mounted there, and deleting would reach through it.
    #[error("{0} is still mounted: unmount it, then run `vmbox gc`")]
    Mounted(PathBuf),
    /// The monitor does not end.
    #[error("the monitor (process {0}) does not end")]
    Monitor(u32),
    /// The image store refused.
    #[error("remove the writable layer of {container}: {message}")]
    Layer {
        /// Whose.
        container: String,
        /// Why.
        message: String,
    },
}

/// A pod's journal, open for writing, and with it the lock that says that the pod has a living owner.
#[derive(Debug)]
pub struct Journal {
    file: File,
    _lock: File,
}

impl Journal {
    /// Makes the pod's directory, locks it, and opens its journal.
    ///
    /// # Errors
    /// `AlreadyExists`: the name is taken. Otherwise as the file system says.
    pub fn create(dir: &PodDir) -> io::Result<Self> {
        let run = dir.path().parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(run)?;
        // Held until the new directory is locked, so that `gc` never sees it without its owner.
        let birth = File::open(run)?;
        rustix::fs::flock(&birth, FlockOperation::LockShared)?;
        dir.create()?;
        let lock = File::open(dir.path())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(journal_of(dir))?;
        fs::create_dir(dir.share())?;
        Ok(Self { file, _lock: lock })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// As the file system says.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

fn journal_of(dir: &PodDir) -> PathBuf {
    dir.path().join("journal")
}

/// The records of a pod, oldest first. A line that was cut off by a crash is left out: what it announced was not made.
///
/// # Errors
/// The journal is there but can't be read.
pub fn read(dir: &PodDir) -> io::Result<Vec<Record>> {
    match fs::read_to_string(journal_of(dir)) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Vec<Record> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Field 22 of `/proc/<pid>/stat`; `None` if there is no such process.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold spaces and parentheses itself.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// The process id of a pod's monitor, if it runs.
pub fn monitor_of(dir: &PodDir) -> Option<u32> {
    read(dir).ok()?.into_iter().find_map(|record| match record {
        Record::Monitor {
            pid,
            start_ticks: ticks,
        } if start_ticks(pid) == Some(ticks) => Some(pid),
        Record::Monitor { .. } | Record::Layer { .. } | Record::Member { .. } => None,
    })
}

/// Undoes everything that a pod's journal names, then removes its directory. Does nothing for a directory that is gone.
/// Must run outside the pod's mount namespace, and on a thread alone in its process if the journal names a membership.
///
/// # Errors
/// The first thing that could not be undone; the directory then stays, for `vmbox gc`.
pub fn undo(dir: &PodDir) -> Result<(), UndoError> {
    let io = |source| UndoError::Io {
        path: dir.path().to_owned(),
        source,
    };
    for record in read(dir).map_err(io)?.iter().rev() {
        match record {
            Record::Monitor { pid, start_ticks } => end_monitor(*pid, *start_ticks)?,
            Record::Layer {
                store,
                container,
                keep,
            } => remove_layer(store, container, *keep)?,
            Record::Member { pod, container } => leave(&PodDir::at(pod.clone()), container)?,
        }
    }
    remove(dir.path())
}

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(5);

fn end_monitor(pid: u32, ticks: u64) -> Result<(), UndoError> {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let Ok(pidfd) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else {
        return Ok(());
    };
    // Checked after the pidfd is open: from here on it can't be another process.
    if start_ticks(pid) != Some(ticks) {
        return Ok(());
    }
    // ESRCH only: it has just ended by itself.
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let timeout = Timespec {
        tv_sec: DEATH.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    match rustix::event::poll(&mut poll, Some(&timeout)) {
        Ok(0) | Err(_) => Err(UndoError::Monitor(pid)),
        Ok(_) => Ok(()),
    }
}

fn remove_layer(store: &Path, container: &str, keep: bool) -> Result<(), UndoError> {
    if keep {
        return Ok(());
    }
    crate::pod::rootfs::remove_layer(store, container).map_err(|error| UndoError::Layer {
        container: container.to_owned(),
        message: crate::user::one_line(&error),
    })
}

/// Takes a container out of a living pod of another owner: processes, mounts, directory.
fn leave(pod: &PodDir, container: &str) -> Result<(), UndoError> {
    let place = pod.share().join(container);
    let io = |source| UndoError::Io {
        path: place.clone(),
        source,
    };
    let Some(monitor) = monitor_of(pod) else {
        return Ok(());
    };
    crate::guest::delete_container(&pod.agent(), container);
    let own = File::open("/proc/self/ns/mnt").map_err(io)?;
    if place::enter_namespace_of(monitor).is_ok() {
        let unmounted = place::unmount_below(&place);
        place::enter_namespace(&own).map_err(|error| io(io::Error::other(error)))?;
        unmounted.map_err(io)?;
    }
    remove(&place)
}

/// Removes a directory with everything in it, but never through a mount.
fn remove(dir: &Path) -> Result<(), UndoError> {
    let io = |source| UndoError::Io {
        path: dir.to_owned(),
        source,
    };
    if let Some(mount_point) = place::mounts_below(dir).map_err(io)?.into_iter().next() {
        return Err(UndoError::Mounted(mount_point));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
        _ => Ok(()),
    }
}

/// The directories below `run` whose owners are dead, each locked against other collectors until dropped.
///
/// # Errors
/// `run` can't be read.
pub fn dead_pods(run: &Path) -> io::Result<Vec<(ContainerId, PodDir, File)>> {
    let birth = match File::open(run) {
        Ok(birth) => birth,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    rustix::fs::flock(&birth, FlockOperation::LockExclusive)?;
    let mut dead = Vec::new();
    for entry in fs::read_dir(run)? {
        let Some(id) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<ContainerId>().ok())
        else {
            continue;
        };
        let dir = PodDir::of(run, &id);
        if let Some(lock) = lock_if_dead(&dir) {
            dead.push((id, dir, lock));
        }
    }
    Ok(dead)
}

/// Locks a pod's directory if its owner is dead.
pub fn lock_if_dead(dir: &PodDir) -> Option<File> {
    let lock = File::open(dir.path()).ok()?;
    rustix::fs::flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).ok()?;
    // It may have been removed, and even made again, before it was locked.
    is_at(&lock, dir).then_some(lock)
}

/// Whether an open directory is still the one at the path of `dir`, not a removed one.
pub fn is_at(open: &File, dir: &PodDir) -> bool {
    let (Ok(open), Ok(there)) = (open.metadata(), fs::symlink_metadata(dir.path())) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(run: &Path) -> PodDir {
        PodDir::of(run, &"web".parse().unwrap())
    }

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap()
    }

    #[test]
    fn records_come_back_in_order() {
        let run = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&pod(run.path())).unwrap();
        let records = [
            Record::Layer {
                store: "/s".into(),
                container: "web".into(),
                keep: true,
            },
            Record::Monitor {
                pid: 1,
                start_ticks: 2,
            },
        ];
        records
            .iter()
            .for_each(|record| journal.record(record).unwrap());
        assert_eq!(read(&pod(run.path())).unwrap(), records);
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let text = "{\"record\":\"monitor\",\"pid\":7,\"start_ticks\":9}\n{\"record\":\"lay";
        assert_eq!(
            parse(text),
            [Record::Monitor {
                pid: 7,
                start_ticks: 9
            }]
        );
    }

    #[test]
    fn undo_ends_the_monitor_and_removes_the_directory() {
        let run = tempfile::tempdir().unwrap();
        let dir = pod(run.path());
        let mut journal = Journal::create(&dir).unwrap();
        let mut child = sleeper();
        let ticks = start_ticks(child.id()).unwrap();
        journal
            .record(&Record::Monitor {
                pid: child.id(),
                start_ticks: ticks,
            })
            .unwrap();
        undo(&dir).unwrap();
        assert!(!dir.path().exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn undo_spares_a_process_that_only_has_the_same_id() {
        let run = tempfile::tempdir().unwrap();
        let dir = pod(run.path());
        let mut journal = Journal::create(&dir).unwrap();
        let mut child = sleeper();
        let ticks = start_ticks(child.id()).unwrap() - 1;
        journal
            .record(&Record::Monitor {
                pid: child.id(),
                start_ticks: ticks,
            })
            .unwrap();
        undo(&dir).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn undo_twice_is_undo_once() {
        let run = tempfile::tempdir().unwrap();
        let dir = pod(run.path());
        drop(Journal::create(&dir).unwrap());
        undo(&dir).unwrap();
        undo(&dir).unwrap();
    }

    #[test]
    fn a_later_pod_of_the_same_name_is_another() {
        let run = tempfile::tempdir().unwrap();
        let dir = pod(run.path());
        drop(Journal::create(&dir).unwrap());
        let first = File::open(dir.path()).unwrap();
        assert!(is_at(&first, &dir));
        undo(&dir).unwrap();
        assert!(!is_at(&first, &dir));
        let _second = Journal::create(&dir).unwrap();
        assert!(!is_at(&first, &dir));
    }

    #[test]
    fn only_pods_without_owner_are_dead() {
        let run = tempfile::tempdir().unwrap();
        let living = Journal::create(&pod(run.path())).unwrap();
        assert!(dead_pods(run.path()).unwrap().is_empty());
        drop(living);
        assert_eq!(dead_pods(run.path()).unwrap().len(), 1);
    }
}
