//! Undoing a pod: everything that its journal names, newest first, and its directory.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::Signal,
};

use super::{Nic, Record, monitor_of, open_process, read};
use crate::{
    network,
    pod::place::{self, PodDir},
};

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
    /// The monitor, or the network's follower, does not end.
    #[error("process {0} of the pod does not end")]
    Process(u32),
    /// The agent of the pod that it joined does not give it up.
    #[error("delete {container} from its pod: {message}")]
    Member {
        /// Whose.
        container: String,
        /// Why.
        message: String,
    },
    /// A redirection could not be ended.
    #[error("take {interface} back from the VM: {message}")]
    Network {
        /// The engine's interface.
        interface: String,
        /// Why.
        message: String,
    },
    /// The image store refused.
    #[error("remove the writable layer of {container}: {message}")]
    Layer {
        /// Whose.
        container: String,
        /// Why.
        message: String,
    },
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
    let records = read(dir).map_err(io)?;
    for record in &records {
        // First: it would carry again what is taken down.
        if let Record::Follower { pid, start_ticks } = record {
            end_process(*pid, *start_ticks)?;
        }
    }
    for (index, record) in records.iter().enumerate().rev() {
        match record {
            Record::Follower { .. } => {}
            Record::Monitor { pid, start_ticks } => end_process(*pid, *start_ticks)?,
            Record::Layer {
                store,
                container,
                keep: false,
            } if !kept_later(&records[index..], store, container) => {
                remove_layer(store, container)?;
            }
            Record::Layer { .. } => {}
            Record::Socket { path } => remove_socket(path)?,
            Record::Nic(nic) if !ended_later(&records[index..], nic.slot) => end_nic(nic)?,
            Record::Nic(_) | Record::NicGone { .. } => {}
            Record::Member { pod, container } => leave(&PodDir::at(pod.clone()), container)?,
        }
    }
    remove(dir.path())
}

/// How long a killed process may take to be gone. A monitor gives all the guest's memory back first: on Arm without FWB the
/// kernel cleans the caches of every page, and a busy host takes its time.
const DEATH: Duration = Duration::from_secs(60);

fn end_process(pid: u32, ticks: u64) -> Result<(), UndoError> {
    let Some(pidfd) = open_process(pid, ticks) else {
        return Ok(());
    };
    // ESRCH only: it has just ended by itself.
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let timeout = Timespec {
        tv_sec: DEATH.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
    match rustix::event::poll(&mut poll, Some(&timeout)) {
        Ok(0) | Err(_) => Err(UndoError::Process(pid)),
        Ok(_) => Ok(()),
    }
}

/// Whether what was made for a slot has been undone already.
fn ended_later(records: &[Record], of_slot: u8) -> bool {
    let after = records.get(1..).unwrap_or_default();
    after
        .iter()
        .any(|record| matches!(record, Record::NicGone { slot } if *slot == of_slot))
}

fn end_nic(nic: &Nic) -> Result<(), UndoError> {
    network::undo(nic).map_err(|error| UndoError::Network {
        interface: nic.interface.clone(),
        message: crate::user::one_line(&error),
    })
}

/// Whether the last word about a layer is that it stays.
fn kept_later(records: &[Record], of_store: &Path, of_container: &str) -> bool {
    let mut words = records.iter().rev().filter_map(|record| match record {
        Record::Layer {
            store,
            container,
            keep,
        } if store == of_store && container == of_container => Some(*keep),
        Record::Layer { .. }
        | Record::Follower { .. }
        | Record::Monitor { .. }
        | Record::Socket { .. }
        | Record::Member { .. }
        | Record::Nic(_)
        | Record::NicGone { .. } => None,
    });
    words.next() == Some(true)
}

fn remove_socket(path: &Path) -> Result<(), UndoError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(UndoError::Io {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_layer(store: &Path, container: &str) -> Result<(), UndoError> {
    crate::pod::rootfs::remove_layer(store, container).map_err(|error| UndoError::Layer {
        container: container.to_owned(),
        message: crate::user::one_line(&error),
    })
}

/// Takes a container out of a living pod of another owner: processes, mounts, directory. Must run on a thread alone in its
/// process, outside the pod's mount namespace.
///
/// # Errors
/// The first thing that could not be undone.
pub fn leave(pod: &PodDir, container: &str) -> Result<(), UndoError> {
    let place = pod.share().join(container);
    let io = |source| UndoError::Io {
        path: place.clone(),
        source,
    };
    let Some(monitor) = monitor_of(pod) else {
        return Ok(());
    };
    forget(pod, container)?;
    let own = File::open("/proc/self/ns/mnt").map_err(io)?;
    if place::enter_namespace_of(monitor).is_ok() {
        let unmounted = place::unmount_below(&place);
        place::enter_namespace(&own).map_err(|error| io(io::Error::other(error)))?;
        unmounted.map_err(io)?;
    }
    remove(&place)?;
    // A Create that its caller, killed meanwhile, had still on the way finds no root file system from here on and fails.
    // One that was faster is found now.
    forget(pod, container)
}

fn forget(pod: &PodDir, container: &str) -> Result<(), UndoError> {
    crate::guest::delete_container(&pod.agent(), &pod.vsock(), container).map_err(|error| {
        UndoError::Member {
            container: container.to_owned(),
            message: crate::user::one_line(&error),
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{Journal, start_ticks},
        storage::Store,
    };
    use std::process::Child;

    /// A pod whose journal says `records`.
    fn pod(run: &Path, records: &[Record]) -> PodDir {
        let dir = PodDir::of(run, &"web".parse().unwrap());
        let journal = Journal::create(&dir).unwrap();
        let written = records.iter().map(|record| journal.record(record));
        written.for_each(Result::unwrap);
        dir
    }

    fn sleeper() -> (Child, u64) {
        let mut command = std::process::Command::new("sleep");
        let child = command.arg("1000").spawn().unwrap();
        let ticks = start_ticks(child.id()).unwrap();
        (child, ticks)
    }

    fn monitor(child: &Child, start_ticks: u64) -> Record {
        let pid = child.id();
        Record::Monitor { pid, start_ticks }
    }

    fn layer(store: &Path, keep: bool) -> Record {
        Record::Layer {
            store: store.to_owned(),
            container: "web".into(),
            keep,
        }
    }

    #[test]
    fn undo_ends_the_monitor_and_removes_the_directory() {
        let run = tempfile::tempdir().unwrap();
        let (mut child, ticks) = sleeper();
        let dir = pod(run.path(), &[monitor(&child, ticks)]);
        undo(&dir).unwrap();
        assert!(!dir.path().exists());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn undo_spares_a_process_that_only_has_the_same_id() {
        let run = tempfile::tempdir().unwrap();
        let (mut child, ticks) = sleeper();
        undo(&pod(run.path(), &[monitor(&child, ticks - 1)])).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn undo_twice_is_undo_once() {
        let run = tempfile::tempdir().unwrap();
        let dir = pod(run.path(), &[]);
        undo(&dir).unwrap();
        undo(&dir).unwrap();
    }

    #[test]
    fn a_layer_of_a_container_that_never_ran_goes() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("store");
        let store = Store::open(&root).unwrap();
        let announce = || Ok::<_, crate::storage::StorageError>(());
        store.reserve("web", announce).unwrap();
        undo(&pod(temp.path(), &[layer(&root, false)])).unwrap();
        assert!(!root.join("containers/web").exists());
    }

    #[test]
    fn the_last_word_about_a_layer_counts() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("store");
        let store = Store::open(&root).unwrap();
        let announce = || Ok::<_, crate::storage::StorageError>(());
        store.reserve("web", announce).unwrap();
        undo(&pod(
            temp.path(),
            &[layer(&root, false), layer(&root, true)],
        ))
        .unwrap();
        assert!(root.join("containers/web").exists());
    }
}
