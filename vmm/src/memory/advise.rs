//! madvise on guest RAM behind safe functions: giving pages back and keeping them out of core dumps.

use std::io;

use nix::unistd::{SysconfVar, sysconf};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryRegion, MmapRegion};
use vmbox_devices::device::GuestRam;

/// Keeps a mapping out of core dumps: the guest's secrets do not belong there. Best effort.
pub fn exclude_from_dumps(mapping: &MmapRegion) {
    // SAFETY: the range is exactly a live mapping that `mapping` owns, and MADV_DONTDUMP does not change its contents.
    let _ = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
}

/// The host's page size in bytes: 4 KiB, or on aarch64 16 or 64.
fn page_bytes() -> u64 {
    // The fallback can't happen: every Linux says.
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// Gives the pages of `[address, address + length)` back to the host; the guest reads zeroes there afterwards.
/// The range may span regions. Only whole pages of the host inside of it are given back.
///
/// # Errors
/// The range is not all RAM, or madvise fails.
pub fn give_back(ram: &GuestRam, address: u64, length: u64) -> io::Result<()> {
    let page = page_bytes();
    let out_of_ram = || io::Error::from(io::ErrorKind::InvalidInput);
    let end = address.checked_add(length).ok_or_else(out_of_ram)? / page * page;
    let mut next = address
        .checked_next_multiple_of(page)
        .ok_or_else(out_of_ram)?;
    while next < end {
        let region = ram.find_region(GuestAddress(next)).ok_or_else(out_of_ram)?;
        let region_end = region.start_addr().0 + region.len();
        let chunk = end.min(region_end) - next;
        let host = ram
            .get_host_address(GuestAddress(next))
            .map_err(io::Error::other)?;
        let chunk_bytes = usize::try_from(chunk).map_err(io::Error::other)?;
        // SAFETY: `host` is the start of `chunk` bytes inside one live private anonymous mapping (checked against the
        // region's end). Guest RAM is only ever accessed as volatile bytes, so its turning to zero breaks no reference.
        let result = unsafe { libc::madvise(host.cast(), chunk_bytes, libc::MADV_DONTNEED) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        next += chunk;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::layout::Region;
    use crate::memory::ram::allocate;

    fn two_regions() -> GuestRam {
        allocate(&[
            Region {
                base: 0,
                length: 0x4000,
            },
            Region {
                base: 0x4000,
                length: 0x4000,
            },
        ])
        .unwrap()
    }

    #[test]
    fn pages_given_back_read_as_zero_and_their_neighbours_stay() {
        let ram = two_regions();
        ram.write_slice(&[1; 0x8000], GuestAddress(0)).unwrap();
        give_back(&ram, 0x2fff, 0x3001).unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x2fff)).unwrap(), 1);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x3000)).unwrap(), 0);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x5fff)).unwrap(), 0);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x6000)).unwrap(), 1);
    }

    #[test]
    fn a_range_outside_of_ram_is_refused() {
        let ram = two_regions();
        assert!(give_back(&ram, 0x7000, 0x2000).is_err());
        assert!(give_back(&ram, u64::MAX - 10, 100).is_err());
    }
}
