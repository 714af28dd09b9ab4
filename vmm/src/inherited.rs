//! Takes over descriptors that the parent process has handed down by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Owns descriptor `fd` from now on and keeps it from children.
///
/// # Errors
/// It is not open, or it is one of the standard three.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::other(format!(
            "descriptor {fd} can't be handed over; use 3 or more"
        )));
    }
    // SAFETY: F_SETFD changes one flag of a descriptor, and fails with EBADF if there is none of this number.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked above), and by the contract of VmConfig it was opened by the parent for us to own;
    // this is called once per configured number, before anything of ours is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
