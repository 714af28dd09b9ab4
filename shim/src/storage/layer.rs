//! One layer into the store: unpacked by whoever is first, checked against both of its digests, named when it is whole.

use std::fs::{self, Permissions};
use std::io::{self, BufReader, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::io::Errno;

use super::compression::Decoder;
use super::digest::{Digest, HashingReader};
use super::error::LayerError;
use super::lock::Lock;
use super::lower::LowerView;
use super::manifest::LayerBlob;
use super::member::Members;
use super::remove::remove_tree;
use super::source::Source;
use super::store::{Store, lock_path};
use super::unpack::{UnpackError, Unpacked, unpack};

const BUFFER_BYTES: usize = 128 << 10;

impl Store {
    /// The directory of one layer, unpacked now if it is not there yet.
    pub(super) fn layer(
        &self,
        source: &Source,
        blob: &LayerBlob,
        below: &[PathBuf],
        chain: Digest,
        label: &str,
    ) -> Result<PathBuf, LayerError> {
        let hex = blob.diff_id.hex();
        let alone = self.layers_dir().join(&hex);
        let chained = self.layers_dir().join(format!("{hex}.{}", chain.hex()));
        let present = || {
            [&alone, &chained]
                .into_iter()
                .find(|path| path.is_dir())
                .cloned()
        };
        if let Some(path) = present() {
            return Ok(path);
        }
        let partial = self.tmp_dir().join(&hex);
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
        let raw = HashingReader::new(self.halt().reader(bar.wrap_read(blob.reader)));
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
                    store: self.root().into(),
                }
            }
            _ => LayerError::Unpack(error),
        }
    }

    fn write_error(&self, source: io::Error) -> LayerError {
        if is_full(&source) {
            LayerError::NoSpace {
                store: self.root().into(),
            }
        } else {
            LayerError::Store(source)
        }
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

fn make_empty(path: &Path) -> io::Result<()> {
    remove_tree(path)?;
    fs::create_dir(path)?;
    // The root directory of the image, unless the layer says otherwise; the umask had its say in create_dir.
    fs::set_permissions(path, Permissions::from_mode(0o755))
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
