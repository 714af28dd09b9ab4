//! The guest's RAM as devices see it: what it booted with, and as much of what it can be given as it has been shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

/// The guest's RAM as every device sees it.
pub type GuestRam = Arc<Ram>;

/// All regions of the guest's RAM. Clones are the same RAM.
#[derive(Debug, Clone)]
pub struct Ram {
    regions: Arc<[RamRegion]>,
}

impl Ram {
    /// RAM of these regions, which must not overlap.
    pub fn new(regions: Vec<RamRegion>) -> Self {
        Self {
            regions: regions.into(),
        }
    }

    /// Lets devices use the region that begins at `base` up to `length` bytes of it, or as many as there are; never fewer than
    /// before.
    pub fn show(&self, base: GuestAddress, length: u64) {
        for region in self.regions.iter() {
            if region.start_addr() == base {
                let length = length.min(region.mapping.len());
                region.shown.fetch_max(length, Ordering::Relaxed);
            }
        }
    }

    /// All of the mapping of the region that begins at `base`, whatever is shown of it.
    pub fn mapping(&self, base: GuestAddress) -> Option<&GuestRegionMmap> {
        let mut mappings = self.regions.iter().map(|region| &region.mapping);
        mappings.find(|mapping| mapping.start_addr() == base)
    }
}

impl GuestMemory for Ram {
    type R = RamRegion;

    fn find_region(&self, address: GuestAddress) -> Option<&RamRegion> {
        let mut regions = self.regions.iter();
        regions.find(|region| region.to_region_addr(address).is_some())
    }

    fn iter(&self) -> impl Iterator<Item = &RamRegion> {
        self.regions.iter()
    }
}

/// A region of which devices see the beginning. What lies behind that is as if it were not there, whichever address a driver
/// writes into a descriptor: it is mapped, but a device that used it would let the monitor grow by what nobody gave the guest.
#[derive(Debug)]
pub struct RamRegion {
    mapping: GuestRegionMmap,
    /// Only grows, so that a check holds for as long as the access that it is for.
    shown: AtomicU64,
}

impl RamRegion {
    /// A region that is there as a whole.
    pub fn shown(mapping: GuestRegionMmap) -> Self {
        let shown = mapping.len().into();
        Self { mapping, shown }
    }

    /// A region of which nothing is there yet: see [`Ram::show`].
    pub fn hidden(mapping: GuestRegionMmap) -> Self {
        let shown = 0.into();
        Self { mapping, shown }
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    /// Of a region of which nothing is there, its first address.
    fn last_addr(&self) -> GuestAddress {
        GuestAddress(self.start_addr().0 + self.len().saturating_sub(1))
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8> {
        let address = self.check_address(address);
        self.mapping
            .get_host_address(address.ok_or(GuestMemoryError::InvalidBackendAddress)?)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>> {
        let end = offset.0.checked_add(count as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        self.mapping.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const FIRST: GuestAddress = GuestAddress(0);
    const SECOND: GuestAddress = GuestAddress(0x10_0000);
    const BYTES: usize = 0x4000;

    fn mapping(base: GuestAddress) -> GuestRegionMmap {
        GuestRegionMmap::from_range(base, BYTES, None).unwrap()
    }

    fn half_hidden() -> Ram {
        let hidden = RamRegion::hidden(mapping(SECOND));
        Ram::new(vec![RamRegion::shown(mapping(FIRST)), hidden])
    }

    #[test]
    fn hidden_memory_is_not_there() {
        let ram = half_hidden();
        assert!(ram.find_region(SECOND).is_none());
        assert!(ram.write_obj(1u8, SECOND).is_err());
        assert!(ram.get_slice(SECOND, 0).is_err());
        assert!(ram.get_host_address(SECOND).is_err());
        assert!(!ram.check_range(SECOND, 1));
        assert!(ram.write_obj(1u8, FIRST).is_ok());
    }

    #[test]
    fn what_is_shown_can_be_used_to_its_end_and_not_beyond() {
        let ram = half_hidden();
        ram.show(SECOND, 0x1000);
        let last = GuestAddress(SECOND.0 + 0xfff);
        ram.write_obj(7u8, last).unwrap();
        assert!(ram.write_obj(7u16, last).is_err());
        assert!(ram.get_slice(SECOND, 0x1001).is_err());
        let pieces = ram.get_slices(SECOND, 0x1001).filter(|s| s.is_ok());
        assert_eq!(pieces.map(|s| s.unwrap().len()).sum::<usize>(), 0x1000);
    }

    #[test]
    fn what_was_shown_stays_and_no_more_is_shown_than_there_is() {
        let ram = half_hidden();
        ram.show(SECOND, u64::MAX);
        ram.show(SECOND, 1);
        let last = GuestAddress(SECOND.0 + BYTES as u64 - 1);
        assert!(ram.write_obj(7u8, last).is_ok());
        assert!(ram.write_obj(7u16, last).is_err());
    }
}
