//! The share as fuse-backend-rs's server calls it, message by message.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, WRITE_KILL_PRIV, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::attributes::{statx, to_stat};
use super::credentials::as_caller;
use super::{Share, VALIDITY, checked_name, error, lock};

/// What we would like of what a guest offers. Left out on purpose: WRITEBACK_CACHE (the host sees writes at once),
/// POSIX_LOCKS and FLOCK_LOCKS (locks are the guest's own), POSIX_ACL (the guest's kernel would ask for each inode's
/// list, and the umask would be the host's to apply), DONT_MASK for the same reason, PERFILE_DAX (the attributes that
/// fuse-backend-rs answers GETATTR with can't carry the flag; a guest mounts with `dax=always`).
fn wanted() -> FsOptions {
    FsOptions::ASYNC_READ
        | FsOptions::ATOMIC_O_TRUNC
        | FsOptions::BIG_WRITES
        | FsOptions::AUTO_INVAL_DATA
        | FsOptions::DO_READDIRPLUS
        | FsOptions::READDIRPLUS_AUTO
        | FsOptions::ASYNC_DIO
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::MAX_PAGES
        | FsOptions::SUBMOUNTS
        | FsOptions::HANDLE_KILLPRIV_V2
        | FsOptions::INIT_EXT
}

/// Has only the trait's defaults: the one way to an initialised `statvfs64` without unsafe code.
struct Defaults;

impl FileSystem for Defaults {
    type Inode = u64;
    type Handle = u64;
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, offered: FsOptions) -> io::Result<FsOptions> {
        self.start_over()?;
        let agreed = offered & wanted();
        let kill = agreed.contains(FsOptions::HANDLE_KILLPRIV_V2);
        self.kill_privileges.store(kill, Ordering::Relaxed);
        let submounts = agreed.contains(FsOptions::SUBMOUNTS);
        self.announce_submounts.store(submounts, Ordering::Relaxed);
        Ok(agreed)
    }

    fn destroy(&self) {
        if let Err(error) = self.start_over() {
            tracing::error!(%error, "could not look at the share's root again");
        }
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.look_up(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        lock(&self.inodes).forget(inode, count);
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        // The inode's own descriptor is as good as the handle's, unlinked or not.
        Ok((to_stat(&statx(&self.inode(inode)?.fd)?), VALIDITY))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.set_attributes(&self.inode(inode)?, &attr, handle, valid)?;
        self.getattr(context, inode, None)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.inode(inode)?.fd, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    fn symlink(
        &self,
        context: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        let name = checked_name(name)?;
        self.check_room()?;
        let directory = self.inode(parent)?;
        as_caller(context, || {
            Ok(rustix::fs::symlinkat(target, &directory.fd, name)?)
        })?;
        self.look_up(parent, name)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let name = checked_name(name)?;
        self.check_room()?;
        let directory = self.inode(parent)?;
        let kind = FileType::from_raw_mode(mode);
        let mode = Mode::from_raw_mode(mode & !umask & 0o7777);
        as_caller(context, || {
            Ok(rustix::fs::mknodat(
                &directory.fd,
                name,
                kind,
                mode,
                rdev.into(),
            )?)
        })?;
        self.look_up(parent, name)
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let name = checked_name(name)?;
        self.check_room()?;
        let directory = self.inode(parent)?;
        let mode = Mode::from_raw_mode(mode & !umask & 0o7777);
        as_caller(context, || {
            Ok(rustix::fs::mkdirat(&directory.fd, name, mode)?)
        })?;
        self.look_up(parent, name)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        Share::rename(self, (old_parent, old_name), (new_parent, new_name), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        Share::link(self, inode, parent, name)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let handle = self.open_file(&self.inode(inode)?, flags, fuse_flags)?;
        Ok((Some(handle), OpenOptions::empty(), None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle) = self.create_file(context, parent, name, &args)?;
        Ok((entry, Some(handle), OpenOptions::empty(), None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        self.read_file(inode, handle, to, size, offset)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        from_page_cache: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let append = !from_page_cache && OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let kill = fuse_flags & WRITE_KILL_PRIV != 0;
        self.write_file((inode, handle), from, size, offset, append, kill)
    }

    fn flush(&self, _: &Context, inode: u64, handle: u64, _: u64) -> io::Result<()> {
        // Closing a duplicate reports what closing in the guest would: a file system's delayed write errors.
        let handle = lock(&self.handles).get(handle, inode)?;
        drop(lock(&handle.file).file.try_clone()?);
        Ok(())
    }

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let handle = lock(&self.handles).get(handle, inode)?;
        let open = lock(&handle.file);
        if data_only {
            open.file.sync_data()
        } else {
            open.file.sync_all()
        }
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mode =
            rustix::fs::FallocateFlags::from_bits(mode).ok_or_else(|| error(libc::EOPNOTSUPP))?;
        let handle = lock(&self.handles).get(handle, inode)?;
        Ok(rustix::fs::fallocate(
            &lock(&handle.file).file,
            mode,
            offset,
            length,
        )?)
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        lock(&self.handles).remove(handle, inode)
    }

    fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64> {
        let found = rustix::fs::fstatvfs(&self.inode(inode)?.fd)?;
        let mut out = Defaults.statfs(context, inode)?;
        out.f_bsize = found.f_bsize;
        out.f_frsize = found.f_frsize;
        out.f_blocks = found.f_blocks;
        out.f_bfree = found.f_bfree;
        out.f_bavail = found.f_bavail;
        out.f_files = found.f_files;
        out.f_ffree = found.f_ffree;
        out.f_namemax = found.f_namemax;
        Ok(out)
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        self.set_xattr(&self.inode(inode)?, name, value, flags)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let inode = self.inode(inode)?;
        if size > 0 {
            return Ok(GetxattrReply::Value(self.xattr(&inode, name, size)?));
        }
        let length = self.xattr_length(&inode, name)?;
        Ok(GetxattrReply::Count(
            u32::try_from(length).unwrap_or(u32::MAX),
        ))
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let inode = self.inode(inode)?;
        if size > 0 {
            return Ok(ListxattrReply::Names(self.xattr_names(&inode, size)?));
        }
        let length = self.xattr_names_length(&inode)?;
        Ok(ListxattrReply::Count(
            u32::try_from(length).unwrap_or(u32::MAX),
        ))
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.remove_xattr(&self.inode(inode)?, name)
    }

    fn opendir(&self, _: &Context, inode: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        lock(&self.handles).check_room()?;
        let inode = self.inode(inode)?;
        let file = self.reopen(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = lock(&self.handles).insert(&inode, file, false)?;
        Ok((Some(handle), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let inode = self.inode(inode)?;
        self.read_directory(&inode, handle, size, offset, &mut |entry, _| add(entry))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory_plus(&self.inode(inode)?, handle, size, offset, add)
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        self.fsync(context, inode, data, handle)
    }

    fn releasedir(&self, _: &Context, inode: u64, _: u32, handle: u64) -> io::Result<()> {
        lock(&self.handles).remove(handle, inode)
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => rustix::fs::SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => rustix::fs::SeekFrom::Hole(offset),
            _ => return Err(error(libc::EINVAL)),
        };
        let handle = lock(&self.handles).get(handle, inode)?;
        Ok(rustix::fs::seek(&lock(&handle.file).file, to)?)
    }
}
