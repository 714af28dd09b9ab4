//! A host directory as a FUSE file system: what the guest asks for is done to the same file on the host.
//!
//! Why not fuse-backend-rs's own `PassthroughFs`: it allocates as many bytes as the guest names (`getxattr`,
//! `listxattr`, `readdir` with a size of 4 GiB), never forgets the identity of an inode that it has seen, creates files
//! without the caller's supplementary groups, looks up `..` in any directory but the root, opens a file through another
//! mount than the one it was found by, hides `.` and `..`, ends a listing where a name has just vanished, and writes
//! mapped pages to the end of a file that is open for appending. Its server, which parses the messages, is used.
//!
//! Every inode that the guest holds is an `O_PATH` descriptor. Names are resolved one component at a time, relative to
//! such a descriptor and without following links, so nothing outside of the root can be reached; mounts below it are
//! crossed, also those that appear later. Files are opened through `/proc/self/fd`, which must be mounted when the
//! share is made.

mod attributes;
mod credentials;
mod directory;
mod files;
mod server;
mod table;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::ATTR_SUBMOUNT;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Statx};

use attributes::{statx, to_stat};
use table::{Handles, Inode, InodeKey, Inodes, lock};

/// How long the guest may trust names and attributes. The host writes to volumes too, and sees to be seen soon.
pub(super) const VALIDITY: Duration = Duration::from_secs(1);

/// One session with a guest: from INIT (or a reset) to the next.
pub(super) struct Share {
    inodes: Mutex<Inodes>,
    handles: Mutex<Handles>,
    /// `/proc/self/fd`.
    proc_fds: Arc<OwnedFd>,
    root: Arc<OwnedFd>,
    kill_privileges: AtomicBool,
    announce_submounts: AtomicBool,
}

impl Share {
    /// A session that knows only `root`, an `O_PATH` descriptor.
    ///
    /// # Errors
    /// The root can't be examined any more.
    pub fn new(root: Arc<OwnedFd>, proc_fds: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            inodes: Mutex::new(root_only(&root)?),
            handles: Mutex::default(),
            proc_fds,
            root,
            kill_privileges: AtomicBool::new(false),
            announce_submounts: AtomicBool::new(false),
        })
    }

    /// Drops everything the guest held, for FUSE_DESTROY and for an INIT that isn't the first.
    fn start_over(&self) -> io::Result<()> {
        let inodes = root_only(&self.root)?;
        *lock(&self.handles) = Handles::default();
        *lock(&self.inodes) = inodes;
        Ok(())
    }

    fn inode(&self, node: u64) -> io::Result<Arc<Inode>> {
        lock(&self.inodes).get(node)
    }

    /// FUSE_LOOKUP.
    fn look_up(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = checked_name(name)?;
        let parent = self.inode(parent)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        self.adopt(fd, &parent)
    }

    /// Counts a lookup of what `fd` is, a child of `parent`.
    fn adopt(&self, fd: OwnedFd, parent: &Inode) -> io::Result<Entry> {
        let found = statx(&fd)?;
        let key = key_of(&found);
        let kind = kind_of(&found);
        // Without this two mounts' files with the same inode number would be one file to cp, tar and rsync.
        let mount_point = kind == libc::S_IFDIR
            && key.mount != parent.key.mount
            && self.announce_submounts.load(Ordering::Relaxed);
        Ok(Entry {
            inode: lock(&self.inodes).look_up(fd, key, kind),
            // Nodes are never used again, so generations aren't needed.
            generation: 0,
            attr: to_stat(&found),
            attr_flags: if mount_point { ATTR_SUBMOUNT } else { 0 },
            attr_timeout: VALIDITY,
            entry_timeout: VALIDITY,
        })
    }

    /// Whether a request that asks for it takes privileges away.
    fn kills(&self, asked: bool) -> bool {
        asked && self.kill_privileges.load(Ordering::Relaxed)
    }

    /// FUSE_RENAME2.
    fn rename(&self, from: (u64, &CStr), to: (u64, &CStr), flags: u32) -> io::Result<()> {
        let (old, new) = (checked_name(from.1)?, checked_name(to.1)?);
        let (from, to) = (self.inode(from.0)?, self.inode(to.0)?);
        let flags = RenameFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        Ok(rustix::fs::renameat_with(
            &from.fd, old, &to.fd, new, flags,
        )?)
    }

    /// FUSE_LINK. By descriptor, so a symbolic link is linked and not what it points to.
    fn link(&self, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = checked_name(name)?;
        let (inode, directory) = (self.inode(node)?, self.inode(parent)?);
        rustix::fs::linkat(&inode.fd, c"", &directory.fd, name, AtFlags::EMPTY_PATH)?;
        self.look_up(parent, name)
    }

    /// FUSE_UNLINK and FUSE_RMDIR.
    fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        let name = checked_name(name)?;
        let parent = self.inode(parent)?;
        Ok(rustix::fs::unlinkat(&parent.fd, name, flags)?)
    }

    /// FUSE_SYNCFS: the host file system that this inode lies on.
    pub(super) fn sync_file_system(&self, node: u64) -> io::Result<()> {
        let file = self.reopen(&*self.inode(node)?, OFlags::RDONLY)?;
        Ok(rustix::fs::syncfs(file)?)
    }

    /// FUSE_STATX.
    pub(super) fn extended_attributes(&self, node: u64) -> io::Result<Statx> {
        statx(&self.inode(node)?.fd)
    }

    /// The file of a DAX mapping.
    pub(super) fn open_for_mapping(&self, node: u64, writable: bool) -> io::Result<std::fs::File> {
        let inode = self.inode(node)?;
        if inode.kind != libc::S_IFREG {
            return Err(error(libc::EINVAL));
        }
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        self.reopen(&inode, access)
    }
}

fn root_only(root: &OwnedFd) -> io::Result<Inodes> {
    let found = statx(root)?;
    let fd = root.as_fd().try_clone_to_owned()?;
    Ok(Inodes::new(fd, key_of(&found), kind_of(&found)))
}

fn key_of(found: &Statx) -> InodeKey {
    InodeKey {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mount: found.stx_mnt_id,
    }
}

fn kind_of(found: &Statx) -> u32 {
    u32::from(found.stx_mode) & libc::S_IFMT
}

/// A name that means a child of the directory it is used in, and nothing else.
fn checked_name(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(error(libc::EINVAL));
    }
    Ok(name)
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
