//! The guest-physical address map of x86_64.
//!
//! ```text
//! 0x0000_6000  start info, module list, memory map (PVH)
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  MP table; reserved up to 1 MiB
//! 0x0010_0000  kernel … guest image, then the ramoops region at the end of low RAM
//! 0xd000_0000  virtio-mmio registers, 4 KiB each          ┐
//! 0xfec0_0000  IOAPIC   0xfee0_0000  local APIC           │ the gap
//! 0xfffb_c000  pages that KVM borrows                     ┘
//! 4 GiB        the rest of RAM, then the DAX windows
//! ```

use crate::machine::board::Place;
use crate::machine::ramoops_place;
use crate::memory::layout::{MIB, RamMap, Region};

/// hvm_start_info.
pub const START_INFO: u64 = 0x6000;
/// hvm_modlist_entry[1].
pub const MODULE_LIST: u64 = 0x6100;
/// hvm_memmap_table_entry[].
pub const MEMORY_MAP: u64 = 0x7000;
/// The kernel command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE of Linux on x86_64, with the terminating zero.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// The last KiB of conventional memory, where Linux looks for an MP table.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Where RAM begins again after the hole that PCs have for their BIOS.
pub const HIGH_MEMORY: u64 = MIB;

/// One page.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages.
pub const TSS: u64 = 0xfffb_d000;
/// The IOAPIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

const GAP_START: u64 = 0xd000_0000;
const GAP_END: u64 = 1 << 32;

const FIRST_IRQ: u32 = 5;
/// The IOAPIC's last pin.
pub const LAST_IRQ: u32 = 23;
/// Each device has a pin of its own.
pub const MAX_DEVICES: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;

/// Where `memory_mib` of RAM go.
pub fn ram_map(memory_mib: u32) -> RamMap {
    let total = u64::from(memory_mib) * MIB;
    let low = Region {
        base: 0,
        length: total.min(GAP_START),
    };
    let mut regions = vec![low];
    if total > low.length {
        regions.push(Region {
            base: GAP_END,
            length: total - low.length,
        });
    }
    let end = regions
        .iter()
        .map(Region::end)
        .max()
        .unwrap_or(0)
        .max(GAP_END);
    RamMap {
        regions,
        ramoops: ramoops_place(low),
        end,
    }
}

/// Registers and interrupt of the virtio-mmio device with this number, if there is room for it.
pub fn device_place(index: usize) -> Option<Place> {
    if index >= MAX_DEVICES {
        return None;
    }
    let index = u32::try_from(index).ok()?;
    Some(Place {
        base: GAP_START + u64::from(index) * 0x1000,
        irq: FIRST_IRQ + index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_region_ending_in_the_log() {
        let map = ram_map(32);
        assert_eq!(
            map.regions,
            [Region {
                base: 0,
                length: 32 * MIB
            }]
        );
        assert_eq!(map.ramoops.end(), 32 * MIB);
        assert_eq!(map.end, GAP_END);
    }

    #[test]
    fn memory_above_the_gap_starts_at_4_gib_and_none_is_lost() {
        let map = ram_map(65536);
        assert_eq!(
            map.regions.iter().map(|r| r.length).sum::<u64>(),
            65536 * MIB
        );
        assert_eq!(map.regions[1].base, GAP_END);
        assert_eq!(map.ramoops.end(), GAP_START);
        assert_eq!(map.end, map.regions[1].end());
    }

    #[test]
    fn every_device_has_a_pin_of_its_own() {
        let first = Place {
            base: 0xd000_0000,
            irq: 5,
        };
        assert_eq!(device_place(0), Some(first));
        assert_eq!(device_place(MAX_DEVICES - 1).unwrap().irq, LAST_IRQ);
        assert_eq!(device_place(MAX_DEVICES), None);
    }
}
