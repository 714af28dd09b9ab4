//! What engines find where they look for a container's files: the mount namespace of its keeper. They enter the one of
//! the container's pid (`podman cp`), or look below `/proc/<pid>/root`. What is there is the container's, never the host's.
//!
//! ```text
//! rootfs ─┬─ binds of the host      the same files that the guest has
//!         ├─ /proc                  the keeper's, read-only
//!         └─ tmpfs, devpts, …       empty and read-only: the guest's own can't be shown
//! ```
//! runc's containers are in such a namespace anyway. Here it is made for those who look, and goes with the keeper.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
    },
};
use serde::{Deserialize, Serialize};

use crate::pod::{
    binds::{HostBind, ReadOnly},
    design::{GuestSpec, guest_path},
    idmap::IdMap,
    place::{self, PlaceError},
    tree::Tree,
};

/// Whose files a keeper shows.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// Those of a new container.
    Own(Files),
    /// What this process shows: the keeper of the container in which another process is executed.
    Of(u32),
}

/// What a container's files are made of on the host.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// A directory to mount on for a moment.
    stage: PathBuf,
    rootfs: PathBuf,
    read_only: bool,
    mounts: Vec<Shown>,
}

/// A mount of the container, in the order of its spec.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shown {
    destination: PathBuf,
    what: What,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// Of the host, and in the guest by the share.
    Bind {
        source: PathBuf,
        recursive: bool,
        read_only: ReadOnly,
        ids: Option<IdMap>,
    },
    Proc,
    /// In the guest's memory.
    Guests,
}

impl Files {
    /// Of a container whose directory is `dir`.
    pub fn of(dir: &Path, rootfs: &Path, guest: &GuestSpec) -> Self {
        let root = guest.spec.root().as_ref();
        let mounts = guest.spec.mounts().iter().flatten().map(|mount| {
            let is_source = |bind: &&HostBind| mount.source() == &Some(guest_path(&bind.target));
            let what = match guest.binds.iter().find(is_source) {
                Some(bind) => What::Bind {
                    source: bind.source.clone(),
                    recursive: bind.recursive,
                    read_only: bind.read_only,
                    ids: bind.ids.clone(),
                },
                None if mount.typ().as_deref() == Some("proc") => What::Proc,
                None => What::Guests,
            };
            Shown {
                destination: mount.destination().clone(),
                what,
            }
        });
        Self {
            stage: dir.to_owned(),
            rootfs: rootfs.to_owned(),
            read_only: root.and_then(|root| root.readonly()).unwrap_or(false),
            mounts: mounts.collect(),
        }
    }

    /// Makes them the root of a new mount namespace, which has nothing else and which unmounting on the host still reaches.
    fn enter(&self) -> Result<(), PlaceError> {
        place::enter_private_namespace()?;
        let root = Tree::open(&HostBind {
            source: self.rootfs.clone(),
            target: self.stage.clone(),
            recursive: true,
            read_only: if self.read_only {
                ReadOnly::All
            } else {
                ReadOnly::Nothing
            },
            ids: None,
        })?;
        let stage = open(CWD, &self.stage, ResolveFlags::empty());
        let stage = stage.map_err(|error| failed(&self.rootfs, &self.stage, error))?;
        root.attach_to(&stage, &self.stage)?;
        for mount in &self.mounts {
            mount.attach(root.as_fd())?;
        }
        pivot(&root).map_err(|error| failed(&self.rootfs, Path::new("/"), error))
    }
}

impl Shown {
    /// Mounts it below `root`, as the container would find its place. One below the guest's own has none here.
    fn attach(&self, root: &OwnedFd) -> Result<(), PlaceError> {
        let confined = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let place = match open(root, &self.destination, confined) {
            Err(Errno::NOENT) => return Ok(()),
            place => place,
        };
        let refused = |error| failed(Path::new("a mount"), &self.destination, error);
        let place = place.map_err(refused)?;
        let tree = match &self.what {
            What::Bind {
                source,
                recursive,
                read_only,
                ids,
            } => Tree::open(&HostBind {
                source: source.clone(),
                target: self.destination.clone(),
                recursive: *recursive,
                read_only: *read_only,
                ids: ids.clone(),
            })?,
            What::Proc => Tree::of(untouchable("proc").map_err(refused)?, "proc"),
            What::Guests => Tree::of(untouchable("tmpfs").map_err(refused)?, "tmpfs"),
        };
        tree.attach_to(&place, &self.destination)
    }
}

fn open(
    dir: impl std::os::fd::AsFd,
    path: &Path,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(dir, path, flags, Mode::empty(), resolve)
}

fn failed(what: &Path, target: &Path, error: Errno) -> PlaceError {
    PlaceError::Mount {
        what: what.to_owned(),
        target: target.to_owned(),
        source: error.into(),
    }
}

/// A new file system that nobody can write to. A `proc` is that of our PID namespace.
fn untouchable(kind: &str) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes a mounted tree the root, and lets go of all that was there (pivot_root(2), "pivot_root(".", ".")").
fn pivot(root: &Tree) -> rustix::io::Result<()> {
    let old = open(CWD, Path::new("/"), ResolveFlags::empty())?;
    rustix::process::fchdir(root.as_fd())?;
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(&old)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

impl View {
    /// Makes it this process's own, which has one thread and needs no path of the host any more.
    ///
    /// # Errors
    /// Something can't be mounted, or the process is gone.
    pub fn enter(&self) -> Result<(), PlaceError> {
        match self {
            Self::Own(files) => files.enter(),
            Self::Of(pid) => place::enter_namespace_of(*pid),
        }
    }

    /// For a keeper.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// As [`Self::to_bytes`] wrote it.
    ///
    /// # Errors
    /// It didn't.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::design::for_guest;

    fn files(mounts: serde_json::Value) -> Files {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs", "readonly": true},
            "mounts": mounts,
        });
        let spec = serde_json::from_value(spec).unwrap();
        let guest = for_guest(spec, &"web".parse().unwrap(), Path::new("/bundle")).unwrap();
        Files::of(Path::new("/run/vmbox/web"), Path::new("/r"), &guest)
    }

    #[test]
    fn what_the_host_has_is_shown_and_the_rest_is_not() {
        let files = files(serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/v", "type": "bind", "source": "volume", "options": ["rbind", "ro"]},
        ]));
        assert!(files.read_only);
        let volume = What::Bind {
            source: "/bundle/volume".into(),
            recursive: true,
            read_only: ReadOnly::Top,
            ids: None,
        };
        let seen: Vec<_> = files.mounts.iter().map(|mount| &mount.what).collect();
        assert_eq!(seen, [&What::Proc, &What::Guests, &volume]);
    }

    #[test]
    fn a_keeper_reads_what_it_is_sent() {
        let view = View::Own(files(serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ])));
        let bytes = view.to_bytes().unwrap();
        assert_eq!(View::from_bytes(&bytes).unwrap(), view);
    }
}
