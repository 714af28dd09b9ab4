//! Guest RAM: private anonymous mappings, backed by the host only where the guest has touched them.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
use vmbox_devices::device::GuestRam;
use vmbox_devices::ram::{Ram, RamRegion};

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

impl NoMemory {
    fn of(bytes: u64, cause: impl ToString) -> Self {
        let cause = cause.to_string();
        Self {
            mib: bytes >> 20,
            cause,
        }
    }
}

/// Maps every region. Nothing is committed yet (MAP_NORESERVE), so a guest may have more RAM than the host has free.
///
/// # Errors
/// The address space or the mappings can't be had.
pub fn allocate(regions: &[Region]) -> Result<GuestRam, NoMemory> {
    allocate_with_spare(regions, None)
}

/// As [`allocate`], with a region behind them that costs nothing, and that nobody can use before it is [shown](`show`).
///
/// # Errors
/// The address space or the mappings can't be had.
pub fn allocate_with_spare(
    regions: &[Region],
    spare: Option<Region>,
) -> Result<GuestRam, NoMemory> {
    let all = regions.iter().chain(&spare);
    let bytes = all.fold(0, |sum, region| region.length.saturating_add(sum));
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let shown = regions
        .iter()
        .map(|region| map(*region, protection).map(RamRegion::shown));
    let hidden = spare
        .iter()
        .map(|region| map(*region, libc::PROT_NONE).map(RamRegion::hidden));
    let mapped: Result<Vec<_>, String> = shown.chain(hidden).collect();
    let mapped = mapped.map_err(|cause| NoMemory::of(bytes, cause))?;
    Ok(Arc::new(Ram::new(mapped)))
}

fn map(region: Region, protection: i32) -> Result<GuestRegionMmap, String> {
    let length = usize::try_from(region.length).map_err(|e| e.to_string())?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let mapping: MmapRegion =
        MmapRegion::build(None, length, protection, flags).map_err(|e| e.to_string())?;
    advise::exclude_from_dumps(&mapping);
    GuestRegionMmap::new(mapping, GuestAddress(region.base))
        .ok_or_else(|| format!("{region:?} wraps around"))
}

/// Makes the first `length` bytes of the spare region at `base` memory that devices can use.
///
/// # Errors
/// The host does not promise so much (`vm.overcommit_memory`), or there is no such region. Devices see what they saw before.
pub fn show(ram: &GuestRam, base: GuestAddress, length: u64) -> Result<(), NoMemory> {
    let mapping = ram
        .mapping(base)
        .ok_or_else(|| NoMemory::of(length, "there is no such region"))?;
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = bytes.min(mapping.size());
    // SAFETY: the range is the beginning of a live mapping that `ram` owns. More access than before breaks no reference.
    let result = unsafe {
        libc::mprotect(
            mapping.as_ptr().cast(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    };
    if result != 0 {
        return Err(NoMemory::of(length, io::Error::last_os_error()));
    }
    ram.show(base, length);
    Ok(())
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

    #[test]
    fn a_spare_region_can_be_used_as_far_as_it_is_shown() {
        let place = |base| Region {
            base,
            length: 1 << 20,
        };
        let base = GuestAddress(1 << 32);
        let ram = allocate_with_spare(&[place(0)], Some(place(base.0))).unwrap();
        assert!(ram.write_obj(7u64, base).is_err());
        show(&ram, base, 0x1000).unwrap();
        ram.write_obj(7u64, base).unwrap();
        assert!(ram.write_obj(7u64, GuestAddress(base.0 + 0x1000)).is_err());
        show(&ram, base, 1 << 20).unwrap();
        assert_eq!(ram.read_obj::<u64>(base).unwrap(), 7);
        let end = GuestAddress(base.0 + (1 << 20) - 8);
        ram.write_obj(7u64, end).unwrap();
    }
}
