//! What a pod holds on the host, written down before it is made, and undone from there: `/run/vmbox/<id>/journal`.
//!
//! ```text
//! vmbox run ── pipe ──► warden ("vmbox warden DIR", started first, outside the pod's mount namespace)
//!    normal end: sends `done`, waits      the warden undoes the journal and ends
//!    killed:     the pipe ends            the same
//! ```
//! Mounts need no record: they are in a mount namespace that ends with the pod's last process.

mod undo;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::FlockOperation,
    process::{Pid, PidfdFlags},
};
use serde::{Deserialize, Serialize};

use crate::{
    network::NamespaceId,
    pod::{ContainerId, place::PodDir},
};

pub use undo::{UndoError, leave, undo};

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
    /// The process that carries the network of an engine's pod. It ends with the monitor.
    Follower {
        /// Process id.
        pid: u32,
        /// As the monitor's.
        start_ticks: u64,
    },
    /// A writable layer in the image store. Of several about the same one, the last counts.
    Layer {
        /// Root of the store.
        store: PathBuf,
        /// Name of the container in the store.
        container: String,
        /// It stays until `vmbox rm`.
        keep: bool,
    },
    /// A socket for a stream; a member's lies in the directory of another pod.
    Socket {
        /// Where.
        path: PathBuf,
    },
    /// This is a container in another pod.
    Member {
        /// That pod's directory.
        pod: PathBuf,
        /// The container's name there.
        container: String,
    },
    /// A tap and the redirections that carry an interface into the VM.
    Nic(Nic),
    /// Those of this slot have been undone.
    NicGone {
        /// The slot.
        slot: u8,
    },
}

/// An interface that a NIC slot of the VM carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Where the network namespace is.
    pub path: PathBuf,
    /// Which one it is: another may come to be there.
    pub namespace: NamespaceId,
    /// The interface's name.
    pub interface: String,
    /// Its number in the namespace.
    pub index: u32,
    /// The VM's slot.
    pub slot: u8,
}

/// A pod's journal, open for writing, and with it the lock that says that the pod has a living owner.
#[derive(Debug)]
pub struct Journal {
    file: File,
    _lock: Option<File>,
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
        // The directory is ours, and nobody else would remove it.
        Self::begin(dir).inspect_err(|_| drop(fs::remove_dir_all(dir.path())))
    }

    fn begin(dir: &PodDir) -> io::Result<Self> {
        let lock = File::open(dir.path())?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(journal_of(dir))?;
        fs::create_dir(dir.share())?;
        Ok(Self {
            file,
            _lock: Some(lock),
        })
    }

    /// Opens the journal of a pod that exists, for a process that lives beside the pod's owner, or for lack of one.
    ///
    /// # Errors
    /// As the file system says.
    pub fn append(dir: &PodDir) -> io::Result<Self> {
        let file = File::options().append(true).open(journal_of(dir))?;
        Ok(Self { file, _lock: None })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// As the file system says.
    pub fn record(&self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        (&self.file).write_all(&line)
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
    watch_monitor(dir).map(|(pid, _)| pid)
}

/// A pod's monitor, if it runs: its process id, and a pidfd that tells its end.
pub fn watch_monitor(dir: &PodDir) -> Option<(u32, OwnedFd)> {
    read(dir).ok()?.into_iter().find_map(|record| match record {
        Record::Monitor { pid, start_ticks } => Some((pid, open_process(pid, start_ticks)?)),
        Record::Follower { .. }
        | Record::Layer { .. }
        | Record::Socket { .. }
        | Record::Member { .. }
        | Record::Nic(_)
        | Record::NicGone { .. } => None,
    })
}

/// The process ids of what runs for a whole pod, alive or not: its monitor and its network's follower.
pub fn processes_of(dir: &PodDir) -> Vec<u32> {
    let records = read(dir).unwrap_or_default();
    let pids = records.iter().filter_map(|record| match record {
        Record::Monitor { pid, .. } | Record::Follower { pid, .. } => Some(*pid),
        Record::Layer { .. }
        | Record::Socket { .. }
        | Record::Member { .. }
        | Record::Nic(_)
        | Record::NicGone { .. } => None,
    });
    pids.collect()
}

/// A pidfd of the process, unless it has ended; never that of a later one with the same id.
fn open_process(pid: u32, ticks: u64) -> Option<OwnedFd> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let pidfd = rustix::process::pidfd_open(id, PidfdFlags::empty()).ok()?;
    // Checked after the pidfd is open: from here on it can't be another process.
    (start_ticks(pid) == Some(ticks)).then_some(pidfd)
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

    #[test]
    fn records_come_back_in_order() {
        let run = tempfile::tempdir().unwrap();
        let journal = Journal::create(&pod(run.path())).unwrap();
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
    fn a_journal_that_can_not_be_begun_leaves_no_directory() {
        let run = tempfile::tempdir().unwrap();
        // PATH_MAX is 4096: long enough for the directory, too long for the files in it.
        let mut path = run.path().to_owned();
        while path.as_os_str().len() < 3900 {
            path.push("d".repeat(100));
        }
        path.push("d".repeat(4090 - path.as_os_str().len() - 1));
        let dir = PodDir::at(path);
        let error = Journal::create(&dir).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidFilename);
        assert!(!dir.path().exists());
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
