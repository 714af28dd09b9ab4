//! What can go wrong between an image reference and a mounted root file system.

use std::io;
use std::path::PathBuf;

use super::digest::{Digest, DigestError};
use super::unpack::UnpackError;

/// Why an image could not be made ready. Print the whole chain of sources: each adds what it knows.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot use the image store {path:?}")]
    Store { path: PathBuf, source: io::Error },
    #[error(
        "the image store {0:?} is on overlayfs, which can hold neither layers nor the writable layer of a container: \
         put it on ext4, xfs, btrfs or tmpfs"
    )]
    OnOverlay(PathBuf),
    #[error("image {image}")]
    Image { image: String, source: ImageError },
    #[error("layer {layer} of image {image}")]
    Layer {
        image: String,
        layer: Digest,
        source: Box<LayerError>,
    },
    #[error("root file system {path:?}")]
    RootDir { path: PathBuf, source: io::Error },
    #[error("container id {0:?} can't be a directory name")]
    ContainerId(String),
    #[error("cannot remove {path:?}")]
    Remove { path: PathBuf, source: io::Error },
}

/// Why an image's description could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {what}")]
    Read { what: String, source: io::Error },
    #[error("{what} is missing: the image is incomplete, save it again")]
    Missing { what: String },
    #[error("{what} has {bytes} bytes, more than any image description needs")]
    TooLarge { what: String, bytes: u64 },
    #[error("{what} is malformed")]
    Json {
        what: String,
        source: serde_json::Error,
    },
    #[error("{what} is damaged: expected digest {expected}, actual {actual}")]
    Digest {
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error(transparent)]
    BadDigest(DigestError),
    #[error(
        "this is no tar archive (gzip and zstd compression is fine): write the output of `docker save` to a file"
    )]
    NotArchive,
    #[error(
        "it holds neither index.json nor manifest.json: it is a tar, but no image (a root file system tar? unpack it and use dir:DIR)"
    )]
    NoIndex,
    #[error("it has no image named {tag:?}; it has: {known}")]
    NoTag { tag: String, known: String },
    #[error("it holds several images, so add :TAG; it has: {known}")]
    Ambiguous { known: String },
    #[error("it is for {found}, this machine is {wanted}")]
    Platform { found: String, wanted: String },
    #[error("it is no container image: {0}")]
    NotImage(String),
    #[error("it has no layers")]
    NoLayers,
    #[error("its manifest lists {manifest} layers but its configuration {config}")]
    LayerCount { manifest: usize, config: usize },
}

/// Why a layer could not be put into the store.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Blob(ImageError),
    #[error("the blob {blob} is damaged: expected digest {expected}, actual {actual}")]
    BlobDigest {
        blob: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("the blob {blob} is damaged: expected {expected} bytes, actual {actual}")]
    BlobLength {
        blob: String,
        expected: u64,
        actual: u64,
    },
    #[error(
        "its content is not what the image's configuration says: expected diff_id {expected}, actual {actual}"
    )]
    DiffId { expected: Digest, actual: Digest },
    #[error("the file system of {store:?} is full: make room or put the image store elsewhere")]
    NoSpace { store: PathBuf },
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("cannot put it into the store")]
    Store(#[source] io::Error),
}
