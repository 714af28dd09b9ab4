//! The last touches to a container's file systems, in its namespaces: what libcontainer 0.7 leaves out.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::hook::enter;
use super::inside;
use crate::spec::{Touch, Touches};

/// Does them. The process is in the container's root directory afterwards.
///
/// # Errors
/// One line that names the field.
pub fn apply(root: &Path, touches: &Touches) -> Result<(), String> {
    for touch in touches.mounts.iter().filter(|touch| touch.copy_up) {
        copy_up(root, touch).map_err(|e| format!("{}: tmpcopyup: {e}", touch.field))?;
    }
    enter(root).map_err(|e| format!("root.path: {e}"))?;
    for touch in &touches.mounts {
        change(touch).map_err(|e| format!("{}: {e}", touch.field))?;
    }
    for path in &touches.read_only {
        let made = read_only(path);
        made.map_err(|e| format!("linux.readonlyPaths: {}: {e}", path.display()))?;
    }
    if let Some(cwd) = &touches.cwd {
        let made = fs::create_dir_all(cwd);
        made.map_err(|e| format!("process.cwd: {}: {e}", cwd.display()))?;
    }
    Ok(())
}

fn change(touch: &Touch) -> io::Result<()> {
    if touch.set | touch.clear != 0 {
        set_attributes(&touch.destination, touch.set, touch.clear)?;
    }
    if touch.propagation != 0 {
        let flags = MsFlags::from_bits_retain(touch.propagation);
        let none = None::<&str>;
        mount(none, &touch.destination, none, flags, none)?;
    }
    Ok(())
}

/// As runc: what is not there needs no protection.
fn read_only(path: &Path) -> io::Result<()> {
    let none = None::<&str>;
    match mount(
        Some(path),
        path,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    ) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    }
    set_attributes(path, libc::MOUNT_ATTR_RDONLY, 0)
}

/// mount_setattr(2), of one mount.
pub(super) fn set_attributes(path: &Path, set: u64, clear: u64) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: a NUL-terminated path and a mount_attr that live across the call, with the size of the latter.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Copies into a fresh tmpfs what the directory below it holds, and gives it that directory's owner.
fn copy_up(root: &Path, touch: &Touch) -> io::Result<()> {
    // The root file system alone, without what is mounted in it.
    let below = clone_tree(root)?;
    let by_number = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let from = inside::directory(&by_number(&below), &touch.destination)?;
    let to = inside::directory(root, &touch.destination)?;
    copy_entries(&by_number(&from), &by_number(&to))?;
    let owner = fs::metadata(by_number(&from))?;
    chown(by_number(&to), Some(owner.uid()), Some(owner.gid()))
}

fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a NUL-terminated path that lives across the call.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)
    })?;
    // SAFETY: made in the call above, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn copy_entries(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    let kind = found.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(found.uid()), Some(found.gid()));
    }
    if kind.is_dir() {
        fs::create_dir(to)?;
        copy_entries(from, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else {
        let kind = SFlag::from_bits_truncate(found.mode() & libc::S_IFMT);
        mknod(to, kind, Mode::empty(), found.rdev())?;
    }
    chown(to, Some(found.uid()), Some(found.gid()))?;
    // After the owner, whose change takes away set-user-id.
    fs::set_permissions(to, fs::Permissions::from_mode(found.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_files_links_and_modes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("sub/deeper")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o2711)).unwrap();
        symlink("/nowhere", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR).unwrap();
        copy_entries(&from, &to).unwrap();
        let mode = |name: &str| fs::symlink_metadata(to.join(name)).unwrap().mode() & 0o7777;
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert_eq!((mode("sub/file"), mode("sub")), (0o640, 0o2711));
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/nowhere")
        );
        assert!(to.join("sub/deeper").is_dir());
        use std::os::unix::fs::FileTypeExt;
        let fifo = fs::symlink_metadata(to.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo());
    }
}
