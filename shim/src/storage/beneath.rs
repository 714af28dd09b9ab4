//! Resolves the names of an untrusted archive beneath a directory, so that nothing outside of it can be reached.
//!
//! Only single components are ever opened, with O_NOFOLLOW, relative to a directory that was reached in the same way. Symbolic
//! links in parents are followed by hand as chroot would follow them: absolute targets start at the root, and `..` ends there.
//! (openat2 with RESOLVE_IN_ROOT does the same but can't make what is missing on the way.)

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

/// As many as the kernel follows (MAXSYMLINKS).
const SYMLINK_LIMIT: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::NOFOLLOW)
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A name that an archive may not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("its name contains \"..\", which could leave the layer")]
    Parent,
    #[error("its name contains a NUL byte")]
    Nul,
}

/// Splits a member's name into components beneath the root: absolute names are taken relative to it, as Docker does.
pub fn components(name: &[u8]) -> Result<Vec<OsString>, NameError> {
    if name.contains(&0) {
        return Err(NameError::Nul);
    }
    let parts = name
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    parts
        .map(|part| {
            if part == b".." {
                Err(NameError::Parent)
            } else {
                Ok(OsStr::from_bytes(part).into())
            }
        })
        .collect()
}

/// A directory tree that names are resolved in.
#[derive(Clone)]
pub struct Root(Rc<OwnedFd>);

/// A directory beneath the root and its name from there, with no symbolic link in it.
#[derive(Clone)]
pub struct Dir {
    fd: Rc<OwnedFd>,
    pub path: Vec<OsString>,
}

/// Told of each directory that [`Root::dir_or_make`] made because no member had named it yet.
pub trait Implied {
    /// `dir` was just made; `hid` tells that a whiteout stood in its place.
    fn made(&mut self, dir: &Dir, hid: bool) -> io::Result<()>;
}

struct Refuse;

impl Implied for Refuse {
    fn made(&mut self, _: &Dir, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the directory `path` and what is missing on the way, all beneath `root`, which is trusted.
///
/// # Errors
/// As [`Root::dir_or_make`].
pub fn make_dir_all(root: &Path, path: &Path) -> io::Result<()> {
    let names = link_components(path.as_os_str().as_bytes());
    Root::open(root)?.dir_or_make(&names, &mut Refuse).map(drop)
}

impl Root {
    /// Opens `path`, which is trusted.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(Rc::new(openat(CWD, path, flags, Mode::empty())?)))
    }

    /// The root itself as a directory.
    pub fn dir(&self) -> Dir {
        Dir {
            fd: self.0.clone(),
            path: Vec::new(),
        }
    }

    /// The directory `path`, which must exist.
    pub fn existing_dir(&self, path: &[OsString]) -> io::Result<Dir> {
        self.walk(path, false, &mut Refuse)
    }

    /// The directory `path`; what is missing on the way is made (mode 0755, owned by root) and told to `implied`.
    ///
    /// # Errors
    /// `NotADirectory` if something else stands in the way, `FilesystemLoop` after 40 symbolic links.
    pub fn dir_or_make(&self, path: &[OsString], implied: &mut dyn Implied) -> io::Result<Dir> {
        self.walk(path, true, implied)
    }

    fn walk(&self, path: &[OsString], make: bool, implied: &mut dyn Implied) -> io::Result<Dir> {
        let mut reached: Vec<(OsString, Rc<OwnedFd>)> = Vec::new();
        let mut ahead: Vec<OsString> = path.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                reached.pop();
                continue;
            }
            let current = reached.last().map_or(&self.0, |(_, fd)| fd).clone();
            match openat(&*current, &*name, DIRECTORY, Mode::empty()) {
                Ok(fd) => reached.push((name, Rc::new(fd))),
                Err(Errno::NOENT) if make => {
                    reached.push((name.clone(), Rc::new(make_dir(&current, &name)?)));
                    implied.made(&Dir::of(&reached, &self.0), false)?;
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let stat = statat(&*current, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                        links += 1;
                        if links > SYMLINK_LIMIT {
                            return Err(Errno::LOOP.into());
                        }
                        let target = readlinkat(&*current, &*name, Vec::new())?.into_bytes();
                        if target.starts_with(b"/") {
                            reached.clear();
                        }
                        ahead.extend(link_components(&target).into_iter().rev());
                    } else if make && is_whiteout(&stat) {
                        rustix::fs::unlinkat(&*current, &*name, AtFlags::empty())?;
                        reached.push((name.clone(), Rc::new(make_dir(&current, &name)?)));
                        implied.made(&Dir::of(&reached, &self.0), true)?;
                    } else {
                        return Err(Errno::NOTDIR.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Dir::of(&reached, &self.0))
    }
}

fn make_dir(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let fd = openat(parent, name, DIRECTORY, Mode::empty())?;
    // The umask had its say in mkdirat.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    Ok(fd)
}

/// Components of a link's target, `..` included.
pub fn link_components(target: &[u8]) -> Vec<OsString> {
    let parts = target
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    parts
        .map(|part| OsString::from_vec(part.to_vec()))
        .collect()
}

/// Whether overlayfs takes this for a deleted name (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

impl Dir {
    fn of(reached: &[(OsString, Rc<OwnedFd>)], root: &Rc<OwnedFd>) -> Self {
        Self {
            fd: reached.last().map_or(root, |(_, fd)| fd).clone(),
            path: reached.iter().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Metadata of `name`, not following it; `None` if there is no such name.
    pub fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory `name`, never through a symbolic link.
    pub fn open_dir(&self, name: &OsStr) -> io::Result<Dir> {
        let fd = Rc::new(openat(&*self.fd, name, DIRECTORY, Mode::empty())?);
        let mut path = self.path.clone();
        path.push(name.into());
        Ok(Self { fd, path })
    }

    /// A path for calls that have no *at form (xattrs); valid while this lives.
    pub fn proc_path(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.fd.as_raw_fd().to_string())
            .join(name)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
