//! Gives the kernel a filter for this thread (seccomp(2)).

use libc::{sock_filter, sock_fprog};
use nix::errno::Errno;

/// Loads it, for the rest of the thread's life.
///
/// # Errors
/// The kernel's: EINVAL for a program that is none, or too long; EACCES for who may gain privileges and has no `CAP_SYS_ADMIN`.
pub fn load(program: &mut [sock_filter], flags: libc::c_ulong) -> Result<(), Errno> {
    let program = sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies `len` instructions, which live across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match Errno::result(result)? {
        0 => Ok(()),
        // With TSYNC: a thread that could not have it.
        _ => Err(Errno::ESRCH),
    }
}
