//! Owner, mode, xattrs and times of an unpacked file, set in the one order in which none undoes another.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    lgetxattr, llistxattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::beneath::Dir;
use super::lower::Found;
use super::member::{Member, Time};

/// Largest xattr value the kernel has (XATTR_SIZE_MAX) and largest list of names (XATTR_LIST_MAX).
const XATTR_LIMIT: usize = 64 << 10;

/// Attributes to set.
pub struct Attributes {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: Time,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    /// What the archive says.
    pub fn of_member(member: &Member) -> Self {
        let xattrs = member
            .xattrs
            .iter()
            .map(|(name, value)| (OsString::from_vec(name.clone()), value.clone()));
        Self {
            uid: member.uid,
            gid: member.gid,
            mode: member.mode,
            mtime: member.mtime,
            xattrs: xattrs.collect(),
        }
    }

    /// What a file of a lower layer has, for copying it up.
    pub fn of_found(found: &Found) -> io::Result<Self> {
        Self::of_file(&found.parent, &found.name, &found.stat)
    }

    /// What `name` in `parent` has.
    pub fn of_file(parent: &Dir, name: &OsStr, stat: &Stat) -> io::Result<Self> {
        let path = parent.proc_path(name);
        let mut names = vec![0; XATTR_LIMIT];
        let length = llistxattr(&path, names.as_mut_slice())?;
        names.truncate(length);
        let mut xattrs = Vec::new();
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = vec![0; XATTR_LIMIT];
            let length = lgetxattr(&path, name, value.as_mut_slice())?;
            value.truncate(length);
            xattrs.push((OsStr::from_bytes(name).into(), value));
        }
        let mtime = Time {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        Ok(Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode & 0o7777,
            mtime,
            xattrs,
        })
    }

    /// Sets everything but the time on `name` in `parent`, which must not be a name that others can change meanwhile.
    pub fn set(&self, parent: &Dir, name: &OsStr, kind: FileType) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        // After the owner, because chown takes setuid, setgid and security.capability away.
        if kind != FileType::Symlink {
            chmodat(
                parent,
                name,
                Mode::from_raw_mode(self.mode),
                AtFlags::empty(),
            )?;
        }
        for (xattr, value) in &self.xattrs {
            set_xattr(parent, name, xattr, value)?;
        }
        Ok(())
    }

    /// Sets the modification time, to be called when nothing will change the file any more.
    pub fn set_time(&self, parent: &Dir, name: &OsStr) -> io::Result<()> {
        set_time(parent, name, self.mtime)
    }
}

/// Sets the access and modification time of `name`, not following it.
pub fn set_time(parent: &Dir, name: &OsStr, time: Time) -> io::Result<()> {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set_xattr(parent: &Dir, name: &OsStr, xattr: &OsStr, value: &[u8]) -> io::Result<()> {
    // trusted.* steers overlayfs itself (redirects, opaque directories), so an image must not bring it; containerd skips it too.
    if xattr.as_bytes().starts_with(b"trusted.") {
        return Ok(());
    }
    match lsetxattr(parent.proc_path(name), xattr, value, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        // A file capability that is lost changes what a program can do; labels and user notes don't.
        Err(Errno::OPNOTSUPP) if xattr != "security.capability" => {
            tracing::warn!(
                ?xattr,
                ?name,
                "the store's file system can't hold this extended attribute of the image"
            );
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
