//! A container's root file system on the host: an image's layers under a writable one, from the image store.

use std::path::Path;

use super::{
    ContainerId,
    spec::{ImageDefaults, ResolvedUser},
};
use crate::storage::{
    Image, ImageRef, RootFs, RootFsError, StorageError, Store, UserError, WritableLayer,
    resolve_user,
};

/// Why a root file system could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The image or the store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The overlay.
    #[error(transparent)]
    Mount(#[from] RootFsError),
    /// The user is not in the image.
    #[error(transparent)]
    User(#[from] UserError),
    /// A container of that name was run without `--rm`.
    #[error(
        "the name {0} is taken by a container that has ended: `vmbox rm {0}` removes what it wrote"
    )]
    NameTaken(ContainerId),
}

/// A container's place in the image store: made before the VM, filled while it boots.
#[derive(Debug)]
pub struct Place {
    store: Store,
    writable: WritableLayer,
}

impl Place {
    /// The place of `id` in the store at `root`.
    ///
    /// # Errors
    /// The store can't be used, or another container left something there.
    pub fn of(root: &Path, id: &ContainerId) -> Result<Self, PrepareError> {
        let store = Store::open(root)?;
        let writable = store.container(id.as_str())?;
        if writable.upper.exists() {
            return Err(PrepareError::NameTaken(id.clone()));
        }
        Ok(Self { store, writable })
    }

    /// Brings the image into the store, if it is not there yet, and mounts it with the writable layer on `target`.
    ///
    /// # Errors
    /// The image can't be used, or the kernel refuses the overlay.
    pub fn fill(&self, image: &ImageRef, target: &Path) -> Result<ImageDefaults, PrepareError> {
        let image = self.store.prepare(image)?;
        // Unmounted with the pod's mount namespace.
        RootFs::mount(&image.layers, &self.writable, target)?.keep();
        Ok(defaults(image))
    }
}

/// Looks a user up in the image's own `/etc/passwd` and `/etc/group`.
///
/// # Errors
/// There is no such user or group.
pub fn user(rootfs: &Path, name: &str) -> Result<ResolvedUser, PrepareError> {
    let user = resolve_user(rootfs, name)?;
    Ok(ResolvedUser {
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
        home: Some(user.home),
    })
}

/// Removes a container's writable layer.
///
/// # Errors
/// The store can't be opened, or the layer not be removed.
pub fn remove_layer(store: &Path, container: &str) -> Result<(), StorageError> {
    Store::open(store)?.remove_container(container)
}

fn defaults(image: Image) -> ImageDefaults {
    let config = image.config;
    ImageDefaults {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        working_dir: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
    }
}
