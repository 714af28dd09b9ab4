//! A container's root file system on the host: an image's layers under a writable one, from the image store.

use std::path::Path;

use oci_spec::runtime::Spec;

use super::{
    ContainerId,
    spec::{ImageDefaults, ResolvedUser},
};
use crate::storage::{
    Collected, Halt, Image, ImageRef, RootFs, RootFsError, StorageError, Store, UserError,
    WritableLayer, make_dir_all, resolve_user,
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
    /// Something that is no directory stands in the way, or the root file system can't be written to.
    #[error("make the working directory {path}")]
    WorkingDir {
        /// In the container.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is about to be made can't be written down.
    #[error("write the journal")]
    Journal(#[source] std::io::Error),
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
    /// Takes the place of `id` in the store at `root`; `announce` writes it down just before it is made.
    ///
    /// # Errors
    /// The store can't be used, it can't be written down, or another container left something there.
    pub fn take(
        root: &Path,
        id: &ContainerId,
        announce: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<Self, PrepareError> {
        let store = Store::open(root)?;
        let announce = || announce().map_err(PrepareError::Journal);
        match store.reserve(id.as_str(), announce)? {
            Some(writable) => Ok(Self { store, writable }),
            None => Err(PrepareError::NameTaken(id.clone())),
        }
    }

    /// A handle that makes [`Self::fill`] give up.
    pub fn halt(&self) -> Halt {
        self.store.halt()
    }

    /// Brings the image into the store, if it is not there yet, and mounts it with the writable layer on `target`.
    ///
    /// # Errors
    /// The image can't be used, or the kernel refuses the overlay.
    pub fn fill(&self, image: &ImageRef, target: &Path) -> Result<ImageDefaults, PrepareError> {
        let image = self.store.prepare(image)?;
        self.store.claim(&self.writable, &image)?;
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

/// Makes the working directory if it is missing, as Docker and runc do: mode 0755, owned by root, with symbolic links
/// followed as the container would. One below a mount is the guest's, which alone sees what is there.
///
/// # Errors
/// It can't be made.
pub fn make_working_dir(rootfs: &Path, spec: &Spec) -> Result<(), PrepareError> {
    let Some(process) = spec.process() else {
        return Ok(());
    };
    let path = process.cwd();
    let mut mounts = spec.mounts().iter().flatten();
    if mounts.any(|mount| path.starts_with(mount.destination())) {
        return Ok(());
    }
    make_dir_all(rootfs, path).map_err(|source| PrepareError::WorkingDir {
        path: path.clone(),
        source,
    })
}

/// Removes the layers of the store that no container uses; without a store there are none.
///
/// # Errors
/// The store can't be opened or read, or a layer not be removed.
pub fn collect_layers(store: &Path) -> Result<Collected, StorageError> {
    if !store.exists() {
        return Ok(Collected::Layers(Vec::new()));
    }
    Store::open(store)?.collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with_cwd(cwd: &str) -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["sh"], "cwd": cwd, "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        }))
        .unwrap()
    }

    #[test]
    fn a_missing_working_directory_is_made_in_the_container() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("link")).unwrap();
        make_working_dir(root.path(), &with_cwd("/link/a/b")).unwrap();
        assert!(root.path().join("real/a/b").is_dir());
        make_working_dir(root.path(), &with_cwd("/link/a/b")).unwrap();
    }

    #[test]
    fn a_working_directory_below_a_mount_is_the_guests() {
        let root = tempfile::tempdir().unwrap();
        make_working_dir(root.path(), &with_cwd("/proc/self")).unwrap();
        assert!(!root.path().join("proc").exists());
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let error = make_working_dir(root.path(), &with_cwd("/file/a")).unwrap_err();
        assert_eq!(error.to_string(), "make the working directory /file/a");
    }
}
