//! The directories of containers, `<root>/<id>`, and who may work on them: one command at a time, by a lock.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use super::{error::OciError, record::Record};
use crate::pod::ContainerId;

/// The name of the file in which an ended container's exit status is; its keeper writes it.
pub const EXIT: &str = "exit";
/// The process of config.json, which `exec` starts from.
pub const PROCESS: &str = "process.json";

/// A container's directory that no other command works on until this is dropped.
#[derive(Debug)]
pub struct Held {
    /// `<root>/<id>`.
    pub dir: PathBuf,
    _lock: File,
}

/// Parses an id as runc does, but that it can't begin with what a file name should not.
///
/// # Errors
/// Not an id.
pub fn parse_id(text: &str) -> Result<ContainerId, OciError> {
    text.parse().map_err(|_| OciError::InvalidId)
}

impl Held {
    /// Makes the directory of a new container.
    ///
    /// # Errors
    /// The id is taken, or the file system refuses.
    pub fn claim(root: &Path, id: &ContainerId) -> Result<Self, OciError> {
        let dir = root.join(id.as_str());
        let failed = |source: io::Error| OciError::Host {
            what: format!("make {}", dir.display()),
            source,
        };
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o711)
            .create(root)
            .map_err(failed)?;
        // Held until the new directory is locked, so that `gc` never sees it without its owner.
        let birth = File::open(root).map_err(failed)?;
        flock(&birth, FlockOperation::LockShared).map_err(failed)?;
        match builder.recursive(false).create(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(OciError::Exists),
            Err(error) => Err(failed(error)),
            Ok(()) => {
                let lock = File::open(&dir).map_err(failed)?;
                flock(&lock, FlockOperation::LockExclusive).map_err(failed)?;
                Ok(Self { dir, _lock: lock })
            }
        }
    }

    /// Waits until no other command works on a container.
    ///
    /// # Errors
    /// There is none, or none any more.
    pub fn of(root: &Path, id: &ContainerId) -> Result<Self, OciError> {
        Self::at(root.join(id.as_str()))
    }

    /// As [`Self::of`], by its directory.
    ///
    /// # Errors
    /// There is none, or none any more.
    pub fn at(dir: PathBuf) -> Result<Self, OciError> {
        let lock = match File::open(&dir) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(OciError::NotExist),
            Err(source) => {
                return Err(OciError::Host {
                    what: format!("open {}", dir.display()),
                    source,
                });
            }
        };
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(OciError::host("lock the container"))?;
        // It may have been removed, and even made again, before it was locked.
        if is_at(&lock, &dir) {
            Ok(Self { dir, _lock: lock })
        } else {
            Err(OciError::NotExist)
        }
    }

    /// As [`Self::at`], unless another command works on it or it is gone.
    pub fn at_once(dir: PathBuf) -> Option<Self> {
        let lock = File::open(&dir).ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        is_at(&lock, &dir).then_some(Self { dir, _lock: lock })
    }

    /// What is remembered of it.
    ///
    /// # Errors
    /// Nothing: whoever created it did not get far.
    pub fn record(&self) -> Result<Record, OciError> {
        read(&self.dir)
    }

    /// Writes down what is to be remembered.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, record: &Record) -> Result<(), OciError> {
        record
            .write(&self.dir)
            .map_err(OciError::host("write the container's state"))
    }

    /// Removes the directory: the container is no more.
    ///
    /// # Errors
    /// As the file system says.
    pub fn remove(self) -> Result<(), OciError> {
        fs::remove_dir_all(&self.dir).map_err(OciError::host("remove the container's directory"))
    }
}

fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

fn is_at(open: &File, dir: &Path) -> bool {
    let (Ok(open), Ok(there)) = (open.metadata(), fs::symlink_metadata(dir)) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

fn read(dir: &Path) -> Result<Record, OciError> {
    match Record::read(dir) {
        Ok(record) => Ok(record),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(OciError::NotExist),
        Err(source) => Err(OciError::Host {
            what: format!("read the state in {}", dir.display()),
            source,
        }),
    }
}

/// What is remembered of a container, whatever is being done to it.
///
/// # Errors
/// There is none.
pub fn look_up(root: &Path, id: &str) -> Result<Record, OciError> {
    read(&root.join(parse_id(id)?.as_str()))
}

/// All containers below `root`, by id.
///
/// # Errors
/// `root` can't be read.
pub fn all(root: &Path) -> Result<Vec<Record>, OciError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(OciError::host(format!("read {}", root.display())))?,
    };
    let mut records: Vec<Record> = entries
        .flatten()
        .filter_map(|entry| Record::read(&entry.path()).ok())
        .collect();
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        "web".parse().unwrap()
    }

    #[test]
    fn an_id_is_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let held = Held::claim(root.path(), &id()).unwrap();
        assert!(matches!(
            Held::claim(root.path(), &id()),
            Err(OciError::Exists)
        ));
        held.remove().unwrap();
        Held::claim(root.path(), &id()).unwrap();
    }

    #[test]
    fn of_two_that_wait_for_a_container_one_finds_it_gone() {
        let root = tempfile::tempdir().unwrap();
        let held = Held::claim(root.path(), &id()).unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let root = root.path().to_owned();
                std::thread::spawn(move || Held::of(&root, &id()).and_then(Held::remove).is_ok())
            })
            .collect();
        drop(held);
        let winners = waiting.into_iter().map(|t| t.join().unwrap());
        assert_eq!(winners.filter(|won| *won).count(), 1);
    }

    #[test]
    fn a_container_that_is_not_there_does_not_exist() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            look_up(root.path(), "web"),
            Err(OciError::NotExist)
        ));
        assert!(matches!(
            look_up(root.path(), "../x"),
            Err(OciError::InvalidId)
        ));
        assert!(all(&root.path().join("none")).unwrap().is_empty());
    }
}
