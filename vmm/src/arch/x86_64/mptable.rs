//! The MP table (Intel MultiProcessor Specification 1.4 §4): how a kernel without ACPI finds its processors, the IOAPIC
//! and the interrupts. Pure bytes.

use super::layout::{IO_APIC, LAST_IRQ, LOCAL_APIC};

const FLOATING_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
const ISA_BUS: u8 = 0;
/// What KVM's local APIC and IOAPIC report of themselves.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

/// The floating pointer and the table behind it, to be placed at `base`. With 32 processors it takes less than 1 KiB.
pub fn build(vcpus: u8, base: u64) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    // Fits: `base` is below 1 MiB and 32 processors make less than 1 KiB.
    let table_address = (base as u32).wrapping_add(FLOATING_BYTES as u32);
    let mut bytes = floating_pointer(table_address);
    bytes.extend(with_checksum(table(&entries, count), 7));
    bytes
}

fn floating_pointer(table_address: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    bytes.extend(b"_MP_");
    bytes.extend(table_address.to_le_bytes());
    bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]); // one paragraph, version 1.4, checksum, features
    with_checksum(bytes, 10)
}

fn table(entries: &[u8], count: u16) -> Vec<u8> {
    let length = (HEADER_BYTES + entries.len()) as u16;
    let mut bytes = Vec::from(*b"PCMP");
    bytes.extend(length.to_le_bytes());
    bytes.extend([4, 0]); // version 1.4, checksum
    bytes.extend(b"VMBOX   VMBOX       ");
    bytes.extend([0; 6]); // no OEM table
    bytes.extend(count.to_le_bytes());
    bytes.extend(LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]); // no extended table
    bytes.extend(entries);
    bytes
}

fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = 1 | u8::from(id == 0) << 1; // enabled, bootstrap processor
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, LOCAL_APIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes()); // family 6, as any since
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes()); // FPU and APIC on chip
        add(&entry);
    }
    add(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = IO_APIC.to_le_bytes();
    add(&[
        2,
        io_apic_id,
        IO_APIC_VERSION,
        1,
        address[0],
        address[1],
        address[2],
        address[3],
    ]);
    // Every pin is an ISA interrupt of the same number: edge-triggered, active high, as irqfd drives it.
    for pin in 0..=LAST_IRQ as u8 {
        add(&[3, 0, 0, 0, ISA_BUS, pin, io_apic_id, pin]);
    }
    add(&[4, 3, 0, 0, ISA_BUS, 0, 0, 0]); // ExtINT at LINT0 of the bootstrap processor
    add(&[4, 1, 0, 0, ISA_BUS, 0, 0xff, 1]); // NMI at LINT1 of all
    (entries, count)
}

/// Sets the byte at `at` so that all bytes add up to zero.
fn with_checksum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = checksum.wrapping_sub(sum);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_parts_add_up_to_zero_and_the_length_is_true() {
        for vcpus in 1..=32 {
            let bytes = build(vcpus, 0x9fc00);
            assert!(
                bytes.len() <= 1024,
                "{vcpus} processors: {} bytes",
                bytes.len()
            );
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(sum(&bytes[16..]), 0);
            assert_eq!(
                u16::from_le_bytes([bytes[20], bytes[21]]) as usize,
                bytes.len() - 16
            );
            assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()), 0x9fc10);
        }
    }

    #[test]
    fn entries_are_counted_and_only_the_first_processor_boots() {
        let bytes = build(2, 0x9fc00);
        let count = u16::from_le_bytes(bytes[16 + 34..16 + 36].try_into().unwrap());
        assert_eq!(count, 2 + 1 + 1 + 24 + 2);
        assert_eq!(bytes[16 + 44 + 3], 3);
        assert_eq!(bytes[16 + 44 + 20 + 3], 1);
    }
}
