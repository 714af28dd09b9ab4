//! The content-addressed store: every layer is unpacked once, checked against both of its digests, and never seen half done.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock, lgetxattr};

use super::digest::Digest;
use super::error::StorageError;
use super::halt::Halt;
use super::image_ref::ImageRef;
use super::lock::Lock;
use super::manifest::{self, Manifest};
use super::remove::remove_tree;
use super::rootfs::is_overlay;
use super::source::Source;
use super::{EXPLICIT_ROOT_XATTR, OPAQUE_XATTR};

/// Where images are kept unless the user says otherwise.
pub const DEFAULT_STORE: &str = "/var/lib/vmbox";

/// An image that is ready to be mounted. As long as it lives, nobody collects its layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// Directories for overlayfs, lowest first; never empty.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
    _held: Option<Arc<File>>,
}

/// What the image says about running it (OCI image-spec config.md#properties); all empty for a plain root directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: Option<String>,
    /// `user[:group]`, names or numbers, for [`super::resolve_user`].
    pub user: Option<String>,
    /// A name such as SIGTERM or a number.
    pub stop_signal: Option<String>,
    /// Paths that the image wants to be volumes.
    pub volumes: Vec<String>,
}

/// The directory of layers and of what containers write.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    halt: Halt,
}

/// Where a container's writes go: overlayfs' upper and work directory, made by [`super::RootFs::mount`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritableLayer {
    pub upper: PathBuf,
    pub work: PathBuf,
}

impl Store {
    /// Opens the store in `root`, making it if it isn't there. Only root may look inside: layers hold setuid files.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError::Store {
            path: root.into(),
            source,
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for directory in ["layers", "tmp", "containers"] {
            builder.create(root.join(directory)).map_err(failed)?;
        }
        // Absolute, because mounting resolves it later, perhaps from another directory.
        Ok(Self {
            root: fs::canonicalize(root).map_err(failed)?,
            halt: Halt::default(),
        })
    }

    /// A handle that makes [`Self::prepare`] of this store, and of clones of it, give up.
    pub fn halt(&self) -> Halt {
        self.halt.clone()
    }

    /// Makes an image ready: unpacks what layers the store doesn't have yet. Shows progress if stderr is a terminal.
    ///
    /// # Errors
    /// Nothing of a layer that fails stays behind; layers that were finished before it stay and are used by the next try.
    pub fn prepare(&self, reference: &ImageRef) -> Result<Image, StorageError> {
        if let ImageRef::RootDir(dir) = reference {
            let failed = |source| StorageError::RootDir {
                path: dir.clone(),
                source,
            };
            let dir = fs::canonicalize(dir).map_err(failed)?;
            return Ok(Image {
                layers: vec![dir],
                config: ImageConfig::default(),
                _held: None,
            });
        }
        if is_overlay(&self.root).map_err(|source| StorageError::Store {
            path: self.root.clone(),
            source,
        })? {
            return Err(StorageError::OnOverlay(self.root.clone()));
        }
        let unusable = |source| StorageError::Store {
            path: self.root.clone(),
            source,
        };
        let held = lock_dir(&self.layers_dir(), FlockOperation::LockShared).map_err(unusable)?;
        self.sweep().map_err(unusable)?;
        let (path, tag) = match reference {
            ImageRef::Layout { dir: path, tag } | ImageRef::Archive { file: path, tag } => {
                (path, tag.as_deref())
            }
            ImageRef::RootDir(path) => (path, None),
        };
        let image = path.display().to_string();
        let failed = |source| StorageError::Image {
            image: image.clone(),
            source,
        };
        let source = match reference {
            ImageRef::Archive { file, .. } => {
                Source::archive(file, &self.tmp_dir(), &self.halt).map_err(failed)?
            }
            ImageRef::Layout { .. } | ImageRef::RootDir(_) => Source::layout(path),
        };
        let manifest = manifest::find(&source, tag).map_err(failed)?;
        let layers = self.layers(&image, &source, &manifest)?;
        Ok(Image {
            layers,
            config: ImageConfig::of(&manifest),
            _held: Some(Arc::new(held)),
        })
    }

    /// Makes `containers/<id>`, where container `id` writes; `announce` is called just before, once it is sure that it will be
    /// this caller's. `None`: it is there already, and somebody else's.
    ///
    /// # Errors
    /// What `announce` says; then, and on all other errors, nothing was made.
    pub fn reserve<E: From<StorageError>>(
        &self,
        id: &str,
        announce: impl FnOnce() -> Result<(), E>,
    ) -> Result<Option<WritableLayer>, E> {
        let dir = self.container_dir(id)?;
        let failed = |source| StorageError::Store {
            path: dir.clone(),
            source,
        };
        // Between the look and the making nobody else takes it.
        let _turn = lock_dir(&self.root.join("containers"), FlockOperation::LockExclusive)
            .map_err(failed)?;
        if fs::symlink_metadata(&dir).is_ok() {
            return Ok(None);
        }
        announce()?;
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(failed)?;
        Ok(Some(WritableLayer {
            upper: dir.join("upper"),
            work: dir.join("work"),
        }))
    }

    /// Removes all that container `id` wrote; fine if there is nothing. Its root file system must not be mounted any more.
    pub fn remove_container(&self, id: &str) -> Result<(), StorageError> {
        let path = self.container_dir(id)?;
        remove_tree(&path).map_err(|source| StorageError::Remove { path, source })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn container_dir(&self, id: &str) -> Result<PathBuf, StorageError> {
        let fits = !id.is_empty()
            && id.len() <= 255
            && id != "."
            && id != ".."
            && !id.contains(['/', '\0']);
        if fits {
            Ok(self.root.join("containers").join(id))
        } else {
            Err(StorageError::ContainerId(id.into()))
        }
    }

    fn layers(
        &self,
        image: &str,
        source: &Source,
        manifest: &Manifest,
    ) -> Result<Vec<PathBuf>, StorageError> {
        let mut layers: Vec<PathBuf> = Vec::new();
        let mut chain: Option<Digest> = None;
        for (index, blob) in manifest.layers.iter().enumerate() {
            let on = chain.map_or(blob.diff_id, |below| blob.diff_id.chained_on(&below));
            let label = format!("unpacking layer {} of {}", index + 1, manifest.layers.len());
            let layer = self
                .layer(source, blob, &layers, on, &label)
                .map_err(|source| StorageError::Layer {
                    image: image.into(),
                    layer: blob.diff_id,
                    source: Box::new(source),
                })?;
            // overlayfs doesn't look for this mark on a layer's root, so what it hides is left out.
            if has_mark(&layer, OPAQUE_XATTR) {
                layers.clear();
            }
            layers.push(layer);
            chain = Some(on);
        }
        Ok(layers)
    }

    /// Removes what processes that were killed while unpacking, or removing, a layer left.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.tmp_dir())? {
            let path = entry?.path();
            let partial = if path.extension().is_some_and(|e| e == "lock") {
                path.with_extension("")
            } else {
                path
            };
            if let Some(_lock) = Lock::try_now(&lock_path(&partial))? {
                remove_tree(&partial)?;
            }
        }
        Ok(())
    }
}

/// Locks a directory of the store until the descriptor is closed.
fn lock_dir(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let dir = File::open(path)?;
    rustix::io::retry_on_intr(|| flock(&dir, operation))?;
    Ok(dir)
}

/// The file that locks the unpacking, or removing, of something in `tmp/`.
pub(super) fn lock_path(partial: &Path) -> PathBuf {
    partial.with_extension("lock")
}

/// Whether `path` has this extended attribute.
pub(super) fn has_mark(path: &Path, xattr: &str) -> bool {
    matches!(lgetxattr(path, xattr, &mut [0_u8; 2]), Ok(1))
}

/// The layer whose root directory has the last word about mode and owner of `/`.
pub(super) fn root_owner(layers: &[PathBuf]) -> Option<&PathBuf> {
    layers
        .iter()
        .rev()
        .find(|layer| has_mark(layer, EXPLICIT_ROOT_XATTR))
        .or(layers.first())
}

impl ImageConfig {
    fn of(manifest: &Manifest) -> Self {
        let Some(config) = manifest.config.config() else {
            return Self::default();
        };
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Self {
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            working_dir: given(config.working_dir()),
            user: given(config.user()),
            stop_signal: given(config.stop_signal()),
            volumes: config.volumes().clone().unwrap_or_default(),
        }
    }
}
