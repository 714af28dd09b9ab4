//! Removing layers that nothing uses.
//!
//! A container says in `containers/<id>/layers` what it is mounted on, before it is, and for as long as its place is there.
//! From the search for an image's layers until that is said, a shared lock on `layers/` holds them; the collector has it alone
//! while it looks and takes layers away. It only renames under the lock: removing, which takes long, comes after.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::StorageError;
use super::lock::Lock;
use super::remove::remove_tree;
use super::store::{Image, Store, WritableLayer, lock_path};

/// What a collection did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Names of the layers that were removed.
    Layers(Vec<String>),
    /// Nothing: an image is being prepared, and what it needs is not known yet.
    Busy,
}

/// A layer taken away, with the lock that keeps others from removing it too.
struct Doomed {
    name: String,
    path: PathBuf,
    _lock: Lock,
}

impl Store {
    /// Writes down that `writable` is about to be mounted on the layers of `image`.
    pub fn claim(&self, writable: &WritableLayer, image: &Image) -> Result<(), StorageError> {
        let own = self.layers_dir();
        let names = image.layers.iter().filter_map(|layer| {
            let name = layer.strip_prefix(&own).ok()?;
            Some(format!("{}\n", name.display()))
        });
        let path = writable.upper.with_file_name(CLAIM);
        fs::write(&path, names.collect::<String>())
            .map_err(|source| StorageError::Store { path, source })
    }

    /// Removes the layers that no container is, or was, mounted on, and what killed processes left half done. Waits for nobody.
    pub fn collect(&self) -> Result<Collected, StorageError> {
        self.collect_layers().map_err(|source| StorageError::Store {
            path: self.root().into(),
            source,
        })
    }

    fn collect_layers(&self) -> io::Result<Collected> {
        let Some(alone) = lock_alone(&self.layers_dir())? else {
            return Ok(Collected::Busy);
        };
        self.sweep()?;
        let doomed = self.take_away(&self.used_layers()?)?;
        drop(alone);
        for layer in &doomed {
            remove_tree(&layer.path)?;
        }
        let names = doomed.into_iter().map(|layer| layer.name);
        Ok(Collected::Layers(names.collect()))
    }

    fn used_layers(&self) -> io::Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        for container in fs::read_dir(self.root().join("containers"))? {
            match fs::read_to_string(container?.path().join(CLAIM)) {
                Ok(names) => used.extend(names.lines().map(str::to_owned)),
                // It has no layers yet, and will look for them when we are done; or it is just being removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(used)
    }

    fn take_away(&self, used: &BTreeSet<String>) -> io::Result<Vec<Doomed>> {
        let mut doomed = Vec::new();
        for layer in fs::read_dir(self.layers_dir())? {
            let layer = layer?;
            let name = layer.file_name().to_string_lossy().into_owned();
            if used.contains(&name) {
                continue;
            }
            // In tmp/, where the next process finishes what a killed one has begun.
            let path = self
                .tmp_dir()
                .join(format!("removed-{}", name.replace('.', "-")));
            let lock = Lock::wait(&lock_path(&path))?;
            fs::rename(layer.path(), &path)?;
            doomed.push(Doomed {
                name,
                path,
                _lock: lock,
            });
        }
        Ok(doomed)
    }
}

/// The file in a container's place that names its layers, one a line.
const CLAIM: &str = "layers";

fn lock_alone(dir: &Path) -> io::Result<Option<File>> {
    let dir = File::open(dir)?;
    match rustix::io::retry_on_intr(|| flock(&dir, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
