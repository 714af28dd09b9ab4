//! A lock among processes that leaves no file behind.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held as long as this lives; the kernel releases it if the process dies.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until `path` is locked.
    pub fn wait(path: &Path) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::take(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Locks `path` unless somebody else has it.
    pub fn try_now(path: &Path) -> io::Result<Option<Self>> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    fn take(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match flock(&file, operation) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        // Whoever had it before removed the file: what we locked may no longer be what others open.
        let same = fs::metadata(path)
            .is_ok_and(|now| file.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
        Ok(same.then(|| Self {
            path: path.into(),
            _file: file,
        }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the file is closed, so that nobody locks it in between and then loses the name.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = ?self.path, %error, "a lock file stays behind");
        }
    }
}
