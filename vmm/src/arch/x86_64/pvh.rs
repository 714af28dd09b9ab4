//! The PVH start structures (Xen's hvm/start_info.h, version 1) as bytes.

use super::layout::{COMMAND_LINE, HIGH_MEMORY, MEMORY_MAP, MODULE_LIST, MP_TABLE};
use crate::memory::layout::{RamMap, Region};

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// hvm_start_info: 56 bytes.
pub fn start_info(has_initrd: bool, memory_map_entries: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(56);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(1u32.to_le_bytes()); // version
    bytes.extend(0u32.to_le_bytes()); // flags
    bytes.extend(u32::from(has_initrd).to_le_bytes()); // nr_modules
    bytes.extend((if has_initrd { MODULE_LIST } else { 0 }).to_le_bytes());
    bytes.extend(COMMAND_LINE.to_le_bytes());
    bytes.extend(0u64.to_le_bytes()); // rsdp_paddr: no ACPI
    bytes.extend(MEMORY_MAP.to_le_bytes());
    bytes.extend(memory_map_entries.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes
}

/// hvm_modlist_entry of the guest image.
pub fn module(initrd: Region) -> Vec<u8> {
    [initrd.base, initrd.length, 0, 0]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

/// hvm_memmap_table_entry of each region, and their number.
pub fn memory_map(ram: &RamMap) -> (Vec<u8>, u32) {
    let mut map = vec![
        (
            Region {
                base: 0,
                length: MP_TABLE,
            },
            RAM,
        ),
        (
            Region {
                base: MP_TABLE,
                length: HIGH_MEMORY - MP_TABLE,
            },
            RESERVED,
        ),
        (
            Region {
                base: HIGH_MEMORY,
                length: ram.ramoops.base - HIGH_MEMORY,
            },
            RAM,
        ),
        (ram.ramoops, RESERVED),
    ];
    map.extend(ram.regions.iter().skip(1).map(|region| (*region, RAM)));
    let mut bytes = Vec::with_capacity(map.len() * 24);
    for (region, kind) in &map {
        bytes.extend(region.base.to_le_bytes());
        bytes.extend(region.length.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    (bytes, map.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ram_map;

    #[test]
    fn the_log_and_the_mp_table_are_not_ram() {
        let (bytes, count) = memory_map(&ram_map(4096));
        assert_eq!(bytes.len(), count as usize * 24);
        let kinds: Vec<u8> = bytes.chunks(24).map(|entry| entry[16]).collect();
        assert_eq!(kinds, [1, 2, 1, 2, 1]);
    }

    #[test]
    fn the_start_info_has_the_size_of_version_1() {
        assert_eq!(start_info(true, 5).len(), 56);
        assert_eq!(module(Region { base: 1, length: 2 }).len(), 32);
    }
}
