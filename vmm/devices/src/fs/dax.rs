//! The DAX window: file pages mapped straight into guest-physical memory (virtio 1.2 §5.11.6.4).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Where a mapping may start and how long it is a multiple of: what Linux uses (FUSE_DAX_SZ, 2 MiB). It bounds the
/// number of mappings a guest can make in the monitor to the window's length divided by this.
pub const DAX_GRANULE: u64 = 2 << 20;

/// Changes what is mapped in the window. The monitor implements it over its own reservation of the window; called on
/// the device's worker thread with ranges already checked: multiples of [`DAX_GRANULE`] that lie inside.
pub trait DaxMapper: Send + Sync {
    /// Maps `length` bytes of `file` from `file_offset` shared at `window_offset`, over whatever is there.
    ///
    /// # Errors
    /// The host refuses; nothing or the old mapping remains.
    fn map(
        &self,
        file: BorrowedFd<'_>,
        file_offset: u64,
        window_offset: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<()>;

    /// Puts anonymous memory without access back at `window_offset`.
    ///
    /// # Errors
    /// The host refuses; the mapping remains.
    fn unmap(&self, window_offset: u64, length: u64) -> io::Result<()>;
}

/// The window as the board placed it: shared memory region 0 of the device (§5.11.5).
#[derive(Clone)]
pub struct DaxWindow {
    /// Guest-physical base address.
    pub base: u64,
    /// Length in bytes; a multiple of [`DAX_GRANULE`].
    pub length: u64,
    /// Who maps.
    pub mapper: Arc<dyn DaxMapper>,
}

impl DaxWindow {
    /// A guest's FUSE_SETUPMAPPING, checked.
    pub(super) fn map(&self, file: BorrowedFd<'_>, at: Placement) -> io::Result<()> {
        self.check(at.window_offset, at.length)?;
        let end = at.file_offset.checked_add(at.length);
        if !at.file_offset.is_multiple_of(DAX_GRANULE)
            || end.is_none_or(|end| end > i64::MAX.cast_unsigned())
        {
            return Err(invalid());
        }
        self.mapper.map(
            file,
            at.file_offset,
            at.window_offset,
            at.length,
            at.writable,
        )
    }

    /// One range of a guest's FUSE_REMOVEMAPPING, checked.
    pub(super) fn unmap(&self, window_offset: u64, length: u64) -> io::Result<()> {
        self.check(window_offset, length)?;
        self.mapper.unmap(window_offset, length)
    }

    /// Takes every mapping out: at reset, and when a new session starts.
    pub(super) fn clear(&self) {
        if let Err(error) = self.mapper.unmap(0, self.length) {
            tracing::error!(%error, "could not empty the DAX window");
        }
    }

    fn check(&self, window_offset: u64, length: u64) -> io::Result<()> {
        let inside = window_offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        let aligned =
            window_offset.is_multiple_of(DAX_GRANULE) && length.is_multiple_of(DAX_GRANULE);
        if length == 0 || !inside || !aligned {
            return Err(invalid());
        }
        Ok(())
    }
}

/// What a FUSE_SETUPMAPPING asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    pub file_offset: u64,
    pub window_offset: u64,
    pub length: u64,
    pub writable: bool,
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
