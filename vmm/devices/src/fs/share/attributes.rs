//! Attributes of inodes: stat, setattr, statfs and extended attributes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{Entry, SetattrValid};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    Uid, XattrFlags,
};

use super::credentials::killing_privileges;
use super::inodes::Inode;
use super::{Share, error, lock};

/// The longest value and the longest list the kernel knows (XATTR_SIZE_MAX, XATTR_LIST_MAX). What the guest asks for
/// beyond that is not allocated.
const XATTR_MAX: usize = 64 << 10;

/// Everything about an `O_PATH` or open descriptor, the mount it was reached by included.
pub(super) fn statx(fd: impl AsFd) -> io::Result<Statx> {
    look(fd, c"", AtFlags::EMPTY_PATH)
}

/// The same of a child, itself also if it is a symbolic link.
pub(super) fn statx_at(parent: impl AsFd, name: &CStr) -> io::Result<Statx> {
    look(parent, name, AtFlags::empty())
}

fn look(fd: impl AsFd, name: &CStr, flags: AtFlags) -> io::Result<Statx> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(fd, name, flags, wanted)?)
}

/// `statx` as fuse-backend-rs wants it.
pub(super) fn to_stat(from: &Statx) -> stat64 {
    // The only way to an all-zero `stat64` without unsafe code.
    let mut to = Entry::default().attr;
    to.st_ino = from.stx_ino;
    to.st_size = from.stx_size.cast_signed();
    to.st_blocks = from.stx_blocks.cast_signed();
    to.st_blksize = from.stx_blksize as _;
    to.st_mode = from.stx_mode.into();
    to.st_nlink = from.stx_nlink as _;
    to.st_uid = from.stx_uid;
    to.st_gid = from.stx_gid;
    to.st_rdev = rustix::fs::makedev(from.stx_rdev_major, from.stx_rdev_minor);
    to.st_atime = from.stx_atime.tv_sec;
    to.st_atime_nsec = from.stx_atime.tv_nsec.into();
    to.st_mtime = from.stx_mtime.tv_sec;
    to.st_mtime_nsec = from.stx_mtime.tv_nsec.into();
    to.st_ctime = from.stx_ctime.tv_sec;
    to.st_ctime_nsec = from.stx_ctime.tv_nsec.into();
    to
}

impl Share {
    /// FUSE_SETATTR, in the order in which the host's kernel would apply them.
    pub(super) fn set_attributes(
        &self,
        inode: &Inode,
        attr: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<()> {
        if valid.contains(SetattrValid::MODE) {
            self.set_mode(inode, attr.st_mode)?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            set_owner(inode, attr, valid)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let kill = self.kills(valid.contains(SetattrValid::KILL_SUIDGID));
            self.set_size(inode, attr.st_size, handle, kill)?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            set_times(inode, attr, valid)?;
        }
        Ok(())
    }

    fn set_mode(&self, inode: &Inode, mode: u32) -> io::Result<()> {
        // fchmod refuses O_PATH descriptors; a symlink's mode can't change, and following its magic link says so.
        let name = inode.fd.as_raw_fd().to_string();
        let mode = Mode::from_raw_mode(mode & 0o7777);
        Ok(rustix::fs::chmodat(
            &self.proc_fds,
            name,
            mode,
            AtFlags::empty(),
        )?)
    }

    fn set_size(
        &self,
        inode: &Inode,
        size: i64,
        handle: Option<u64>,
        kill: bool,
    ) -> io::Result<()> {
        let size = u64::try_from(size).map_err(|_| error(libc::EINVAL))?;
        if let Some(handle) = handle {
            let open = lock(&self.handles).get(handle, inode.node)?;
            let open = lock(&open.file);
            return killing_privileges(kill, || Ok(rustix::fs::ftruncate(&open.file, size)?));
        }
        let file = self.reopen(inode, OFlags::WRONLY | OFlags::NONBLOCK)?;
        killing_privileges(kill, || Ok(rustix::fs::ftruncate(&file, size)?))
    }

    /// FUSE_GETXATTR: the value's bytes if they fit in `size`.
    pub(super) fn xattr(&self, inode: &Inode, name: &CStr, size: u32) -> io::Result<Vec<u8>> {
        read_sized(size, |buffer| match self.xattr_target(inode)? {
            Target::File(file) => Ok(rustix::fs::fgetxattr(file, name, buffer)?),
            Target::Path(path) => Ok(rustix::fs::getxattr(path, name, buffer)?),
        })
    }

    /// The length of an extended attribute.
    pub(super) fn xattr_length(&self, inode: &Inode, name: &CStr) -> io::Result<usize> {
        Ok(match self.xattr_target(inode)? {
            Target::File(file) => rustix::fs::fgetxattr_query(file, name)?,
            Target::Path(path) => rustix::fs::getxattr_query(path, name)?,
        })
    }

    /// FUSE_LISTXATTR: the names, each with its NUL, if they fit in `size`.
    pub(super) fn xattr_names(&self, inode: &Inode, size: u32) -> io::Result<Vec<u8>> {
        read_sized(size, |buffer| match self.xattr_target(inode)? {
            Target::File(file) => Ok(rustix::fs::flistxattr(file, buffer)?),
            Target::Path(path) => Ok(rustix::fs::listxattr(path, buffer)?),
        })
    }

    /// The length of what [`Share::xattr_names`] gives.
    pub(super) fn xattr_names_length(&self, inode: &Inode) -> io::Result<usize> {
        Ok(match self.xattr_target(inode)? {
            Target::File(file) => rustix::fs::flistxattr_query(file)?,
            Target::Path(path) => rustix::fs::listxattr_query(path)?,
        })
    }

    /// FUSE_SETXATTR.
    pub(super) fn set_xattr(
        &self,
        inode: &Inode,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        match self.xattr_target(inode)? {
            Target::File(file) => rustix::fs::fsetxattr(file, name, value, flags)?,
            Target::Path(path) => rustix::fs::setxattr(path, name, value, flags)?,
        }
        Ok(())
    }

    /// FUSE_REMOVEXATTR.
    pub(super) fn remove_xattr(&self, inode: &Inode, name: &CStr) -> io::Result<()> {
        match self.xattr_target(inode)? {
            Target::File(file) => rustix::fs::fremovexattr(file, name)?,
            Target::Path(path) => rustix::fs::removexattr(path, name)?,
        }
        Ok(())
    }

    /// The calls refuse `O_PATH` descriptors, and what isn't a file or a directory must not be opened: those go
    /// through the magic link in /proc, which doesn't follow a symbolic link behind it.
    fn xattr_target(&self, inode: &Inode) -> io::Result<Target> {
        match inode.identity.kind {
            libc::S_IFREG | libc::S_IFDIR => Ok(Target::File(
                self.reopen(inode, OFlags::RDONLY | OFlags::NONBLOCK)?,
            )),
            _ => Ok(Target::Path(format!(
                "/proc/self/fd/{}",
                inode.fd.as_raw_fd()
            ))),
        }
    }
}

enum Target {
    File(std::fs::File),
    Path(String),
}

fn read_sized(size: u32, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; (size as usize).min(XATTR_MAX)];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn set_owner(inode: &Inode, attr: &stat64, valid: SetattrValid) -> io::Result<()> {
    let uid = (valid.contains(SetattrValid::UID) && attr.st_uid != u32::MAX)
        .then(|| Uid::from_raw(attr.st_uid));
    let gid = (valid.contains(SetattrValid::GID) && attr.st_gid != u32::MAX)
        .then(|| Gid::from_raw(attr.st_gid));
    // As root too this clears set-user-ID and set-group-ID of files, as FUSE_HANDLE_KILLPRIV_V2 asks.
    Ok(rustix::fs::chownat(
        &inode.fd,
        c"",
        uid,
        gid,
        AtFlags::EMPTY_PATH,
    )?)
}

fn set_times(inode: &Inode, attr: &stat64, valid: SetattrValid) -> io::Result<()> {
    let time = |set, now, seconds, nanoseconds| {
        let (tv_sec, tv_nsec) = if valid.contains(now) {
            (0, UTIME_NOW)
        } else if valid.contains(set) {
            (seconds, nanoseconds)
        } else {
            (0, UTIME_OMIT)
        };
        Timespec { tv_sec, tv_nsec }
    };
    let times = Timestamps {
        last_access: time(
            SetattrValid::ATIME,
            SetattrValid::ATIME_NOW,
            attr.st_atime,
            attr.st_atime_nsec,
        ),
        last_modification: time(
            SetattrValid::MTIME,
            SetattrValid::MTIME_NOW,
            attr.st_mtime,
            attr.st_mtime_nsec,
        ),
    };
    // An empty path works on symbolic links too, where opening is not possible.
    Ok(rustix::fs::utimensat(
        &inode.fd,
        c"",
        &times,
        AtFlags::EMPTY_PATH,
    )?)
}
