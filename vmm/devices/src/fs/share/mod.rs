//! A host directory as a FUSE file system: what the guest asks for is done to the same file on the host.
//!
//! Why not fuse-backend-rs's own `PassthroughFs`: it allocates as many bytes as the guest names (`getxattr`,
//! `listxattr`, `readdir` with a size of 4 GiB), never forgets the identity of an inode that it has seen, creates files
//! without the caller's supplementary groups, looks up `..` in any directory but the root, opens a file through another
//! mount than the one it was found by, hides `.` and `..`, ends a listing where a name has just vanished, and writes
//! mapped pages to the end of a file that is open for appending. Its server, which parses the messages, is used.
//!
//! An inode is worked with by an `O_PATH` descriptor ([`inodes`]). Names are resolved one component at a time, relative to
//! such a descriptor and without following links, so nothing outside of the root can be reached; mounts below it are
//! crossed, also those that appear later. Files are opened through `/proc/self/fd`, which must be mounted when the
//! share is made.

mod attributes;
mod credentials;
mod directory;
mod files;
mod handles;
mod inodes;
mod server;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::ATTR_SUBMOUNT;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Statx};

use super::limits::Limits;
use attributes::{statx, statx_at, to_stat};
use handles::Handles;
use inodes::{Found, Identity, Inode, InodeKey, Inodes, stale};

/// How long the guest may trust names and attributes. The host writes to volumes too, and sees to be seen soon.
pub(super) const VALIDITY: Duration = Duration::from_secs(1);

/// How many ancestors are reopened for one inode. Linux' longest path has half as many components.
const DEPTH_MAX: usize = 4096;

/// One session with a guest: from INIT (or a reset) to the next.
pub(super) struct Share {
    inodes: Mutex<Inodes>,
    handles: Mutex<Handles>,
    /// `/proc/self/fd`.
    proc_fds: Arc<OwnedFd>,
    root: Arc<OwnedFd>,
    limits: Limits,
    kill_privileges: AtomicBool,
    announce_submounts: AtomicBool,
}

impl Share {
    /// A session that knows only `root`, an `O_PATH` descriptor.
    ///
    /// # Errors
    /// The root can't be examined any more.
    pub fn new(root: Arc<OwnedFd>, proc_fds: Arc<OwnedFd>, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            inodes: Mutex::new(root_only(&root, limits.clone())?),
            handles: Mutex::new(Handles::new(limits.files)),
            proc_fds,
            root,
            limits,
            kill_privileges: AtomicBool::new(false),
            announce_submounts: AtomicBool::new(false),
        })
    }

    /// Drops everything the guest held, for FUSE_DESTROY and for an INIT that isn't the first.
    fn start_over(&self) -> io::Result<()> {
        let inodes = root_only(&self.root, self.limits.clone())?;
        *lock(&self.handles) = Handles::new(self.limits.files);
        *lock(&self.inodes) = inodes;
        Ok(())
    }

    /// What the guest calls `node`, reopened by way of its parents if its descriptor was closed.
    fn inode(&self, node: u64) -> io::Result<Inode> {
        let mut inodes = lock(&self.inodes);
        let (mut closed, mut at) = (Vec::new(), node);
        let mut inode = loop {
            match inodes.get(at)? {
                Found::Open(inode) => break inode,
                // Places are hints and may even be a circle.
                Found::Closed(_) if closed.len() == DEPTH_MAX => return Err(stale()),
                Found::Closed(parent) => {
                    closed.push(at);
                    at = parent;
                }
            }
        };
        for node in closed.into_iter().rev() {
            let fd = open_child(&inode.fd, inodes.name(node)?).map_err(gone_is_stale)?;
            let identity = identity_of(&statx(&fd)?);
            inode = inodes.reopen(node, fd, identity)?;
        }
        Ok(inode)
    }

    /// Refuses with ENFILE what would make the guest know one inode too many. To be asked before something is made.
    fn check_room(&self) -> io::Result<()> {
        lock(&self.inodes).check_room()
    }

    /// FUSE_LOOKUP.
    fn look_up(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = checked_name(name)?;
        let parent = self.inode(parent)?;
        let fd = open_child(&parent.fd, name)?;
        self.adopt(fd, &parent, Some(name))
    }

    /// Counts a lookup of what `fd` is, a child of `parent`.
    fn adopt(&self, fd: OwnedFd, parent: &Inode, name: Option<&CStr>) -> io::Result<Entry> {
        let found = statx(&fd)?;
        let identity = identity_of(&found);
        // Without this two mounts' files with the same inode number would be one file to cp, tar and rsync.
        let mount_point = identity.kind == libc::S_IFDIR
            && identity.key.mount != parent.identity.key.mount
            && self.announce_submounts.load(Ordering::Relaxed);
        Ok(Entry {
            inode: lock(&self.inodes).look_up(
                fd,
                identity,
                name.map(|name| (parent.node, name)),
            )?,
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
        rustix::fs::renameat_with(&from.fd, old, &to.fd, new, flags)?;
        self.note_place(&to, new);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.note_place(&from, old);
        }
        Ok(())
    }

    /// Remembers where an inode that the guest may hold by a descriptor only (a working directory) is now.
    fn note_place(&self, parent: &Inode, name: &CStr) {
        // If it is gone again, so be it: a place is a hint.
        if let Ok(found) = statx_at(&parent.fd, name) {
            lock(&self.inodes).moved(identity_of(&found).key, (parent.node, name));
        }
    }

    /// FUSE_LINK. By descriptor, so a symbolic link is linked and not what it points to.
    fn link(&self, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = checked_name(name)?;
        self.check_room()?;
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
        let file = self.reopen(&self.inode(node)?, OFlags::RDONLY)?;
        Ok(rustix::fs::syncfs(file)?)
    }

    /// FUSE_STATX.
    pub(super) fn extended_attributes(&self, node: u64) -> io::Result<Statx> {
        statx(&self.inode(node)?.fd)
    }

    /// The file of a DAX mapping.
    pub(super) fn open_for_mapping(&self, node: u64, writable: bool) -> io::Result<std::fs::File> {
        let inode = self.inode(node)?;
        if inode.identity.kind != libc::S_IFREG {
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

fn root_only(root: &OwnedFd, limits: Limits) -> io::Result<Inodes> {
    let found = statx(root)?;
    let fd = root.as_fd().try_clone_to_owned()?;
    Ok(Inodes::new(limits, fd, identity_of(&found)))
}

fn identity_of(found: &Statx) -> Identity {
    Identity {
        key: InodeKey {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            mount: found.stx_mnt_id,
        },
        kind: u32::from(found.stx_mode) & libc::S_IFMT,
    }
}

/// An `O_PATH` descriptor of the child itself, also if that is a symbolic link.
fn open_child(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// The guest asked for an inode and not for a name: ENOENT would tell it about something else.
fn gone_is_stale(e: io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => stale(),
        _ => e,
    }
}

/// A name that means a child of the directory it is used in, and nothing else.
fn checked_name(name: &CStr) -> io::Result<&CStr> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(error(libc::EINVAL));
    }
    Ok(name)
}

/// A panic elsewhere leaves the tables whole: each change is a few insertions or removals that can't fail.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
