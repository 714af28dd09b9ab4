//! The guest-physical address map of aarch64.
//!
//! ```text
//! 0x0800_0000  GICv3 distributor   0x080a_0000 redistributors, 128 KiB for each vCPU
//! 0x0900_0000  serial console      0x0901_0000 real-time clock
//! 0x0a00_0000  virtio-mmio registers, 4 KiB each
//! 0x4000_0000  kernel … guest image, device tree, ramoops region (at the end of RAM, or of its first 3 GiB);
//!              the rest of RAM, then the DAX windows
//! ```

use crate::machine::board::Place;
use crate::machine::ramoops_place;
use crate::memory::layout::{GIB, MIB, RamMap, Region};

/// The GIC's distributor.
pub const DISTRIBUTOR: Region = Region {
    base: 0x0800_0000,
    length: 0x1_0000,
};
/// The first of the GIC's redistributors, which follow each other.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// One of them.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// The registers of the serial console.
pub const SERIAL: u64 = 0x0900_0000;
/// The registers of the real-time clock.
pub const RTC: u64 = 0x0901_0000;
/// Serial console and clock have a page each.
pub const LEGACY_BYTES: u64 = 0x1000;
const VIRTIO: u64 = 0x0a00_0000;
/// Where RAM begins: after 1 GiB, for the largest pages.
pub const RAM_BASE: u64 = GIB;
/// Kernel, guest image, device tree and log share this first part of RAM: the boot protocol wants the guest image
/// near the kernel, and devices of 32 address bits, should there ever be one, would reach it.
const LOW_RAM_BYTES: u64 = 3 * GIB;
/// Room for the device tree, right below the log. 32 vCPUs and 19 devices take 9 KiB, the command line 2.
pub const FDT_BYTES: u64 = 0x1_0000;

/// Shared peripheral interrupts that the GIC has; KVM's irqfds number them from 0, the GIC from 32.
pub const SPIS: u32 = 32;
/// The interrupt of the serial console.
pub const SERIAL_IRQ: u32 = 0;
const FIRST_IRQ: u32 = 1;
/// As many as x86_64 has pins for, so that a configuration that fits there fits here.
pub const MAX_DEVICES: usize = 19;

/// Where `memory_mib` of RAM go.
pub fn ram_map(memory_mib: u32) -> RamMap {
    let ram = Region {
        base: RAM_BASE,
        length: u64::from(memory_mib) * MIB,
    };
    let low = Region {
        length: ram.length.min(LOW_RAM_BYTES),
        ..ram
    };
    RamMap {
        regions: vec![ram],
        ramoops: ramoops_place(low),
        end: ram.end(),
    }
}

/// Where the device tree goes.
pub fn fdt_address(ram: &RamMap) -> u64 {
    ram.ramoops.base - FDT_BYTES
}

/// Registers and interrupt of the virtio-mmio device with this number, if there is room for it.
pub fn device_place(index: usize) -> Option<Place> {
    if index >= MAX_DEVICES {
        return None;
    }
    let index = u32::try_from(index).ok()?;
    Some(Place {
        base: VIRTIO + u64::from(index) * 0x1000,
        irq: FIRST_IRQ + index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_one_region_with_the_log_near_the_kernel() {
        for (memory_mib, low_mib) in [(32, 32), (3072, 3072), (65536, 3072)] {
            let map = ram_map(memory_mib);
            let length = u64::from(memory_mib) * MIB;
            assert_eq!(
                map.regions,
                [Region {
                    base: RAM_BASE,
                    length
                }]
            );
            assert_eq!(map.ramoops.end(), RAM_BASE + low_mib * MIB);
            assert_eq!(map.end, RAM_BASE + length);
        }
    }

    #[test]
    fn the_device_tree_is_aligned_and_below_the_log() {
        let map = ram_map(32);
        assert!(fdt_address(&map).is_multiple_of(8));
        assert!(fdt_address(&map) + FDT_BYTES <= map.ramoops.base);
    }

    #[test]
    fn every_device_has_an_interrupt_of_its_own() {
        let irqs: Vec<_> = (0..MAX_DEVICES)
            .map(|index| device_place(index).unwrap().irq)
            .collect();
        assert!(irqs.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(!irqs.contains(&SERIAL_IRQ) && irqs.iter().all(|irq| *irq < SPIS));
        assert_eq!(device_place(MAX_DEVICES), None);
    }

    #[test]
    fn nothing_overlaps_with_32_vcpus() {
        let places = [
            DISTRIBUTOR.base,
            REDISTRIBUTORS,
            SERIAL,
            RTC,
            VIRTIO,
            RAM_BASE,
        ];
        let lengths = [
            DISTRIBUTOR.length,
            32 * REDISTRIBUTOR_BYTES,
            LEGACY_BYTES,
            LEGACY_BYTES,
            MAX_DEVICES as u64 * 0x1000,
        ];
        for (index, length) in lengths.iter().enumerate() {
            assert!(places[index] + length <= places[index + 1]);
        }
    }
}
