//! The content-addressed store: every layer is unpacked once, checked against both of its digests, and never seen half done.

use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FlockOperation, flock, lgetxattr};
use rustix::io::Errno;

use super::compression::Decoder;
use super::digest::{Digest, HashingReader};
use super::error::{LayerError, StorageError};
use super::halt::Halt;
use super::image_ref::ImageRef;
use super::lock::Lock;
use super::lower::LowerView;
use super::manifest::{self, LayerBlob, Manifest};
use super::member::Members;
use super::remove::remove_tree;
use super::rootfs::is_overlay;
use super::source::Source;
use super::unpack::{UnpackError, Unpacked, unpack};
use super::{EXPLICIT_ROOT_XATTR, OPAQUE_XATTR};

/// Where images are kept unless the user says otherwise.
pub const DEFAULT_STORE: &str = "/var/lib/vmbox";

const BUFFER_BYTES: usize = 128 << 10;

/// An image that is ready to be mounted.
#[derive(Clone, Debug)]
pub struct Image {
    /// Directories for overlayfs, lowest first; never empty.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
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
            });
        }
        if is_overlay(&self.root).map_err(|source| StorageError::Store {
            path: self.root.clone(),
            source,
        })? {
            return Err(StorageError::OnOverlay(self.root.clone()));
        }
        self.sweep().map_err(|source| StorageError::Store {
            path: self.root.clone(),
            source,
        })?;
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
                Source::archive(file, &self.root.join("tmp"), &self.halt).map_err(failed)?
            }
            ImageRef::Layout { .. } | ImageRef::RootDir(_) => Source::layout(path),
        };
        let manifest = manifest::find(&source, tag).map_err(failed)?;
        let layers = self.layers(&image, &source, &manifest)?;
        Ok(Image {
            layers,
            config: ImageConfig::of(&manifest),
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

    fn layer(
        &self,
        source: &Source,
        blob: &LayerBlob,
        below: &[PathBuf],
        chain: Digest,
        label: &str,
    ) -> Result<PathBuf, LayerError> {
        let hex = blob.diff_id.hex();
        let alone = self.root.join("layers").join(&hex);
        let chained = self
            .root
            .join("layers")
            .join(format!("{hex}.{}", chain.hex()));
        let present = || {
            [&alone, &chained]
                .into_iter()
                .find(|path| path.is_dir())
                .cloned()
        };
        if let Some(path) = present() {
            return Ok(path);
        }
        let partial = self.root.join("tmp").join(&hex);
        let _lock = Lock::wait(&lock_path(&partial)).map_err(|source| self.write_error(source))?;
        // Another process may have done it while we waited.
        if let Some(path) = present() {
            return Ok(path);
        }
        let done = self
            .fill(source, blob, below, &partial, label)
            .and_then(|unpacked| {
                let path = if unpacked.depends_on_lower {
                    chained
                } else {
                    alone
                };
                fs::rename(&partial, &path).map_err(|source| self.write_error(source))?;
                Ok(path)
            });
        if done.is_err()
            && let Err(error) = remove_tree(&partial)
        {
            tracing::warn!(path = ?partial, %error, "a half unpacked layer stays behind");
        }
        done
    }

    /// Unpacks a layer to `partial` and checks its digests.
    fn fill(
        &self,
        source: &Source,
        layer: &LayerBlob,
        below: &[PathBuf],
        partial: &Path,
        label: &str,
    ) -> Result<Unpacked, LayerError> {
        make_empty(partial).map_err(|source| self.write_error(source))?;
        let lower = LowerView::open(below).map_err(LayerError::Store)?;
        let blob = source.open(&layer.name).map_err(LayerError::Blob)?;
        if let Some((_, expected)) = layer.blob
            && expected != blob.length
        {
            let (blob, actual) = (layer.name.clone(), blob.length);
            return Err(LayerError::BlobLength {
                blob,
                expected,
                actual,
            });
        }
        let bar = progress(blob.length, label);
        let raw = HashingReader::new(self.halt.reader(bar.wrap_read(blob.reader)));
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, raw);
        let unpacked = decode_and_unpack(&mut raw, partial, &lower);
        bar.finish_and_clear();
        // A damaged blob mostly shows as nonsense in its tar: then the digest is the better news.
        if matches!(unpacked, Ok(_) | Err(UnpackError::Read(_)))
            && let Some((expected, _)) = layer.blob
            && let Ok(actual) = raw.get_mut().digest()
            && actual != expected
        {
            return Err(LayerError::BlobDigest {
                blob: layer.name.clone(),
                expected,
                actual,
            });
        }
        let (unpacked, actual) = unpacked.map_err(|error| self.unpack_error(error))?;
        if actual != layer.diff_id {
            return Err(LayerError::DiffId {
                expected: layer.diff_id,
                actual,
            });
        }
        Ok(unpacked)
    }

    fn unpack_error(&self, error: UnpackError) -> LayerError {
        match &error {
            UnpackError::Write { source, .. } | UnpackError::Prepare(source) if is_full(source) => {
                LayerError::NoSpace {
                    store: self.root.clone(),
                }
            }
            _ => LayerError::Unpack(error),
        }
    }

    fn write_error(&self, source: io::Error) -> LayerError {
        if is_full(&source) {
            LayerError::NoSpace {
                store: self.root.clone(),
            }
        } else {
            LayerError::Store(source)
        }
    }

    /// Removes what processes that were killed while unpacking left.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("tmp"))? {
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

fn decode_and_unpack(
    raw: impl io::BufRead,
    into: &Path,
    lower: &LowerView,
) -> Result<(Unpacked, Digest), UnpackError> {
    let content = HashingReader::new(Decoder::new(raw).map_err(UnpackError::Read)?);
    let mut members = Members::new(content);
    let unpacked = unpack(&mut members, into, lower)?;
    // What follows the end of the archive counts for the digest too.
    let digest = members.into_inner().digest().map_err(UnpackError::Read)?;
    Ok((unpacked, digest))
}

/// Locks a directory of the store until the descriptor is closed.
fn lock_dir(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let dir = File::open(path)?;
    rustix::io::retry_on_intr(|| flock(&dir, operation))?;
    Ok(dir)
}

fn lock_path(partial: &Path) -> PathBuf {
    partial.with_extension("lock")
}

fn make_empty(path: &Path) -> io::Result<()> {
    remove_tree(path)?;
    fs::create_dir(path)?;
    // The root directory of the image, unless the layer says otherwise; the umask had its say in create_dir.
    fs::set_permissions(path, Permissions::from_mode(0o755))
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

fn is_full(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOSPC | Errno::DQUOT)
    )
}

fn progress(bytes: u64, label: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes} {eta}");
    let bar = ProgressBar::new(bytes).with_prefix(label.to_owned());
    // The template is constant; without it the default style does.
    if let Ok(style) = style {
        bar.with_style(style)
    } else {
        bar
    }
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
