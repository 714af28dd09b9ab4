//! Removes directory trees that a container made, however deep.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir as Entries, FileType, Mode, OFlags, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// Removes `path` and all below; never follows symbolic links. A missing `path` is fine.
///
/// Directories found inside are first moved up into `path` itself, so that neither the stack, nor the number of open files,
/// nor PATH_MAX limits the depth (a container can nest directories a million deep). Must not run twice at once on one tree.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match openat(CWD, path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::LOOP | Errno::NOTDIR) => return Ok(unlinkat(CWD, path, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    let mut next_name: u64 = 0;
    loop {
        let mut emptied = true;
        for entry in Entries::read_from(&root)? {
            let entry = entry?;
            if is_dot(entry.file_name()) {
                continue;
            }
            emptied = false;
            if !is_dir(&root, entry.file_name())? {
                unlinkat(&root, entry.file_name(), AtFlags::empty())?;
                continue;
            }
            let dir = openat(&root, entry.file_name(), flags, Mode::empty())?;
            move_up(&dir, &root, &mut next_name)?;
            unlinkat(&root, entry.file_name(), AtFlags::REMOVEDIR)?;
        }
        if emptied {
            break;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Empties `dir`: files are removed, directories moved into `root` under fresh names.
fn move_up(dir: &impl AsFd, root: &impl AsFd, next_name: &mut u64) -> io::Result<()> {
    loop {
        let mut emptied = true;
        for entry in Entries::read_from(dir)? {
            let entry = entry?;
            if is_dot(entry.file_name()) {
                continue;
            }
            emptied = false;
            if is_dir(dir, entry.file_name())? {
                move_to_fresh_name(dir, entry.file_name(), root, next_name)?;
            } else {
                unlinkat(dir, entry.file_name(), AtFlags::empty())?;
            }
        }
        // Some file systems skip entries while others are removed: read again until there are none.
        if emptied {
            return Ok(());
        }
    }
}

fn move_to_fresh_name(
    dir: &impl AsFd,
    name: &CStr,
    root: &impl AsFd,
    next_name: &mut u64,
) -> io::Result<()> {
    loop {
        let fresh = format!(".removed-{next_name}");
        *next_name += 1;
        // Never onto an existing empty directory, which rename would replace: harmless here, but a file would refuse it.
        if statat(root, &*fresh, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            continue;
        }
        return Ok(renameat(
            dir,
            OsStr::from_bytes(name.to_bytes()),
            root,
            &*fresh,
        )?);
    }
}

fn is_dir(parent: &impl AsFd, name: &CStr) -> io::Result<bool> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
