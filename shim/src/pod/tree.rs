//! Bind mounts by descriptor: a source is taken in one mount namespace and attached, perhaps read-only, in another.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    binds::HostBind,
    place::{Corner, PlaceError},
};

/// A bind mount's source, held as a mount of its own that is nowhere yet: it can be opened in one mount namespace, with
/// whatever is mounted below it there, and attached in another.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    source: PathBuf,
    is_dir: bool,
}

impl Tree {
    /// Takes hold of the source. Nothing is mounted before it is read-only, so that there is no moment in which the guest
    /// could write.
    ///
    /// # Errors
    /// The source is missing, or the kernel refuses.
    pub fn open(bind: &HostBind) -> Result<Self, PlaceError> {
        let metadata =
            fs::metadata(&bind.source).map_err(|_| PlaceError::NoSource(bind.source.clone()))?;
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if bind.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let open = || {
            let tree = open_tree(CWD, &bind.source, flags)?;
            if bind.read_only {
                make_read_only(&tree)?;
            }
            Ok(tree)
        };
        match open() {
            Ok(fd) => Ok(Self {
                fd,
                source: bind.source.clone(),
                is_dir: metadata.is_dir(),
            }),
            Err(source) => Err(PlaceError::Mount {
                what: bind.source.clone(),
                target: bind.target.clone(),
                source,
            }),
        }
    }

    /// A new file system, which is a directory.
    pub fn of(fd: OwnedFd, name: &str) -> Self {
        Self {
            fd,
            source: name.into(),
            is_dir: true,
        }
    }

    /// Its root, mounted or not.
    pub fn as_fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Mounts it in a container's corner, at a place that is made for it.
    ///
    /// # Errors
    /// The place is taken, or the kernel refuses.
    pub fn attach(&self, corner: &Corner, target: &Path) -> Result<(), PlaceError> {
        let spot = if self.is_dir {
            corner.make_dir(target)?
        } else {
            corner.write_file(target, b"")?
        };
        self.attach_to(&spot.fd, &spot.path)
    }

    /// Mounts it on what is open as `place`, which is called `target`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_to(&self, place: &OwnedFd, target: &Path) -> Result<(), PlaceError> {
        let both_open =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.fd, c"", place, c"", both_open).map_err(|error| PlaceError::Mount {
            what: self.source.clone(),
            target: target.to_owned(),
            source: error.into(),
        })
    }
}

/// Makes a mount and all below it read-only (mount_setattr(2)): MS_REMOUNT would leave out those below.
fn make_read_only(tree: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path a C string, and the size that of the structure, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::place::{bind, unmount_below};

    #[test]
    fn a_read_only_volume_is_read_only_below_its_submounts_too() {
        let share = tempfile::tempdir().unwrap();
        let source = tempfile::tempdir().unwrap();
        let below = source.path().join("below");
        fs::create_dir(&below).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("vmbox", &below, "tmpfs", flags, None).unwrap();
        let wanted = HostBind {
            source: source.path().into(),
            target: "web/volumes/0".into(),
            recursive: true,
            read_only: true,
        };
        let corner = Corner::make(share.path(), &"web".parse().unwrap()).unwrap();
        let bound = bind(&corner, Path::new("volumes/0"), &wanted);
        let volume = share.path().join("web/volumes/0");
        let written = ["file", "below/file"].map(|name| fs::write(volume.join(name), b"x"));
        let source_written = fs::write(below.join("file"), b"x");
        unmount_below(share.path()).unwrap();
        unmount_below(source.path()).unwrap();
        bound.unwrap();
        for result in written {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        source_written.unwrap();
    }
}
