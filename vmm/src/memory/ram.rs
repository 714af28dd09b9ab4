//! Guest RAM: private anonymous mappings, backed by the host only where the guest has touched them.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmbox_devices::device::GuestRam;

use super::advise;
use super::layout::Region;

/// The host did not give the memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "{mib} MiB of guest memory can't be had: {cause}; lower memory_mib or free memory on the host"
)]
pub struct NoMemory {
    mib: u64,
    cause: String,
}

/// Maps every region. Nothing is committed yet (MAP_NORESERVE), so a guest may have more RAM than the host has free.
///
/// # Errors
/// The address space or the mappings can't be had.
pub fn allocate(regions: &[Region]) -> Result<GuestRam, NoMemory> {
    let no_memory = |cause: String| NoMemory {
        mib: regions.iter().map(|r| r.length).sum::<u64>() >> 20,
        cause,
    };
    let mut mapped = Vec::with_capacity(regions.len());
    for region in regions {
        let length = usize::try_from(region.length).map_err(|e| no_memory(e.to_string()))?;
        let mapping: MmapRegion = MmapRegion::build(
            None,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        )
        .map_err(|e| no_memory(e.to_string()))?;
        advise::exclude_from_dumps(&mapping);
        let guest_region = GuestRegionMmap::new(mapping, GuestAddress(region.base))
            .ok_or_else(|| no_memory(format!("{region:?} wraps around")))?;
        mapped.push(guest_region);
    }
    GuestMemoryMmap::from_regions(mapped)
        .map(Arc::new)
        .map_err(|e| no_memory(e.to_string()))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemory};

    use super::*;

    #[test]
    fn regions_are_zeroed_and_writable_at_their_ends() {
        let regions = [
            Region {
                base: 0,
                length: 1 << 20,
            },
            Region {
                base: 1 << 32,
                length: 1 << 20,
            },
        ];
        let ram = allocate(&regions).unwrap();
        let last = GuestAddress((1 << 32) + (1 << 20) - 8);
        assert_eq!(ram.read_obj::<u64>(last).unwrap(), 0);
        ram.write_obj(7u64, last).unwrap();
        assert_eq!(ram.num_regions(), 2);
    }

    #[test]
    fn more_than_the_address_space_is_refused_with_the_amount() {
        let error = allocate(&[Region {
            base: 0,
            length: 1 << 60,
        }])
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("1099511627776 MiB of guest memory"),
            "{error}"
        );
    }
}
