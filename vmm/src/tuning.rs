//! Keeps the process small and its start quick.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};

/// How many descriptors the table has room for from the start. 1024 is the usual soft limit and more than a monitor opens
/// before the guest runs; the table takes 8 KiB. A share on which the guest holds more files makes it grow as before:
/// room for 16384 from the start would cost each VM 128 KiB.
const DESCRIPTORS: i32 = 1024;

/// One allocator arena instead of one per thread: no thread here allocates on a hot path, and each arena costs memory.
/// Does nothing where libc is not glibc. Call before the first thread.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only sets a parameter of the allocator.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }
}

/// Makes the kernel's table of our descriptors as large as it will usually get. Growing it later, when there are threads,
/// waits each time (64, 128, 256, …) for an RCU grace period: milliseconds of the boot. Call before the first thread.
pub fn reserve_descriptors() {
    // A lower limit or a closed stdin only mean that there is nothing to gain.
    if let Ok(fd) = fcntl(std::io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTORS - 1)) {
        // SAFETY: fcntl has just made this descriptor, and nobody else knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_and_no_descriptor_stays() {
        reserve_descriptors();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|l| l.strip_prefix("FDSize:"));
        let size: i32 = size.unwrap().trim().parse().unwrap();
        assert!(size >= DESCRIPTORS, "{size}");
        assert!(!std::fs::exists(format!("/proc/self/fd/{}", DESCRIPTORS - 1)).unwrap());
    }
}
