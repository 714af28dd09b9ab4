//! Opening, making, reading and writing regular files.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{Context, Entry, ZeroCopyReader, ZeroCopyWriter};
use rustix::fs::{Mode, OFlags};

use super::credentials::{as_caller, killing_privileges};
use super::inodes::Inode;
use super::{Share, checked_name, error, lock};

/// FOPEN_KILL_SUIDGID's counterpart in FUSE_OPEN and FUSE_CREATE (FUSE_OPEN_KILL_SUIDGID).
const OPEN_KILL_SUIDGID: u32 = 1;

/// The most that one FUSE_COPY_FILE_RANGE moves: a guest must not keep the worker busy with one request. The guest's
/// kernel asks again for the rest.
const COPY_MAX: u64 = 64 << 20;

/// What of the guest's open flags reaches the host. O_DIRECT stays out: the guest's page cache is bypassed anyway, and
/// the host's asks for an alignment that the guest doesn't know. O_PATH, O_TMPFILE, O_ASYNC and O_CREAT must not be
/// the guest's to set.
fn host_flags(flags: u32) -> OFlags {
    let allowed = OFlags::RWMODE
        | OFlags::APPEND
        | OFlags::TRUNC
        | OFlags::SYNC
        | OFlags::DSYNC
        | OFlags::NOATIME;
    (OFlags::from_bits_retain(flags) & allowed) | OFlags::NONBLOCK
}

impl Share {
    /// Opens what the guest holds by its `O_PATH` descriptor. Only files and directories: opening a device, a FIFO or
    /// a socket acts on the host, and the guest's kernel never asks for it.
    pub(super) fn reopen(&self, inode: &Inode, flags: OFlags) -> io::Result<File> {
        if !matches!(inode.identity.kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(error(libc::EACCES));
        }
        let name = inode.fd.as_raw_fd().to_string();
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::openat(&self.proc_fds, name, flags, Mode::empty())?;
        Ok(File::from(fd))
    }

    /// FUSE_OPEN.
    pub(super) fn open_file(&self, inode: &Inode, flags: u32, fuse_flags: u32) -> io::Result<u64> {
        lock(&self.handles).check_room()?;
        let host = host_flags(flags);
        let kill = self.kills(fuse_flags & OPEN_KILL_SUIDGID != 0);
        let file = killing_privileges(kill, || self.reopen(inode, host))?;
        let append = host.contains(OFlags::APPEND);
        lock(&self.handles).insert(inode, file, append)
    }

    /// FUSE_CREATE.
    pub(super) fn create_file(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let name = checked_name(name)?;
        let host = host_flags(args.flags);
        let flags = host | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.make_file(context, parent, Some(name), flags, args) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            made => return made,
        }
        if OFlags::from_bits_retain(args.flags).contains(OFlags::EXCL) {
            return Err(error(libc::EEXIST));
        }
        // Somebody else made it first: it keeps its owner, and is opened as by FUSE_OPEN.
        let entry = self.look_up(parent, name)?;
        let opened = self
            .inode(entry.inode)
            .and_then(|inode| self.open_file(&inode, args.flags, args.fuse_flags));
        match opened {
            Ok(handle) => Ok((entry, handle)),
            Err(e) => {
                lock(&self.inodes).forget(entry.inode, 1);
                Err(e)
            }
        }
    }

    /// FUSE_TMPFILE: a file without a name in `parent`.
    pub(in crate::fs) fn create_unnamed(
        &self,
        context: &Context,
        parent: u64,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let exclusive = OFlags::from_bits_retain(args.flags) & OFlags::EXCL;
        let flags = (host_flags(args.flags) & !OFlags::TRUNC)
            | OFlags::TMPFILE
            | OFlags::CLOEXEC
            | exclusive;
        self.make_file(context, parent, None, flags, args)
    }

    fn make_file(
        &self,
        context: &Context,
        parent: u64,
        name: Option<&CStr>,
        flags: OFlags,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64)> {
        self.check_room()?;
        lock(&self.handles).check_room()?;
        let parent = self.inode(parent)?;
        let mode = Mode::from_raw_mode(args.mode & !args.umask & 0o7777);
        let fd = as_caller(context, || {
            let name = name.unwrap_or(c".");
            Ok(rustix::fs::openat(&parent.fd, name, flags, mode)?)
        })?;
        let file = File::from(fd);
        // Not by name again: that may already be another file.
        let path = rustix::fs::openat(
            &self.proc_fds,
            file.as_raw_fd().to_string(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let entry = self.adopt(path, &parent, name)?;
        let append = flags.contains(OFlags::APPEND);
        let handle = lock(&self.handles).insert(&self.inode(entry.inode)?, file, append)?;
        Ok((entry, handle))
    }

    /// FUSE_READ, from the file to the guest's pages.
    pub(super) fn read_file(
        &self,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let handle = lock(&self.handles).get(handle, node)?;
        let count = (size as usize).min(to.available_bytes());
        to.write_from(&mut lock(&handle.file).file, count, offset)
    }

    /// FUSE_WRITE, from the guest's pages to the file.
    pub(super) fn write_file(
        &self,
        (node, handle): (u64, u64),
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        append: bool,
        kill: bool,
    ) -> io::Result<usize> {
        let handle = lock(&self.handles).get(handle, node)?;
        let mut open = lock(&handle.file);
        // The guest may set or clear O_APPEND while the file is open, and writes back mapped pages through whichever
        // handle is at hand. With O_APPEND the host's kernel ignores the offset, so the flag must be this write's.
        if open.append != append {
            let mut flags = rustix::fs::fcntl_getfl(&open.file)?;
            flags.set(OFlags::APPEND, append);
            rustix::fs::fcntl_setfl(&open.file, flags)?;
            open.append = append;
        }
        killing_privileges(self.kills(kill), || {
            from.read_to(&mut open.file, size as usize, offset)
        })
    }

    /// FUSE_COPY_FILE_RANGE; how much was copied.
    pub(in crate::fs) fn copy_range(
        &self,
        (from_node, from_handle, mut from_offset): (u64, u64, u64),
        (to_node, to_handle, mut to_offset): (u64, u64, u64),
        length: u64,
    ) -> io::Result<usize> {
        let (from, to) = {
            let handles = lock(&self.handles);
            (
                handles.get(from_handle, from_node)?,
                handles.get(to_handle, to_node)?,
            )
        };
        let length = usize::try_from(length.min(COPY_MAX)).map_err(|_| error(libc::EINVAL))?;
        // The locks would be one and the same for a copy within a handle; the descriptors stay open by the Arcs, and
        // duplicates share what matters.
        let source = lock(&from.file).file.try_clone()?;
        let target = lock(&to.file).file.try_clone()?;
        Ok(rustix::fs::copy_file_range(
            &source,
            Some(&mut from_offset),
            &target,
            Some(&mut to_offset),
            length,
        )?)
    }
}
