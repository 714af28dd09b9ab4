//! Looks into a container's root file system without being led out of it by its links.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;

/// Opens a directory of a root file system as a process in it would find it (openat2(2), RESOLVE_IN_ROOT).
///
/// # Errors
/// There is none.
pub fn directory(root: &Path, inside: &Path) -> io::Result<OwnedFd> {
    let root = std::fs::File::open(root)?;
    let path = std::ffi::CString::new(inside.as_os_str().as_encoded_bytes())?;
    // SAFETY: an open_how of zeroes is a valid value of that plain C structure.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: a NUL-terminated path and an open_how that live across the call, with the size of the latter.
    let fd = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })?;
    // SAFETY: made in the call above, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The permissions of a directory of a root file system, if it is there.
pub fn mode(root: &Path, inside: &Path) -> Option<u32> {
    let directory = directory(root, inside).ok()?;
    let found = nix::sys::stat::fstat(&directory).ok()?;
    Some(found.st_mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn links_stay_inside() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("var/lib")).unwrap();
        fs::create_dir(outer.path().join("secret")).unwrap();
        fs::set_permissions(root.join("var/lib"), fs::Permissions::from_mode(0o710)).unwrap();
        std::os::unix::fs::symlink("/var/lib", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("var/out")).unwrap();
        assert_eq!(mode(&root, Path::new("/absolute")), Some(0o710));
        assert_eq!(mode(&root, Path::new("/var/out")), None);
        assert_eq!(mode(&root, Path::new("../secret")), None);
    }
}
