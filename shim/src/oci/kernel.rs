//! System calls that no crate of ours wraps, behind safe functions.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
};

/// Signals that are about us ourselves, or that the kernel raises for what we do: never the container's.
const OURS: [libc::c_int; 9] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGCHLD,
    libc::SIGPIPE,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTTIN,
];

/// Blocks every signal that is for the container, and returns a descriptor that they are read from, non-blocking.
///
/// # Errors
/// As signalfd(2) says.
pub fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is valid memory for sigemptyset to initialise.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in 1..=libc::SIGRTMAX() {
        if !OURS.contains(&signal) {
            // SAFETY: `set` is initialised; a number that is none is refused.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
    }
    // Writing to a terminal in the background must not stop us.
    // SAFETY: SIG_IGN is a valid disposition, and there is one thread.
    unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
    // SAFETY: `set` is initialised, the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: -1 asks for a new descriptor, `set` is initialised.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made above, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next signal that has come, if one has.
pub fn next_signal(signals: &File) -> Option<u32> {
    use std::io::Read;
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    let count = (&mut { signals }).read(&mut info).ok()?;
    // `ssi_signo` is the first field (signalfd(2)).
    let number = info.first_chunk::<4>().filter(|_| count == info.len())?;
    Some(u32::from_ne_bytes(*number))
}

/// Closes every descriptor above standard error but these.
pub fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1, 0);
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0);
}

/// Keeps every descriptor above standard error from what we execute: engines leave theirs open, and would wait for a VM to
/// close them.
pub fn keep_descriptors_to_ourselves() {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) {
    // SAFETY: only called before any of these descriptors has an owner in this process, or with CLOEXEC, which closes
    // none. It fails only on kernels older than those that vmbox runs on, and then nothing is closed.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Unmaps what this program has read of its own code and constants so far; the kernel maps again what is still used. One
/// program is all of vmbox, and a keeper runs little of it.
pub fn forget_code() {
    // SAFETY: the callback has the type that is asked for, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(forget_segments), std::ptr::null_mut()) };
}

/// For each object in this process: the one static program, and the kernel's vDSO.
extern "C" fn forget_segments(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: dl_iterate_phdr(3) passes a valid one.
    let info = unsafe { &*info };
    let count = usize::from(info.dlpi_phnum);
    // SAFETY: it has so many program headers, which live as long as the object.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, count) };
    for header in headers {
        // What was ever writable holds our relocations, and would lose them.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = rustix::param::page_size() as u64;
        let first = info.dlpi_addr + header.p_vaddr;
        let start = first - first % page;
        let length = first + header.p_memsz - start;
        // SAFETY: a private mapping of a file that was never written to reads the same after this. Failing changes nothing.
        unsafe {
            libc::madvise(
                start as *mut libc::c_void,
                length as usize,
                libc::MADV_DONTNEED,
            )
        };
    }
    0
}

/// Sends a descriptor over a Unix socket, with its name (runc's docs/terminals.md).
///
/// # Errors
/// As sendmsg(2) says.
pub fn send_descriptor(socket: impl AsFd, fd: &OwnedFd, name: &str) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[io::IoSlice::new(name.as_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
