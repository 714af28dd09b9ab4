//! Images on the host: references, the content-addressed store of unpacked layers, overlay mounts, users of a root file system.
//!
//! ```text
//! IMAGE ─ImageRef::parse─► ImageRef ─Store::prepare─► Image{layers, config} ─RootFs::mount─► merged tree
//!
//! <store>/layers/<diff id>             a layer in overlayfs form, complete once it has this name
//! <store>/layers/<diff id>.<chain id>  a layer with copies from lower ones (hard links to their files, their directories)
//! <store>/tmp/<diff id>[.lock]         a layer that is being unpacked
//! <store>/tmp/removed-<layer>[.lock]   a layer that is being removed
//! <store>/containers/<id>/{upper,work} what a container wrote
//! <store>/containers/<id>/layers       names of the layers below it
//! ```

mod attributes;
mod beneath;
mod collect;
mod compression;
mod contents;
mod digest;
mod error;
mod halt;
mod image_ref;
mod layer;
mod lock;
mod lower;
mod manifest;
mod member;
mod pax;
mod remove;
mod rootfs;
mod source;
mod store;
mod unpack;
mod user;

#[cfg(test)]
mod tests;

pub use beneath::make_dir_all;
pub use collect::Collected;
pub use digest::{Digest, DigestError};
pub use error::{ImageError, LayerError, StorageError};
pub use halt::Halt;
pub use image_ref::{ImageRef, ImageRefError};
pub use rootfs::{RootFs, RootFsError};
pub use store::{DEFAULT_STORE, Image, ImageConfig, Store, WritableLayer};
pub use unpack::UnpackError;
pub use user::{User, UserError, resolve_user};

/// Marks a directory that hides what lower layers have (Documentation/filesystems/overlayfs.rst).
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Marks a layer whose archive had a member for the root directory itself, so that its attributes count.
const EXPLICIT_ROOT_XATTR: &str = "trusted.vmbox.root";
