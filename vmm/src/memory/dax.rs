//! A DAX window: a reservation of host address space into which file ranges are mapped for the guest to see
//! (virtio 1.2 §5.11.6.4). Unsafe mmap lives here, behind bounds that are checked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Address space reserved for one window: inaccessible until something is mapped over it.
#[derive(Debug)]
pub struct Reservation {
    base: *mut libc::c_void,
    length: usize,
}

// SAFETY: the pointer is only a number to this type, which never dereferences it; mmap and munmap may be called from
// any thread.
unsafe impl Send for Reservation {}
// SAFETY: as for Send; concurrent mmap calls on one range are ordered by the kernel.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `length` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// mmap fails.
    pub fn new(length: usize) -> io::Result<Self> {
        let base = map(ptr::null_mut(), length, libc::PROT_NONE, RESERVED, None)?;
        Ok(Self { base, length })
    }

    /// Host address of the first byte, for KVM's memory slot.
    pub fn host_address(&self) -> u64 {
        self.base as u64
    }

    /// Length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Maps `length` bytes of `file` from `file_offset` at `offset` of the window, shared.
    ///
    /// # Errors
    /// The range is not page-aligned or not inside the window, or mmap fails.
    pub fn map_file(
        &self,
        offset: u64,
        length: u64,
        file: BorrowedFd<'_>,
        file_offset: u64,
        writable: bool,
    ) -> io::Result<()> {
        let (at, length) = self.range(offset, length)?;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        map(
            at,
            length,
            protection,
            libc::MAP_SHARED | libc::MAP_FIXED,
            Some((file, file_offset)),
        )?;
        Ok(())
    }

    /// Turns `[offset, offset + length)` back into inaccessible reservation.
    ///
    /// # Errors
    /// The range is not page-aligned or not inside the window, or mmap fails.
    pub fn unmap(&self, offset: u64, length: u64) -> io::Result<()> {
        let (at, length) = self.range(offset, length)?;
        map(
            at,
            length,
            libc::PROT_NONE,
            RESERVED | libc::MAP_FIXED,
            None,
        )?;
        Ok(())
    }

    fn range(&self, offset: u64, length: u64) -> io::Result<(*mut libc::c_void, usize)> {
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= self.length as u64);
        if end.is_none() || length == 0 || !(offset | length).is_multiple_of(4096) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // Both fit a usize: they are no larger than `self.length`.
        Ok((
            self.base.wrapping_byte_add(offset as usize),
            length as usize,
        ))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range is ours alone since `new`, and whoever could see it (KVM's slot) keeps this value alive.
        let _ = unsafe { libc::munmap(self.base, self.length) };
    }
}

const RESERVED: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// mmap. `at` is null, or (with MAP_FIXED) a range that lies in a live [`Reservation`].
fn map(
    at: *mut libc::c_void,
    length: usize,
    protection: i32,
    flags: i32,
    file: Option<(BorrowedFd<'_>, u64)>,
) -> io::Result<*mut libc::c_void> {
    let (fd, file_offset) = match file {
        Some((file, offset)) => (file.as_raw_fd(), offset),
        None => (-1, 0),
    };
    let file_offset = libc::off_t::try_from(file_offset)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: without MAP_FIXED the kernel picks a free range; with it, both callers above pass a range checked to lie
    // inside their own reservation, to whose bytes no Rust reference exists.
    let mapped = unsafe { libc::mmap(at, length, protection, flags, fd, file_offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_page_aligned_ranges_inside_the_window_are_mapped() {
        let window = Reservation::new(2 << 20).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let fd = file.as_fd();
        window.map_file(0x1000, 0x2000, fd, 0, true).unwrap();
        window.unmap(0, 2 << 20).unwrap();
        assert!(window.map_file(0x1000, 2 << 20, fd, 0, false).is_err());
        assert!(
            window
                .map_file(u64::MAX - 0xfff, 0x2000, fd, 0, false)
                .is_err()
        );
        assert!(window.map_file(0x10, 0x1000, fd, 0, false).is_err());
        assert!(window.unmap(0, 0).is_err());
    }
}
