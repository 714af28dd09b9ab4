//! Bind mounts by descriptor: a source is taken in one mount namespace and attached, perhaps read-only or with other ids, in
//! another.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags, statx},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{
    binds::{HostBind, ReadOnly},
    idmap::IdMap,
    mount_table::{self, Mounted},
    place::{Corner, PlaceError},
    user_namespace,
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
    /// Takes hold of the source. Nothing is mounted before it is read-only and has its ids, so that there is no moment in
    /// which the guest could write, or as another.
    ///
    /// # Errors
    /// The source is missing, its ids can't be mapped, or the kernel refuses.
    pub fn open(bind: &HostBind) -> Result<Self, PlaceError> {
        let metadata =
            fs::metadata(&bind.source).map_err(|_| PlaceError::NoSource(bind.source.clone()))?;
        let refused = |source| PlaceError::Mount {
            what: bind.source.clone(),
            target: bind.target.clone(),
            source,
        };
        let fd = take(&bind.source, bind.recursive).map_err(refused)?;
        if let Some(ids) = &bind.ids {
            map_ids(&fd, &bind.source, ids)?;
        }
        let everywhere = bind.read_only == ReadOnly::All;
        if bind.read_only != ReadOnly::Nothing {
            change(&fd, &attribute(libc::MOUNT_ATTR_RDONLY), everywhere).map_err(refused)?;
        }
        Ok(Self {
            fd,
            source: bind.source.clone(),
            is_dir: metadata.is_dir(),
        })
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

fn take(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, source, flags)?)
}

/// Makes what is on disk as a containerID appear as its hostID, before anybody can see it: Linux has it so.
fn map_ids(tree: &OwnedFd, source: &Path, ids: &IdMap) -> Result<(), PlaceError> {
    let failed = |error| PlaceError::MapIds {
        what: source.to_owned(),
        source: error,
    };
    let namespace = user_namespace::with(ids).map_err(failed)?;
    let mut mapped = attribute(libc::MOUNT_ATTR_IDMAP);
    mapped.userns_fd = u64::from(namespace.as_raw_fd().unsigned_abs());
    let Err(error) = change(tree, &mapped, ids.recursive) else {
        return Ok(());
    };
    let unable = error.raw_os_error() == Some(libc::EINVAL);
    let found = unable.then(|| refusing(source, &mapped, ids.recursive));
    Err(match found.flatten() {
        Some(mounted) => PlaceError::NoMappedIds {
            what: source.to_owned(),
            mount_point: mounted.mount_point,
            kind: mounted.kind,
        },
        None => failed(error),
    })
}

/// The mount, of those at and below a source, that can't be changed so: the kernel only says that there is one.
fn refusing(source: &Path, attributes: &libc::mount_attr, recursive: bool) -> Option<Mounted> {
    let source = fs::canonicalize(source).ok()?;
    let top = statx(CWD, &source, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    let is_top = |mounted: &Mounted| mounted.id == top.stx_mnt_id;
    let refuses = |mounted: &Mounted| {
        let place = if is_top(mounted) {
            &source
        } else {
            &mounted.mount_point
        };
        take(place, false).is_ok_and(|tree| change(&tree, attributes, false).is_err())
    };
    let mut all = mount_table::read().ok()?.into_iter();
    all.find(|mounted| {
        let taken = is_top(mounted) || recursive && mounted.mount_point.starts_with(&source);
        taken && refuses(mounted)
    })
}

fn attribute(set: u64) -> libc::mount_attr {
    libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    }
}

/// Changes a mount, and all below it or not (mount_setattr(2)): MS_REMOUNT would leave out those below.
fn change(tree: &OwnedFd, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path a C string, and the size that of the structure, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(attributes),
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
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;
    use crate::pod::place::{bind, unmount_below};

    /// A directory with a tmpfs in it, which is unmounted in the end.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn mounted(name: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join(name);
            fs::create_dir_all(&place).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("vmbox", &place, "tmpfs", flags, None).unwrap();
            Self(dir)
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            unmount_below(self.0.path()).unwrap();
        }
    }

    fn wanted(source: &Path) -> HostBind {
        HostBind {
            source: source.into(),
            target: "web/volumes/0".into(),
            recursive: true,
            read_only: ReadOnly::Nothing,
            ids: None,
        }
    }

    /// The volume in its share, as the guest would have it.
    fn placed(share: &Path, wanted: &HostBind) -> Result<PathBuf, PlaceError> {
        let corner = Corner::make(share, &"web".parse().unwrap()).unwrap();
        bind(&corner, Path::new("volumes/0"), wanted)?;
        Ok(share.join("web/volumes/0"))
    }

    #[test]
    fn a_read_only_volume_is_so_below_if_that_was_asked_for() {
        let share = Disk::mounted("share");
        let source = Disk::mounted("below");
        let mut wanted = wanted(source.0.path());
        for (name, read_only) in [("all", ReadOnly::All), ("top", ReadOnly::Top)] {
            wanted.read_only = read_only;
            let share = share.0.path().join("share").join(name);
            fs::create_dir(&share).unwrap();
            let volume = placed(&share, &wanted).unwrap();
            let refused = |file| {
                let error = fs::write(volume.join(file), b"x").err()?;
                Some(error.kind())
            };
            let no = Some(io::ErrorKind::ReadOnlyFilesystem);
            let below = no.filter(|_| read_only == ReadOnly::All);
            assert_eq!([refused("file"), refused("below/file")], [no, below]);
        }
        fs::write(source.0.path().join("file"), b"x").unwrap();
    }

    /// As in a container with a user namespace: 0 and on are 100,000 and on.
    fn shifted(recursive: bool) -> IdMap {
        let line = serde_json::json!({ "containerID": 0, "hostID": 100_000, "size": 65536 });
        let lines = serde_json::json!([line]);
        let map = serde_json::json!({ "uids": lines, "gids": lines, "recursive": recursive });
        serde_json::from_value(map).unwrap()
    }

    /// Whether this kernel maps the ids of a tmpfs: Linux 6.3 and on, where user namespaces are allowed.
    fn maps_ids(source: &Path) -> bool {
        let mut probe = wanted(source);
        probe.ids = Some(shifted(false));
        match Tree::open(&probe) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("skipped: {}", crate::user::one_line(&error));
                false
            }
        }
    }

    #[test]
    fn a_mapped_volume_shows_other_ids_than_it_has() {
        let (share, source) = (Disk::mounted("share"), Disk::mounted("disk"));
        let disk = source.0.path().join("disk");
        if !maps_ids(&disk) {
            return;
        }
        fs::write(disk.join("file"), "").unwrap();
        chown(disk.join("file"), Some(1000), Some(1001)).unwrap();
        let mut wanted = wanted(&disk);
        wanted.ids = Some(shifted(false));
        let volume = placed(&share.0.path().join("share"), &wanted).unwrap();
        let owner = |path: PathBuf| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(volume.clone()), (100_000, 100_000));
        assert_eq!(owner(volume.join("file")), (101_000, 101_001));
        chown(volume.join("file"), Some(100_007), Some(100_008)).unwrap();
        assert_eq!(owner(disk.join("file")), (7, 8));
        // Root of the host is nobody there.
        let error = fs::write(volume.join("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOVERFLOW));
    }

    #[test]
    fn mounts_below_are_mapped_if_that_was_asked_for() {
        let (share, source) = (Disk::mounted("share"), Disk::mounted("disk"));
        let disk = source.0.path().join("disk");
        if !maps_ids(&disk) {
            return;
        }
        fs::create_dir(disk.join("below")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("vmbox", disk.join("below"), "tmpfs", flags, None).unwrap();
        for (name, recursive, uid) in [("one", false, 0), ("all", true, 100_000)] {
            let mut wanted = wanted(&disk);
            wanted.ids = Some(shifted(recursive));
            let share = share.0.path().join("share").join(name);
            fs::create_dir(&share).unwrap();
            let volume = placed(&share, &wanted).unwrap();
            let found = fs::metadata(volume.join("below")).unwrap();
            assert_eq!(found.uid(), uid, "{name}");
        }
    }

    #[test]
    fn a_file_system_without_mapped_ids_is_named() {
        if !maps_ids(Disk::mounted("disk").0.path().join("disk").as_path()) {
            return;
        }
        let mut wanted = wanted(Path::new("/proc/self/status"));
        wanted.ids = Some(shifted(false));
        let message = Tree::open(&wanted).unwrap_err().to_string();
        assert_eq!(
            message,
            "the ids of /proc/self/status can't be mapped: the file system proc on /proc has no idmapped mounts"
        );
    }
}
